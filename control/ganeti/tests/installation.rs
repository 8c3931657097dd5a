//! Installation: idempotent, of our own things alone, and gone without a trace.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    use archipelago_ganeti::call::Action;

    use crate::harness::{Host, program, run, skip, text};

    /// A directory in which things are installed.
    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            Place {
                dir: tempfile::tempdir().unwrap(),
            }
        }

        fn provider(&self) -> PathBuf {
            self.dir.path().join("ganeti/extstorage/archipelago")
        }

        fn logs(&self) -> PathBuf {
            self.dir.path().join("log/extstorage")
        }

        fn tool(&self, name: &str) -> Command {
            let mut command = program();
            command.arg(name).arg("--dir").arg(self.provider());
            if name != "uninstall" {
                command.arg("--log-dir").arg(self.logs());
            }
            command
        }

        fn install(&self) -> Output {
            run(self
                .tool("install")
                .args(["--root", "/srv/node", "--qemu", "/usr/bin/qemu"]))
        }

        fn uninstall(&self) -> Output {
            run(&mut self.tool("uninstall"))
        }

        /// Names, modes and contents of everything below.
        fn everything(&self) -> Vec<(PathBuf, u32, String)> {
            let mut all = Vec::new();
            collect(self.dir.path(), &mut all);
            all.sort();
            all
        }
    }

    fn collect(directory: &Path, all: &mut Vec<(PathBuf, u32, String)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = match (metadata.is_dir(), fs::read_link(&path)) {
                (true, _) => String::new(),
                (_, Ok(target)) => target.display().to_string(),
                _ => fs::read_to_string(&path).unwrap(),
            };
            all.push((
                path.clone(),
                metadata.permissions().mode() & 0o7777,
                content,
            ));
            if metadata.is_dir() {
                collect(&path, all);
            }
        }
    }

    #[test]
    fn it_is_installed_twice_and_removed_twice() {
        let place = Place::new();
        let output = place.install();
        assert!(output.status.success(), "{output:?}");
        let wrapper = place.provider().join("archipelago-kvm");
        let line = format!("gnt-cluster modify -H kvm:kvm_path={}\n", wrapper.display());
        assert!(text(&output.stdout).contains(&line), "{output:?}");
        for action in Action::ALL {
            // As Ganeti looks: a regular file, through links, that its owner may run.
            let metadata = fs::metadata(place.provider().join(action.name())).unwrap();
            assert!(metadata.is_file() && metadata.permissions().mode() & 0o100 != 0);
        }
        let list = fs::read_to_string(place.provider().join("parameters.list")).unwrap();
        assert!(list.starts_with("origin "), "{list}");
        assert_eq!(
            fs::metadata(place.logs()).unwrap().permissions().mode() & 0o7777,
            0o750
        );
        let once = place.everything();
        assert!(place.install().status.success());
        assert_eq!(place.everything(), once);
        for _ in 0..2 {
            assert!(place.uninstall().status.success());
            assert_eq!(place.everything(), []);
        }
    }

    /// Hints say `archipelago ganeti install`, without options, to whoever has installed with some.
    #[test]
    fn an_installation_without_options_keeps_the_settings() {
        let place = Place::new();
        let options = ["--root", "--qemu", "--ganeti-state"];
        let mut install = place.tool("install");
        for (option, path) in options.iter().zip(["/srv/a", "/usr/bin/qemu", "/srv/b"]) {
            install.args([option, path]);
        }
        assert!(run(&mut install).status.success());
        let once = place.everything();
        let settings = |at: &[(PathBuf, u32, String)]| {
            let conf = place.provider().join("archipelago.conf");
            let found = at.iter().find(|(path, ..)| *path == conf);
            found.unwrap().2.clone()
        };
        assert!(run(&mut place.tool("install")).status.success());
        assert_eq!(place.everything(), once);
        // One that is given changes, the others stay.
        for (option, former) in options.iter().zip(["/srv/a", "/usr/bin/qemu", "/srv/b"]) {
            assert!(
                run(place.tool("install").args([option, "/c"]))
                    .status
                    .success()
            );
            let expected = settings(&once).replace(former, "/c");
            assert_eq!(settings(&place.everything()), expected, "{option}");
            assert!(
                run(place.tool("install").args([option, former]))
                    .status
                    .success()
            );
        }
        assert_eq!(place.everything(), once);
    }

    #[test]
    fn who_uninstalls_learns_which_instances_need_another_kvm_path() {
        let place = Place::new();
        assert!(place.install().status.success());
        let said = text(&place.uninstall().stdout);
        let wrapper = place.provider().join("archipelago-kvm");
        assert!(
            said.contains(&format!("kvm_path is {}", wrapper.display())),
            "{said}"
        );
        assert!(
            said.contains("gnt-cluster modify -H kvm:kvm_path=/usr/bin/kvm\n"),
            "{said}"
        );
        assert_eq!(text(&place.uninstall().stdout), "");
    }

    /// With user separation Ganeti's daemons have groups of their own.
    #[test]
    fn the_directory_of_logs_belongs_to_whom_ganetis_other_logs_do() {
        if !nix::unistd::geteuid().is_root() {
            return skip("to give a directory away needs root");
        }
        let place = Place::new();
        let os = place.logs().with_file_name("os");
        fs::create_dir_all(&os).unwrap();
        std::os::unix::fs::chown(&os, Some(1234), Some(2345)).unwrap();
        assert!(place.install().status.success());
        let metadata = fs::metadata(place.logs()).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 2345));
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o750);
    }

    #[test]
    fn what_was_there_before_stays() {
        let place = Place::new();
        fs::create_dir_all(place.logs()).unwrap();
        fs::create_dir_all(place.provider().parent().unwrap()).unwrap();
        let before = place.everything();
        assert!(place.install().status.success());
        let foreign = place.provider().join("notes");
        fs::write(&foreign, "mine").unwrap();
        assert!(place.uninstall().status.success());
        assert!(foreign.exists());
        fs::remove_file(foreign).unwrap();
        fs::remove_dir(place.provider()).unwrap();
        assert_eq!(place.everything(), before);
    }

    #[test]
    fn what_is_not_ours_is_neither_overwritten_nor_removed() {
        let place = Place::new();
        fs::create_dir_all(place.provider()).unwrap();
        fs::write(place.provider().join("create"), "#!/bin/sh\n").unwrap();
        let before = place.everything();
        for output in [
            place.install(),
            place.uninstall(),
            run(&mut place.tool("check")),
        ] {
            assert_eq!(output.status.code(), Some(4), "{output:?}");
            let said = text(&output.stderr);
            assert!(said.contains("no installation of ours"), "{said}");
            assert_eq!(place.everything(), before);
        }
        // One name in a directory that is ours.
        let place = Place::new();
        assert!(place.install().status.success());
        let attach = place.provider().join("attach");
        fs::remove_file(&attach).unwrap();
        fs::write(&attach, "#!/bin/sh\n").unwrap();
        let output = place.install();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(
            text(&output.stderr).contains("/attach is there"),
            "{output:?}"
        );
        assert!(place.uninstall().status.success());
        assert_eq!(fs::read_to_string(attach).unwrap(), "#!/bin/sh\n");
    }

    /// Whatever is missing of an installation: the same again makes it, and it can be removed.
    #[test]
    fn an_installation_that_was_broken_off_is_finished_or_removed() {
        let whole = Place::new();
        assert!(whole.install().status.success());
        let names: Vec<String> = fs::read_dir(whole.provider())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        for missing in &names {
            for finishes in [true, false] {
                let place = Place::new();
                assert!(place.install().status.success());
                let once = place.everything();
                fs::remove_file(place.provider().join(missing)).unwrap();
                fs::write(place.provider().join(format!(".{missing}.new")), "half").unwrap();
                fs::remove_dir(place.logs()).unwrap();
                if missing == "archipelago.conf" {
                    // It is made first: nothing else is there without it.
                    for name in names.iter().filter(|name| *name != missing) {
                        fs::remove_file(place.provider().join(name)).unwrap();
                    }
                    fs::remove_dir(place.dir.path().join("log")).unwrap();
                }
                if finishes {
                    let checked = run(&mut place.tool("check"));
                    let problem = format!("problem: provider {}: ", place.provider().display());
                    assert!(
                        text(&checked.stdout).contains(&problem),
                        "{missing}: {checked:?}"
                    );
                    assert!(place.install().status.success());
                    if missing == "archipelago.conf" {
                        // What was made is known no more.
                        continue;
                    }
                    assert_eq!(place.everything(), once, "{missing}");
                } else {
                    assert!(place.uninstall().status.success());
                    if missing == "archipelago.conf" {
                        fs::remove_dir(place.provider().parent().unwrap()).unwrap();
                        fs::remove_dir(place.dir.path().join("ganeti")).unwrap();
                    }
                    assert_eq!(place.everything(), [], "{missing}");
                }
            }
        }
    }

    #[test]
    fn a_check_names_what_is_wrong() {
        let host = Host::stopped();
        let check = || {
            let mut check = program();
            check.arg("check").arg("--dir").arg(host.provider());
            run(check.arg("--log-dir").arg(host.path("log")))
        };
        let output = check();
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stdout);
        assert!(
            said.contains("problem: node of this host: no node daemon"),
            "{said}"
        );
        assert!(said.contains("is not a Ganeti state directory"), "{said}");
        host.archipelago(&["init"]);
        host.archipelago(&["node", "start"]);
        fs::create_dir(host.path("ganeti")).unwrap();
        fs::write(host.path("ganeti/ssconf_release_version"), "3.0.2\n").unwrap();
        let said = text(&check().stdout);
        assert!(said.contains("ok: node of this host\n"), "{said}");
        assert!(said.contains("ok: Ganeti 3.0\n"), "{said}");
        fs::remove_dir(host.path("log")).unwrap();
        assert!(text(&check().stdout).contains("problem: directory of Ganeti's logs"));
    }
}
