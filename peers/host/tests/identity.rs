//! A process that takes on another user, by doing it in a process of its own; with root only.

#[cfg(test)]
mod child;

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::path::Path;

    use archipelago_host::Identity;
    use archipelago_protocol::ErrorCode;
    use nix::errno::Errno;
    use nix::sys::prctl;
    use nix::sys::signal::Signal;
    use nix::unistd::{Gid, Uid, geteuid, getgroups, getresgid, getresuid, setgroups, setresuid};

    use crate::child::run_inside;

    /// Tells the program below where its directories are.
    const ROOT: &str = "IDENTITY_IN";
    /// In no table of users: numbers will do.
    const USER: Identity = Identity {
        uid: 64_001,
        gid: 64_002,
        front_ends: None,
    };

    /// The program that takes the user on; a test only by the way that it is started.
    #[test]
    fn inside() {
        let Some(root) = std::env::var_os(ROOT) else {
            return;
        };
        let root = Path::new(&root);
        setgroups(&[Gid::from_raw(0), Gid::from_raw(64_003)]).unwrap();
        prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
        USER.take_on().unwrap();
        let (user, group) = (getresuid().unwrap(), getresgid().unwrap());
        for id in [user.real, user.effective, user.saved] {
            assert_eq!(id.as_raw(), USER.uid);
        }
        for id in [group.real, group.effective, group.saved] {
            assert_eq!(id.as_raw(), USER.gid);
        }
        assert_eq!(getgroups().unwrap(), []);
        let root_again = setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0));
        assert_eq!(root_again, Err(Errno::EPERM));
        assert_eq!(prctl::get_pdeathsig().unwrap(), Some(Signal::SIGKILL));

        USER.check_reach(&root.join("own")).unwrap();
        for beyond in ["others", "closed/own"] {
            let error = USER.check_reach(&root.join(beyond)).unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid);
            assert!(error.message.contains(beyond), "{error}");
            assert!(error.hint.contains("chmod"), "{}", error.hint);
        }
        println!("all tried");
    }

    #[test]
    fn a_user_that_was_taken_on_is_all_that_is_left() {
        if !geteuid().is_root() {
            let ci = std::env::var_os("CI").is_some();
            assert!(!ci, "not to be skipped: needs root");
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::set_permissions(root, Permissions::from_mode(0o755)).unwrap();
        for (name, mode) in [
            ("own", 0o700),
            ("others", 0o755),
            ("closed", 0o700),
            ("closed/own", 0o700),
        ] {
            fs::create_dir(root.join(name)).unwrap();
            fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
            if name.ends_with("own") {
                chown(root.join(name), Some(USER.uid), Some(USER.gid)).unwrap();
            }
        }
        let said = run_inside(&[(ROOT, root)]);
        assert!(said.contains("all tried"), "{said}");
    }
}
