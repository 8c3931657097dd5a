//! Foreign programs that read unchecked data (disk images) or use the network: each runs with what its task needs and no more.
//!
//! | means | what the program can use |
//! |---|---|
//! | descriptors | the files of the task, opened by the caller, as `/proc/self/fd/N`; all others are closed |
//! | environment | the search path of programs; for a download also proxies and certificates |
//! | Landlock | those files, and the programs and libraries of the system; no TCP, unless the task is a download |
//! | seccomp | no sockets except the one that is served (or a download's); no signals to others, io_uring, tracing, mounting, modules, namespaces |
//! | capabilities | those to open the files of the task, also if the caller is root; none for a download |
//! | limits | CPU time, address space, length of a file, no core |
//! | death | when the calling process ends, for any reason |
//!
//! This process confines itself, and then executes the program.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use archipelago_host::sandbox::{FirstArgument, Sandbox};
use archipelago_protocol::{Error, ErrorCode};
use caps::Capability;
use clap::Args;
use landlock::AccessFs;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};

/// Programs and libraries.
const SYSTEM: [&str; 6] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
];
/// What a download may read besides: certificates, resolvers, the time zone; never a secret (`/etc/shadow`).
const NETWORK: [&str; 20] = [
    // Private keys of this host's services are in the directories beside these.
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/openssl.cnf",
    "/etc/crypto-policies",
    "/var/lib/ca-certificates",
    "/etc/ca-certificates",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/localtime",
    "/run/systemd/resolve",
    "/run/nscd",
];
/// Variables that a download gets besides the search path of programs.
const NETWORK_VARIABLES: [&str; 10] = [
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "CURL_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
];
/// Devices that programs open by themselves.
const DEVICES: [&str; 3] = ["/dev/null", "/dev/urandom", "/dev/random"];
/// Bytes of address space: the caches of a format are limited to 32 MiB, threads have stacks of 8 MiB.
const ADDRESS_SPACE: u64 = 8 << 30;
/// The descriptor at which a service expects its listening socket: `sd_listen_fds(3)`.
const LISTEN_FD: RawFd = 3;

/// Capabilities to open files that belong to others.
const OPENING: [Capability; 2] = [
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
];

/// System calls that data processes use and such a program never needs.
const REFUSED: [libc::c_long; 11] = [
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // A filter does not see its operations.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_pidfd_send_signal,
    libc::SYS_fsconfig,
    libc::SYS_mount_setattr,
    libc::SYS_kexec_file_load,
];

/// Types of namespaces that a new process could be put into.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// A program and its rights.
#[derive(Debug, Args)]
pub(crate) struct Tool {
    /// Process id of the caller; the program dies with it
    #[arg(long)]
    parent: i32,
    /// Descriptors of files that it may read
    #[arg(long, value_name = "FD")]
    read: Vec<RawFd>,
    /// Descriptors of files that it may write too
    #[arg(long, value_name = "FD")]
    write: Vec<RawFd>,
    /// It serves the socket that is the standard input
    #[arg(long)]
    listen: bool,
    /// It may use the network
    #[arg(long)]
    network: bool,
    /// Seconds of CPU time
    #[arg(long)]
    cpu: Option<u64>,
    /// Bytes of the longest file that it may write
    #[arg(long)]
    file_size: Option<u64>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Confines this process and executes the program.
///
/// # Errors
/// If it cannot be confined, or the program cannot be started.
pub(crate) fn run(tool: &Tool) -> Result<(), Error> {
    archipelago_host::die_with(tool.parent)?;
    close_others(tool)?;
    limit(tool)?;
    sandbox(tool).enter()?;
    let (program, arguments) = tool.command.split_first().expect("clap wants one");
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("LC_ALL", "C");
    let further: &[&str] = if tool.network {
        &NETWORK_VARIABLES
    } else {
        &[]
    };
    for name in further.iter().chain(&["PATH"]) {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if tool.listen {
        offer_socket()?;
        command
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", "1");
    }
    let error = command.exec();
    let message = format!("starting {}: {error}", program.display());
    Err(Error::new(ErrorCode::Unavailable, message))
}

fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Internal, format!("{what}: {error}"))
}

