//! What `node stop` leaves behind: nothing. Also when somebody has removed the run directory under the daemon.

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output, Stdio};

    use nix::poll::{PollTimeout, poll};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{Pid, geteuid};
    use serde_json::Value;

    const PLACEMENTS: [&str; 2] = ["fused", "split"];
    /// Stops and unmounts of each placement.
    const ROUNDS: usize = 4;
    /// How often something that is waited for is looked at, and how long in between: 60 s in all.
    const LOOKS: usize = 6000;
    const LOOK_MS: u16 = 10;

    /// A node whose pool may be on a file system of its own. What is left of both is ended when the test ends.
    struct Node {
        dir: tempfile::TempDir,
        mounted: bool,
        /// Daemons that were started: ended by number when the test fails.
        daemons: Vec<i32>,
    }

    impl Node {
        fn new() -> Node {
            Node {
                dir: tempfile::tempdir().unwrap(),
                mounted: false,
                daemons: Vec::new(),
            }
        }

        fn root(&self) -> &Path {
            self.dir.path()
        }

        fn mount_point(&self) -> PathBuf {
            self.root().join("disk")
        }

        /// Makes an ext4 file system in a file and mounts it by a loop device.
        fn make_disk(&mut self) {
            let file = self.root().join("disk.img");
            let image = std::fs::File::create(&file).unwrap();
            image.set_len(256 << 20).unwrap();
            tool(Command::new("mkfs.ext4").arg("-q").arg(&file));
            std::fs::create_dir(self.mount_point()).unwrap();
            self.mount();
        }

        fn mount(&mut self) {
            let (file, at) = (self.root().join("disk.img"), self.mount_point());
            tool(Command::new("mount").args(["-o", "loop"]).arg(file).arg(at));
            self.mounted = true;
        }

        fn command(&self, arguments: &[&str]) -> Command {
            let mut command = Command::new(env!("CARGO_BIN_EXE_archipelago"));
            command.args(arguments).env("ARCHIPELAGO_ROOT", self.root());
            command
        }

        fn output(&self, arguments: &[&str]) -> Output {
            self.command(arguments).output().unwrap()
        }

        fn done(&self, arguments: &[&str]) -> String {
            let output = self.output(arguments);
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        }

        /// Expects exit code `code`; what was said to people.
        fn refused(&self, arguments: &[&str], code: i32) -> String {
            let output = self.output(arguments);
            assert_eq!(
                output.status.code(),
                Some(code),
                "{arguments:?}: {output:?}"
            );
            String::from_utf8(output.stderr).unwrap()
        }

        fn start(&mut self) -> i32 {
            let started: Value =
                serde_json::from_str(&self.done(&["--json", "node", "start"])).unwrap();
            let pid = i32::try_from(started["pid"].as_i64().unwrap()).unwrap();
            self.daemons.push(pid);
            pid
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _stopped = self.output(&["node", "stop"]);
            for pid in &self.daemons {
                let daemon = std::fs::read(format!("/proc/{pid}/comm"));
                if daemon.is_ok_and(|name| name.starts_with(b"archipelagod")) {
                    // Its children die with it.
                    let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
            }
            if self.mounted {
                let at = self.mount_point();
                let _gone = Command::new("umount").arg("-l").arg(at).status();
            }
        }
    }

    fn tool(command: &mut Command) {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    }

    fn wait(what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..LOOKS {
            if condition() {
                return;
            }
            poll(&mut [], PollTimeout::from(LOOK_MS)).unwrap();
        }
        panic!("waited for {what}");
    }

    fn runs(pid: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| !status.contains("State:\tZ"))
    }

    #[test]
    fn the_pool_can_be_unmounted_as_soon_as_the_node_has_stopped() {
        if !geteuid().is_root() {
            println!("skipped: mounting needs root");
            return;
        }
        for placement in PLACEMENTS {
            let mut node = Node::new();
            node.make_disk();
            let pool = node.mount_point().join("pool");
            node.done(&[
                "init",
                "--placement",
                placement,
                "--pool-dir",
                pool.to_str().unwrap(),
            ]);
            let source = node.root().join("source");
            let file = std::fs::File::create(&source).unwrap();
            for megabyte in 0..64_u64 {
                file.write_all_at(&[7; 1 << 16], megabyte << 20).unwrap();
            }
            let source = source.to_str().unwrap();
            for round in 0..ROUNDS {
                node.start();
                // Something is under way when the node stops, and memory is dirty.
                let mut import = node
                    .command(&["image", "import", source, &format!("i{round}")])
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                if round % 2 == 0 {
                    import.wait().unwrap();
                }
                node.done(&["node", "stop"]);
                let unmounted = Command::new("umount")
                    .arg(node.mount_point())
                    .output()
                    .unwrap();
                assert!(
                    unmounted.status.success(),
                    "{placement}, {round}: {unmounted:?}"
                );
                import.wait().unwrap();
                node.mount();
            }
        }
    }

    #[test]
    fn a_node_whose_run_directory_was_removed_is_found_and_stopped() {
        for placement in PLACEMENTS {
            let mut node = Node::new();
            node.done(&["init", "--placement", placement]);
            let daemon = node.start();
            node.done(&["volume", "create", "v", "--size", "1G"]);
            node.done(&["volume", "attach", "v"]);
            std::fs::remove_dir_all(node.root().join("run")).unwrap();
            for asked in [&["node", "status"][..], &["volume", "list"]] {
                let said = node.refused(asked, 1);
                assert!(said.contains(&format!("process {daemon} ")), "{said}");
                assert!(said.contains("node stop"), "{said}");
            }
            let said = node.refused(&["node", "start"], 5);
            assert!(said.contains(&format!("process {daemon} ")), "{said}");
            assert!(runs(daemon));
            let stopped = node.output(&["node", "stop"]);
            let said = String::from_utf8(stopped.stderr).unwrap();
            assert!(stopped.status.success(), "{placement}: {said}");
            assert!(said.contains(&format!("process {daemon}")), "{said}");
            wait("the daemon's end", || !runs(daemon));
            // A clean stop: what is started next finds everything.
            node.start();
            let list = node.done(&["volume", "list"]);
            assert!(
                list.contains('v') && list.contains("yes"),
                "{placement}: {list}"
            );
            let log = std::fs::read_to_string(node.root().join("run/archipelagod.log")).unwrap();
            assert!(!log.contains("killed"), "{log}");
        }
    }

    #[test]
    fn the_node_of_another_root_is_named_and_left_alone() {
        let mut node = Node::new();
        node.done(&["init"]);
        let daemon = node.start();
        let other = Node::new();
        let pool = node.root().join("pool");
        other.done(&["init", "--pool-dir", pool.to_str().unwrap()]);
        let said = other.refused(&["node", "start"], 5);
        assert!(said.contains(&format!("process {daemon} ")), "{said}");
        assert!(said.contains("another node"), "{said}");
        other.done(&["node", "stop"]);
        assert!(runs(daemon));
        node.done(&["volume", "list"]);
    }
}
