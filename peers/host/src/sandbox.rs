//! What a process may do once it has confined itself: data processes (`confine`), and processes that become a foreign program.
//!
//! | means | what is left |
//! |---|---|
//! | capabilities | those that a program keeps, if the process has them |
//! | Landlock | access to listed paths; TCP only if it is allowed |
//! | seccomp | all calls except those that no process of ours makes (tracing, mounting, modules, namespaces, other users' ids), and those that are refused in addition |
//!
//! The seccomp filter lists the refused calls, which fail with `EPERM`: a list of allowed calls would break with each new C library, and a
//! process that is killed by a filter costs guests more than a refused call that no process needs.
//!
//! Invariants
//! - Everything that is not named here is off: an empty description leaves no capability, no file and no TCP.
//! - What was taken is never given back: neither to this process nor to the program that it becomes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use archipelago_protocol::{Error, ErrorCode};
use caps::{CapSet, Capability};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus,
};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The version of Landlock whose rights are requested; older kernels support a part of them.
const LANDLOCK: ABI = ABI::V5;

/// System calls that no process of ours makes.
const REFUSED: [libc::c_long; 33] = [
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
    libc::SYS_setresuid,
    libc::SYS_settimeofday,
    libc::SYS_sethostname,
];

/// A condition on the first argument of a system call, by its low 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstArgument {
    /// Anything but this.
    IsNot(u32),
    /// Anything but these.
    IsNoneOf(&'static [u32]),
    /// It has all of these bits.
    Has(u32),
}

/// The capabilities that are kept.
#[derive(Debug)]
enum Capabilities {
    /// None, for a process that does not become another program. A change of the bounding set needs a capability, which most users do not
    /// have; the bounding set has an effect only on new programs.
    None,
    /// These, for the program that this process becomes.
    OfProgram(Vec<Capability>),
}

/// What a process keeps; [`Sandbox::enter`] takes everything else from it.
#[derive(Debug)]
pub struct Sandbox {
    capabilities: Capabilities,
    allows_tcp: bool,
    paths: Vec<(PathBuf, BitFlags<AccessFs>)>,
    /// Calls that fail with `EPERM`, always or depending on their first argument.
    refused: Vec<libc::c_long>,
    refused_if: Vec<(libc::c_long, FirstArgument)>,
    /// Calls that fail with `ENOSYS`.
    missing: Vec<libc::c_long>,
}

impl Sandbox {
    /// For a process that does not become another program: it keeps no capability.
    #[must_use]
    pub fn of_process() -> Sandbox {
        Sandbox::new(Capabilities::None)
    }

    /// For the program that this process becomes: it keeps those of the capabilities `kept` that this process has.
    #[must_use]
    pub fn of_program(kept: &[Capability]) -> Sandbox {
        Sandbox::new(Capabilities::OfProgram(kept.to_vec()))
    }

