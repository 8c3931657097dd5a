//! What a data process may still do, should a guest or a neighbour take it over: as little as its roles need.
//!
//! | means | what is left |
//! |---|---|
//! | capabilities | none, also if the daemon runs as root |
//! | user | the endpoint's own, if it has one (`identity`) |
//! | Landlock | files: the pool's directory (blocker), the presence journals (mapper), what this host is called (both), sockets of the role; no TCP |
//! | seccomp | no new programs, no sockets but UNIX ones, no tracing, mounting, modules, namespaces, other users' ids |
//!
//! Done first of all, by the main thread: threads and descriptors that come later have it too. What the daemon hands over
//! as descriptors (guest memory, sockets) needs no permission.
//!
//! The seccomp filter is a list of what is refused, with `EPERM`: a list of what is allowed breaks with each new C library,
//! and a process that is killed by it costs guests more than a refused call that nobody makes.

use std::collections::BTreeMap;
use std::path::Path;

use archipelago_protocol::control::Role;
use archipelago_protocol::{Error, ErrorCode};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus,
};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::{PeerSettings, Pool, owner};

/// Landlock's version whose rights are asked for; older kernels give what they have.
const LANDLOCK: ABI = ABI::V5;

/// System calls that no role makes.
const REFUSED: [libc::c_long; 38] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
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
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setresuid,
    libc::SYS_setgroups,
    libc::SYS_settimeofday,
    libc::SYS_sethostname,
];

/// Takes from this thread, and from those that it starts, what `roles` do not need.
///
/// # Errors
/// If the kernel has a means and refuses it. What it does not have is logged.
pub fn confine<P: Pool>(roles: &[Role], settings: &PeerSettings<P>) -> Result<(), Error> {
    drop_capabilities()?;
    restrict_files(roles, settings)?;
    refuse_calls()
}

fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Internal, format!("{what}: {error}"))
}

fn drop_capabilities() -> Result<(), Error> {
    use caps::CapSet;
    // The bounding set takes a capability to change, which most users do not have; what it allows needs a new program.
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Inheritable,
        CapSet::Permitted,
    ] {
        caps::clear(None, set).map_err(|error| failed("dropping capabilities", error))?;
    }
    Ok(())
}

fn restrict_files<P: Pool>(roles: &[Role], settings: &PeerSettings<P>) -> Result<(), Error> {
    let failed = |error: landlock::RulesetError| failed("Landlock", error);
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(LANDLOCK)))
        .and_then(Ruleset::create)
        .map_err(failed)?;
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
        ruleset = allow(ruleset, &settings.volumes, sockets)?;
    }
    if roles.contains(&Role::Mapper) || roles.contains(&Role::Blocker) {
        ruleset = allow(ruleset, &settings.run, sockets)?;
    }
    if roles.contains(&Role::Blocker) {
        for directory in settings.pool.directories() {
            ruleset = allow(ruleset, directory, files)?;
        }
    }
    if roles.contains(&Role::Mapper) {
        ruleset = allow(ruleset, &settings.journals, files)?;
    }
    if roles.contains(&Role::Mapper) || roles.contains(&Role::Blocker) {
        for identity in [owner::BOOT_ID, owner::MACHINE_ID] {
            ruleset = allow(ruleset, Path::new(identity), AccessFs::ReadFile.into())?;
        }
    }
    let status = ruleset.restrict_self().map_err(failed)?;
    if status.ruleset != RulesetStatus::FullyEnforced {
        tracing::info!(
            "Landlock is {:?}: this kernel knows fewer rights, or has it switched off",
            status.ruleset
        );
    }
    Ok(())
}

/// Allows `access` below `path`. What is not there is missed, and named, by whoever opens it.
fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, Error> {
    let Ok(opened) = PathFd::new(path) else {
        return Ok(ruleset);
    };
    ruleset
        .add_rule(PathBeneath::new(opened, access))
        .map_err(|error| failed(&path.display().to_string(), error))
}

fn refuse_calls() -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| failed("seccomp", error);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let other_family = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Ne,
        u64::from(libc::AF_UNIX.unsigned_abs()),
    )
    .and_then(|condition| SeccompRule::new(vec![condition]))
    .map_err(|error| failed(&error))?;
    rules.insert(libc::SYS_socket, vec![other_family]);
    let architecture = std::env::consts::ARCH
        .try_into()
        .map_err(|error| failed(&error))?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture)
        .map_err(|error| failed(&error))?;
    let program: BpfProgram = filter.try_into().map_err(|error| failed(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| failed(&error))
}
