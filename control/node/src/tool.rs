//! Foreign programs that read what nobody has checked (disk images) or speak to the network: run with what their task needs and no more.
//!
//! | means | what is left |
//! |---|---|
//! | descriptors | the files of the task, opened by whoever asked, as `/proc/self/fd/N`; all others are closed |
//! | environment | the path of programs; for a download also proxies and certificates |
//! | Landlock | those files, and the programs and libraries of the system; no TCP, unless the task is a download |
//! | seccomp | no sockets but the one that is served (or a download's), no signals to others, io_uring, tracing, mounting, modules, namespaces |
//! | capabilities | those that open what the task names, also if the caller is root; none for a download |
//! | limits | CPU time, address space, length of a file, no core |
//! | death | with the process that asked for it, whatever ends that one |
//!
//! This process confines itself and then becomes the program.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use archipelago_protocol::{Error, ErrorCode};
use clap::Args;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Landlock's version whose rights are asked for; older kernels give what they have.
const LANDLOCK: ABI = ABI::V5;
/// Programs and libraries.
const SYSTEM: [&str; 6] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
];
/// What a download reads besides: certificates, resolvers, the time zone; never a secret (`/etc/shadow`).
const NETWORK: [&str; 20] = [
    // Beside these lie the private keys of this host's services.
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
/// Variables that a download gets besides the path of programs.
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
/// Devices that programs open without being asked to.
const DEVICES: [&str; 3] = ["/dev/null", "/dev/urandom", "/dev/random"];
/// Bytes of address space: the caches of a format are bounded by 32 MiB, threads have stacks of 8 MiB.
const ADDRESS_SPACE: u64 = 8 << 30;
/// Where a service finds its listening socket: `sd_listen_fds(3)`.
const LISTEN_FD: RawFd = 3;

/// System calls that no such program makes.
const REFUSED: [libc::c_long; 44] = [
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // What it does, no filter sees.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_settimeofday,
    libc::SYS_sethostname,
    libc::SYS_setuid,
    libc::SYS_setresuid,
];

/// What a new process could be put into.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// A program and what it may use.
#[derive(Debug, Args)]
pub(crate) struct Tool {
    /// Process id of whoever asks; the program dies with it
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

/// Confines this process and becomes the program.
///
/// # Errors
/// If it cannot be confined, or the program cannot be started.
pub(crate) fn run(tool: &Tool) -> Result<(), Error> {
    archipelago_host::die_with(tool.parent)?;
    close_others(tool)?;
    limit(tool)?;
    drop_capabilities(tool.network)?;
    restrict_files(tool)?;
    refuse_calls(tool.network)?;
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

/// Closes what whoever asked has left open besides the files of the task.
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
        // One of them has read the directory, and is closed.
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

/// The files were opened by the caller; opening them once more may take what let it open them.
fn drop_capabilities(network: bool) -> Result<(), Error> {
    use caps::{CapSet, Capability};
    let opening = [
        Capability::CAP_DAC_OVERRIDE,
        Capability::CAP_DAC_READ_SEARCH,
    ];
    // A download writes to its standard output, and opens what everybody may read.
    let kept = if network { &[][..] } else { &opening };
    for capability in caps::all() {
        if kept.contains(&capability) {
            continue;
        }
        // What no process without privileges can change gives it nothing either.
        let _dropped = caps::drop(None, CapSet::Bounding, capability);
        for set in [CapSet::Ambient, CapSet::Inheritable] {
            let _dropped = caps::drop(None, set, capability);
        }
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        let had = caps::read(None, set).map_err(|error| failed("capabilities", error))?;
        let left = had.into_iter().filter(|one| kept.contains(one)).collect();
        caps::set(None, set, &left).map_err(|error| failed("dropping capabilities", error))?;
    }
    Ok(())
}

fn restrict_files(tool: &Tool) -> Result<(), Error> {
    let failed = |error: landlock::RulesetError| failed("Landlock", error);
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))
        .map_err(failed)?;
    if !tool.network {
        ruleset = ruleset
            .handle_access(AccessNet::from_all(LANDLOCK))
            .map_err(failed)?;
    }
    let mut ruleset = ruleset.create().map_err(failed)?;
    for path in SYSTEM {
        ruleset = allow(ruleset, path, AccessFs::from_read(LANDLOCK))?;
    }
    for path in DEVICES {
        ruleset = allow(ruleset, path, AccessFs::ReadFile | AccessFs::WriteFile)?;
    }
    if tool.network {
        for path in NETWORK {
            ruleset = allow(ruleset, path, AccessFs::ReadFile | AccessFs::ReadDir)?;
        }
    }
    let read = AccessFs::ReadFile | AccessFs::IoctlDev;
    for descriptor in &tool.read {
        ruleset = allow(ruleset, &format!("/proc/self/fd/{descriptor}"), read)?;
    }
    let write = read | AccessFs::WriteFile | AccessFs::Truncate;
    for descriptor in &tool.write {
        ruleset = allow(ruleset, &format!("/proc/self/fd/{descriptor}"), write)?;
    }
    ruleset.restrict_self().map_err(failed).map(drop)
}

/// Allows `access` to `path` and below. What is not there is missed, and named, by whoever opens it.
fn allow(
    ruleset: RulesetCreated,
    path: &str,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, Error> {
    let Ok(opened) = PathFd::new(path) else {
        return Ok(ruleset);
    };
    let access = if Path::new(path).is_dir() {
        access
    } else {
        access & AccessFs::from_file(LANDLOCK)
    };
    ruleset
        .add_rule(PathBeneath::new(opened, access))
        .map_err(|error| failed(path, error))
}

fn refuse_calls(network: bool) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| failed("seccomp", error);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    if !network {
        // The socket that is served is there already. A UNIX one reaches any service of this host.
        rules.insert(libc::SYS_socket, Vec::new());
        rules.insert(libc::SYS_connect, Vec::new());
    }
    let rule = |operator: SeccompCmpOp, value: u64| {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|error| failed(&error))
    };
    // A program may end itself (`abort`), and nobody else.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![rule(SeccompCmpOp::Ne, own)?]);
    let namespaces = NAMESPACES.into_iter().map(|flag| {
        let flag = u64::from(flag.unsigned_abs());
        rule(SeccompCmpOp::MaskedEq(flag), flag)
    });
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    apply(rules, libc::EPERM)?;
    // Its flags lie in memory, where no filter sees them. Libraries that do not find it call `clone`.
    apply(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        libc::ENOSYS,
    )
}

/// From now on the calls that `rules` match fail with `errno`.
fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| failed("seccomp", error);
    let architecture = std::env::consts::ARCH
        .try_into()
        .map_err(|error| failed(&error))?;
    let refused = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture)
        .map_err(|error| failed(&error))?;
    let program: BpfProgram = filter.try_into().map_err(|error| failed(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| failed(&error))
}

/// Puts the listening socket, which is the standard input, where a service looks for it.
fn offer_socket() -> Result<(), Error> {
    // Whatever the caller has left open there. The descriptors of the task have larger numbers.
    let _free = nix::unistd::close(LISTEN_FD);
    match fcntl(std::io::stdin(), FcntlArg::F_DUPFD(LISTEN_FD)) {
        Ok(LISTEN_FD) => Ok(()),
        Ok(other) => Err(failed("the socket", format!("descriptor {other}"))),
        Err(errno) => Err(failed("the socket", errno)),
    }
}