/// Closes all descriptors that the caller has left open, except the files of the task.
fn close_others(tool: &Tool) -> Result<(), Error> {
    let failed = |error: std::io::Error| failed("open descriptors", error);
    let mut others = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let descriptor = name.to_str().and_then(|name| name.parse::<RawFd>().ok());
        others.extend(descriptor.filter(|descriptor| {
            *descriptor >= LISTEN_FD
                && !tool.read.contains(descriptor)
                && !tool.write.contains(descriptor)
        }));
    }
    for descriptor in others {
        // One of them was that of the directory, which is closed already.
        let _closed = nix::unistd::close(descriptor);
    }
    Ok(())
}

fn limit(tool: &Tool) -> Result<(), Error> {
    let limits = [
        (Resource::RLIMIT_CORE, Some(0)),
        (Resource::RLIMIT_AS, Some(ADDRESS_SPACE)),
        (Resource::RLIMIT_CPU, tool.cpu),
        (Resource::RLIMIT_FSIZE, tool.file_size),
    ];
    for (resource, limit) in limits {
        if let Some(limit) = limit {
            setrlimit(resource, limit, limit)
                .map_err(|errno| failed(&format!("{resource:?}"), errno))?;
        }
    }
    Ok(())
}

fn sandbox(tool: &Tool) -> Sandbox {
    // The caller has opened the files; opening them again may need its capabilities. A download writes to its standard output, and opens
    // files that everybody may read.
    let kept = if tool.network { &[][..] } else { &OPENING };
    let mut sandbox = Sandbox::of_program(kept);
    allow_files(&mut sandbox, tool);
    if tool.network {
        sandbox.allow_tcp();
    } else {
        // The socket that is served exists already. A new UNIX socket could reach any service of this host.
        sandbox.refuse(&[libc::SYS_socket, libc::SYS_connect]);
    }
    sandbox.refuse(&REFUSED);
    // A program may end itself (`abort`), but not others.
    let other = FirstArgument::IsNot(std::process::id());
    sandbox.refuse_if(libc::SYS_tgkill, other);
    for flag in NAMESPACES {
        sandbox.refuse_if(libc::SYS_clone, FirstArgument::Has(flag.unsigned_abs()));
    }
    // Its flags are in memory, where a filter does not see them. Libraries that do not find it call `clone`.
    sandbox.hide(libc::SYS_clone3);
    sandbox
}

fn allow_files(sandbox: &mut Sandbox, tool: &Tool) {
    let list = AccessFs::ReadFile | AccessFs::ReadDir;
    for path in SYSTEM {
        sandbox.allow(path, list | AccessFs::Execute);
    }
    for path in DEVICES {
        sandbox.allow(path, AccessFs::ReadFile | AccessFs::WriteFile);
    }
    if tool.network {
        for path in NETWORK {
            sandbox.allow(path, list);
        }
    }
    let read = AccessFs::ReadFile | AccessFs::IoctlDev;
    for descriptor in &tool.read {
        sandbox.allow(format!("/proc/self/fd/{descriptor}"), read);
    }
    let write = read | AccessFs::WriteFile | AccessFs::Truncate;
    for descriptor in &tool.write {
        sandbox.allow(format!("/proc/self/fd/{descriptor}"), write);
    }
}

/// Moves the listening socket, which is the standard input, to the descriptor at which a service expects it.
fn offer_socket() -> Result<(), Error> {
    // The caller may have left something open there. The descriptors of the task have larger numbers.
    let _free = nix::unistd::close(LISTEN_FD);
    match fcntl(std::io::stdin(), FcntlArg::F_DUPFD(LISTEN_FD)) {
        Ok(LISTEN_FD) => Ok(()),
        Ok(other) => Err(failed("the socket", format!("descriptor {other}"))),
        Err(errno) => Err(failed("the socket", errno)),
    }
}
