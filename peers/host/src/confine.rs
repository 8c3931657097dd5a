//! Confines a data process, in case a guest or a neighbour takes it over: it keeps as little as its roles need.
//!
//! | means | what is left |
//! |---|---|
//! | capabilities | none, also if the daemon runs as root |
//! | user | the endpoint's own, if it has one (`identity`) |
//! | Landlock | files: the pool's directory (blocker), the presence journals (mapper), the host's identity (both), sockets of the role; TCP for a blocker whose pool is a cluster |
//! | seccomp | no new programs, no sockets but UNIX ones (and IP, with name look-ups, for such a blocker), no tracing, mounting, modules, namespaces, other users' ids |
//!
//! Done first of all, by the main thread: later threads and descriptors inherit it. Descriptors that the daemon passes (guest memory,
//! sockets) need no permission.
//!
//! The mechanism is in `sandbox`.

use archipelago_protocol::Error;
use archipelago_protocol::control::Role;
use landlock::{AccessFs, RulesetStatus};
use nix::libc;

use crate::sandbox::{FirstArgument, Sandbox};
use crate::{PeerSettings, Pool, owner};

/// System calls that other processes of ours may make, but no role needs.
const REFUSED: [libc::c_long; 5] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setgroups,
];

/// Families of sockets for every role.
const LOCAL: [u32; 1] = [libc::AF_UNIX.unsigned_abs()];
/// In addition for a blocker that uses the network. The C library asks netlink for this host's addresses when it looks up names.
const NETWORK: [u32; 4] = [
    libc::AF_UNIX.unsigned_abs(),
    libc::AF_INET.unsigned_abs(),
    libc::AF_INET6.unsigned_abs(),
    libc::AF_NETLINK.unsigned_abs(),
];

/// Takes from this thread, and from those that it starts, everything that `roles` do not need.
///
/// # Errors
/// If the kernel has a mechanism and refuses it. A missing mechanism is logged.
pub fn confine<P: Pool>(roles: &[Role], settings: &PeerSettings<P>) -> Result<(), Error> {
    let mut sandbox = Sandbox::of_process();
    allow_files(&mut sandbox, roles, settings);
    sandbox.refuse(&REFUSED);
    let mut families = &LOCAL[..];
    if roles.contains(&Role::Blocker) && settings.pool.uses_network() {
        sandbox.allow_tcp();
        families = &NETWORK[..];
    }
    sandbox.refuse_if(libc::SYS_socket, FirstArgument::IsNoneOf(families));
    let landlock = sandbox.enter()?;
    if landlock != RulesetStatus::FullyEnforced {
        tracing::info!(
            "Landlock is {landlock:?}: this kernel knows fewer rights, or has it switched off"
        );
    }
    Ok(())
}

fn allow_files<P: Pool>(sandbox: &mut Sandbox, roles: &[Role], settings: &PeerSettings<P>) {
    let files = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let sockets =
        AccessFs::ReadDir | AccessFs::WriteFile | AccessFs::MakeSock | AccessFs::RemoveFile;
    if roles.contains(&Role::Endpoint) {
        sandbox.allow(&settings.volumes, sockets);
    }
    if roles.contains(&Role::Mapper) || roles.contains(&Role::Blocker) {
        sandbox.allow(&settings.run, sockets);
    }
    if roles.contains(&Role::Blocker) {
        for directory in settings.pool.directories() {
            sandbox.allow(directory, files);
        }
        for path in settings.pool.reads() {
            sandbox.allow(path, AccessFs::ReadFile | AccessFs::ReadDir);
        }
    }
    if roles.contains(&Role::Mapper) {
        sandbox.allow(&settings.journals, files);
    }
    if roles.contains(&Role::Mapper) || roles.contains(&Role::Blocker) {
        for identity in [owner::BOOT_ID, owner::MACHINE_ID, owner::RANDOM_ID] {
            sandbox.allow(identity, AccessFs::ReadFile);
        }
    }
}