    fn new(capabilities: Capabilities) -> Sandbox {
        Sandbox {
            capabilities,
            allows_tcp: false,
            paths: Vec::new(),
            refused: REFUSED.to_vec(),
            refused_if: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Allows `access` to `path` and below. A path that does not exist when the sandbox is entered is skipped; the program fails when it
    /// opens the path.
    pub fn allow(&mut self, path: impl AsRef<Path>, access: impl Into<BitFlags<AccessFs>>) {
        self.paths.push((path.as_ref().to_owned(), access.into()));
    }

    /// Allows TCP.
    pub fn allow_tcp(&mut self) {
        self.allows_tcp = true;
    }

    /// Refuses `calls`, with `EPERM`.
    pub fn refuse(&mut self, calls: &[libc::c_long]) {
        self.refused.extend(calls);
    }

    /// Refuses `call` with this first argument, with `EPERM`; a call may have several such arguments.
    pub fn refuse_if(&mut self, call: libc::c_long, argument: FirstArgument) {
        self.refused_if.push((call, argument));
    }

    /// Makes `call` fail with `ENOSYS`, as on a kernel without it: libraries then use another call.
    pub fn hide(&mut self, call: libc::c_long) {
        self.missing.push(call);
    }

    /// Takes everything else from this thread, and from those that it starts. Returns what Landlock does on this kernel.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] if the kernel has a mechanism and refuses it: then the process must end.
    pub fn enter(&self) -> Result<RulesetStatus, Error> {
        self.drop_capabilities()?;
        let status = self.restrict_files()?;
        self.refuse_calls()?;
        Ok(status)
    }

    fn drop_capabilities(&self) -> Result<(), Error> {
        let failed = |error| failed("dropping capabilities", error);
        let kept = match &self.capabilities {
            Capabilities::None => &[][..],
            Capabilities::OfProgram(kept) => kept,
        };
        let others = caps::runtime::thread_all_supported();
        for capability in others.into_iter().filter(|one| !kept.contains(one)) {
            if let Capabilities::OfProgram(_) = self.capabilities {
                // A process without privileges cannot change it, and gets nothing by it.
                let _dropped = caps::drop(None, CapSet::Bounding, capability);
            }
            caps::drop(None, CapSet::Ambient, capability).map_err(failed)?;
        }
        for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
            let had = caps::read(None, set).map_err(failed)?;
            let left = had.into_iter().filter(|one| kept.contains(one)).collect();
            caps::set(None, set, &left).map_err(failed)?;
        }
        Ok(())
    }

    fn restrict_files(&self) -> Result<RulesetStatus, Error> {
        let failed = |error: landlock::RulesetError| failed("Landlock", error);
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))
            .map_err(failed)?;
        if !self.allows_tcp {
            ruleset = ruleset
                .handle_access(AccessNet::from_all(LANDLOCK))
                .map_err(failed)?;
        }
        let mut ruleset = ruleset.create().map_err(failed)?;
        for (path, access) in &self.paths {
            ruleset = allow_beneath(ruleset, path, *access)?;
        }
        let status = ruleset.restrict_self().map_err(failed)?;
        Ok(status.ruleset)
    }

    fn refuse_calls(&self) -> Result<(), Error> {
        let mut rules = BTreeMap::<_, Vec<SeccompRule>>::new();
        for (call, argument) in &self.refused_if {
            let rule = rule(*argument).map_err(seccomp_failed)?;
            rules.entry(*call).or_default().push(rule);
        }
        // No rule: always, whatever other entries the call has.
        rules.extend(self.refused.iter().map(|call| (*call, Vec::new())));
        fail_calls(rules, libc::EPERM)?;
        if self.missing.is_empty() {
            return Ok(());
        }
        let missing = self.missing.iter().map(|call| (*call, Vec::new()));
        fail_calls(missing.collect(), libc::ENOSYS)
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Internal, format!("{what}: {error}"))
}

fn seccomp_failed(error: impl std::fmt::Display) -> Error {
    failed("seccomp", error)
}

fn allow_beneath(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, Error> {
    let Ok(opened) = PathFd::new(path) else {
        return Ok(ruleset);
    };
    let access = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(LANDLOCK)
    };
    ruleset
        .add_rule(PathBeneath::new(opened, access))
        .map_err(|error| failed(&path.display().to_string(), error))
}

fn rule(argument: FirstArgument) -> Result<SeccompRule, seccompiler::BackendError> {
    let first = |operator, value| {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, u64::from(value))
    };
    // All conditions of a rule have to hold.
    let conditions = match argument {
        FirstArgument::IsNot(value) => vec![first(SeccompCmpOp::Ne, value)?],
        FirstArgument::IsNoneOf(values) => values
            .iter()
            .map(|value| first(SeccompCmpOp::Ne, *value))
            .collect::<Result<_, _>>()?,
        FirstArgument::Has(bits) => vec![first(SeccompCmpOp::MaskedEq(u64::from(bits)), bits)?],
    };
    SeccompRule::new(conditions)
}

/// Makes the calls that `rules` match fail with `errno` from now on.
fn fail_calls(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    errno: libc::c_int,
) -> Result<(), Error> {
    let architecture = std::env::consts::ARCH.try_into().map_err(seccomp_failed)?;
    let fails = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, fails, architecture)
        .map_err(seccomp_failed)?;
    let program: BpfProgram = filter.try_into().map_err(seccomp_failed)?;
    seccompiler::apply_filter(&program).map_err(seccomp_failed)
}
