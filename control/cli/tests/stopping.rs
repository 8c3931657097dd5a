//! What `node stop` leaves behind: nothing. Also when somebody has removed the run directory under the daemon.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use crate::harness::{Node, PLACEMENTS, may_mount, tool, wait};

    /// Stops and unmounts of each placement.
    const ROUNDS: usize = 4;
    /// A node whose pool may be on a file system of its own.
    struct Disk {
        node: Node,
    }

    impl Disk {
        fn mount_point(&self) -> PathBuf {
            self.node.root().join("disk")
        }

        /// Makes an ext4 file system in a file and mounts it by a loop device.
        fn make_disk(&mut self) {
            let file = self.node.root().join("disk.img");
            let image = std::fs::File::create(&file).unwrap();
            image.set_len(256 << 20).unwrap();
            tool(Command::new("mkfs.ext4").arg("-q").arg(&file));
            std::fs::create_dir(self.mount_point()).unwrap();
            self.mount();
        }

        fn mount(&mut self) {
            let (file, at) = (self.node.root().join("disk.img"), self.mount_point());
            tool(Command::new("mount").args(["-o", "loop"]).arg(file).arg(at));
            let at = self.mount_point();
            self.node.mounted(&at);
        }
    }

    /// Starts the node; its daemon.
    fn start(node: &Node) -> i32 {
        let started = node.json(&["node", "start"]);
        i32::try_from(started["pid"].as_i64().unwrap()).unwrap()
    }

    fn runs(pid: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| !status.contains("State:\tZ"))
    }

    #[test]
    fn the_pool_can_be_unmounted_as_soon_as_the_node_has_stopped() {
        if !may_mount() {
            return;
        }
        for placement in PLACEMENTS {
            let mut disk = Disk { node: Node::new() };
            disk.make_disk();
            let pool = disk.mount_point().join("pool");
            disk.node.done(&[
                "init",
                "--placement",
                placement,
                "--pool-dir",
                pool.to_str().unwrap(),
            ]);
            let source = disk.node.root().join("source");
            let file = std::fs::File::create(&source).unwrap();
            for megabyte in 0..64_u64 {
                file.write_all_at(&[7; 1 << 16], megabyte << 20).unwrap();
            }
            let source = source.to_str().unwrap();
            for round in 0..ROUNDS {
                start(&disk.node);
                // Something is under way when the node stops, and memory is dirty.
                let mut import = disk
                    .node
                    .command(&["image", "import", source, &format!("i{round}")])
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                if round % 2 == 0 {
                    import.wait().unwrap();
                }
                disk.node.done(&["node", "stop"]);
                let unmounted = Command::new("umount")
                    .arg(disk.mount_point())
                    .output()
                    .unwrap();
                assert!(
                    unmounted.status.success(),
                    "{placement}, {round}: {unmounted:?}"
                );
                // One that was under way waits for the node, for two minutes.
                import.kill().unwrap();
                import.wait().unwrap();
                disk.mount();
            }
        }
    }

    #[test]
    fn a_node_whose_run_directory_was_removed_is_found_and_stopped() {
        for placement in PLACEMENTS {
            let node = Node::new();
            node.done(&["init", "--placement", placement]);
            let daemon = start(&node);
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
            start(&node);
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
        let node = Node::new();
        node.done(&["init"]);
        let daemon = start(&node);
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
