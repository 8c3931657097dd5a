//! What a sandbox leaves and what it takes, whoever describes it, by trying it in a process of its own.

#[cfg(test)]
mod child;

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::net::TcpListener;
    use std::path::Path;

    use archipelago_host::sandbox::{FirstArgument, Sandbox};
    use caps::{CapSet, Capability};
    use landlock::{AccessFs, RulesetStatus};
    use nix::errno::Errno;
    use nix::libc;
    use nix::sched::{CloneFlags, sched_yield, unshare};
    use nix::unistd::{Pid, getpgid, getsid};

    use crate::child::run_inside;

    /// Tells the program below where it is.
    const ROOT: &str = "SANDBOXED_IN";
    /// And which sandbox it enters.
    const KIND: &str = "SANDBOX";

    /// The program that is confined; a test only by the way that it is started.
    #[test]
    fn inside() {
        let Some(root) = std::env::var_os(ROOT) else {
            return;
        };
        match std::env::var(KIND).unwrap().as_str() {
            "process" => try_process(Path::new(&root)),
            _ => try_program(),
        }
        println!("all tried");
    }

    fn permitted() -> caps::CapsHashSet {
        caps::read(None, CapSet::Permitted).unwrap()
    }

    fn try_process(root: &Path) {
        let mut sandbox = Sandbox::of_process();
        sandbox.allow(root.join("a"), AccessFs::ReadFile | AccessFs::ReadDir);
        sandbox.allow(root.join("nowhere"), AccessFs::ReadFile);
        sandbox.refuse(&[libc::SYS_getpgid]);
        // Also what is refused already, and by two conditions.
        sandbox.refuse_if(libc::SYS_unshare, FirstArgument::Has(1));
        sandbox.refuse_if(libc::SYS_getsid, FirstArgument::Has(1 << 29));
        sandbox.refuse_if(libc::SYS_getsid, FirstArgument::Has(1 << 30));
        sandbox.hide(libc::SYS_sched_yield);
        let landlock = sandbox.enter().unwrap();
        assert!(permitted().is_empty());
        let refused = |pid: i32| getsid(Some(Pid::from_raw(pid))) == Err(Errno::EPERM);
        assert!(refused(1 << 30) && refused(1 << 29 | 1) && !refused(0));
        assert_eq!(getpgid(None), Err(Errno::EPERM));
        assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EPERM));
        assert_eq!(sched_yield(), Err(Errno::ENOSYS));
        if landlock == RulesetStatus::NotEnforced {
            println!("skipped: this kernel has no Landlock");
            return;
        }
        // A file takes what a directory's rights have for files.
        assert_eq!(fs::read(root.join("a")).unwrap(), b"data");
        assert!(File::create(root.join("a")).is_err());
        assert!(fs::read(root.join("b")).is_err());
        if landlock == RulesetStatus::FullyEnforced {
            assert!(TcpListener::bind("127.0.0.1:0").is_err());
        }
    }

    fn try_program() {
        let kept = Capability::CAP_DAC_OVERRIDE;
        let had = permitted();
        let mut sandbox = Sandbox::of_program(&[kept]);
        sandbox.allow_tcp();
        sandbox.enter().unwrap();
        let left = had.iter().copied().filter(|one| *one == kept).collect();
        assert_eq!(permitted(), left);
        // Of a program that root becomes, the bounding set is what it has.
        if had.contains(&Capability::CAP_SETPCAP) {
            assert_eq!(caps::read(None, CapSet::Bounding).unwrap(), left);
        }
        TcpListener::bind("127.0.0.1:0").unwrap();
    }

    fn sandboxed(kind: &str) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), b"data").unwrap();
        fs::write(dir.path().join("b"), b"data").unwrap();
        let said = run_inside(&[(ROOT, dir.path()), (KIND, Path::new(kind))]);
        assert!(said.contains("all tried"), "{said}");
    }

    #[test]
    fn a_process_keeps_what_is_named() {
        sandboxed("process");
    }

    #[test]
    fn a_program_keeps_its_capabilities_and_tcp() {
        sandboxed("program");
    }
}
