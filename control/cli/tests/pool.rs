//! Opening a pool's directory: full file systems, refused direct I/O, what others left in it, and odd masks.
//!
//! Needs root for mounts, and the tools of the file systems; says what it skips.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use archipelago_protocol::control::PoolAccess;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::Value;

    use crate::harness::{Node, run, skip, wait};

    /// Runs a tool of the system; `None` if there is none, or it may not.
    fn tool(name: &str, arguments: &[&str]) -> Option<String> {
        let output = Command::new(name).args(arguments).output().ok()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(said)
    }

    /// A file system of its own; unmounted when dropped.
    struct Mount {
        path: PathBuf,
        device: Option<String>,
    }

    impl Mount {
        /// Makes and mounts one of `kind` below `dir`; `None` with a printed reason if that cannot be done here.
        fn new(dir: &Path, kind: &str, options: &str) -> Option<Mount> {
            let mount = Mount::try_new(dir, kind, options);
            if mount.is_none() {
                skip(&format!("no {kind} can be made and mounted here"));
            }
            mount
        }

        fn try_new(dir: &Path, kind: &str, options: &str) -> Option<Mount> {
            let path = dir.join("mount");
            fs::create_dir(&path).unwrap();
            let at = path.to_str().unwrap();
            if kind == "tmpfs" {
                tool("mount", &["-t", kind, "-o", "size=16m", "none", at])?;
                return Some(Mount { path, device: None });
            }
            let image = dir.join("image");
            // The least that mkfs.xfs makes.
            File::create(&image).unwrap().set_len(320 << 20).unwrap();
            let image = image.to_str().unwrap();
            tool(&format!("mkfs.{kind}"), &["-q", image])?;
            let device = tool("losetup", &["--find", "--show", image])?;
            let mut mount = Mount {
                path: path.clone(),
                device: Some(device.clone()),
            };
            if tool("mount", &["-o", options, &device, at]).is_none() {
                // Nothing to unmount.
                mount.path = PathBuf::new();
                return None;
            }
            Some(mount)
        }

        /// Takes every block that there is.
        fn fill(&self) {
            // Made first: a full xfs makes no file.
            let sizes = [("fill-1", 1 << 20), ("fill-2", 4096), ("fill-3", 512)];
            let files = sizes.map(|(name, len)| {
                let file = File::create(self.path.join(name)).unwrap();
                (file, vec![7; len])
            });
            // Twice: what was set aside for writes on their way is free once they are done.
            for _ in 0..2 {
                for (file, bytes) in &files {
                    let mut file = file;
                    while file.write_all(bytes).is_ok() {}
                    let _full = file.sync_all();
                }
            }
            let free = nix::sys::statvfs::statvfs(&self.path).unwrap();
            assert!(free.blocks_available() < 8, "{}", free.blocks_available());
            let another = fs::write(self.path.join("another"), [7; 65536]);
            assert!(another.is_err(), "there is room left");
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            if !self.path.as_os_str().is_empty() {
                tool("umount", &["--lazy", self.path.to_str().unwrap()]);
            }
            if let Some(device) = &self.device {
                tool("losetup", &["--detach", device]);
            }
        }
    }

    fn process(node: &Node) -> i64 {
        node.status()["processes"][0]["pid"].as_i64().unwrap()
    }

    /// How the pool is accessed, as the status says.
    fn access(node: &Node) -> String {
        let access = &node.status()["pools"][0]["access"];
        let access: PoolAccess = serde_json::from_value(access.clone()).unwrap();
        let text = node.done(&["node", "status"]);
        assert!(text.contains(&format!("access: {access}")), "{text}");
        access.to_string()
    }

    fn path(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    /// Who owns the pool, as the status says: which incarnation.
    fn incarnation(node: &Node) -> u64 {
        let status = node.status();
        let text = status["pools"][0]["owner"].as_str().expect("an owner");
        let rest = text.strip_prefix("this node, incarnation ").expect(text);
        rest.split(',').next().unwrap().parse().expect(text)
    }

    /// With no byte left all that makes room, or needs none, works, also after a restart and after a kill.
    fn serves_while_full(kind: &str) {
        let dir = tempfile::tempdir().unwrap();
        let Some(mount) = Mount::new(dir.path(), kind, "rw") else {
            return;
        };
        let node = Node::new();
        let pool = mount.path.join("pool");
        node.done(&["init", "--pool-dir", path(&pool)]);
        node.done(&["node", "start"]);
        let content: Vec<u8> = (0..251_u8).cycle().take(3 << 20).collect();
        let source = dir.path().join("source");
        fs::write(&source, &content).unwrap();
        node.done(&["image", "import", path(&source), "image"]);
        node.done(&["volume", "create", "idle", "--size", "64M"]);
        node.done(&["volume", "create", "vm", "--size", "64M"]);
        node.done(&["volume", "clone", "image", "clone"]);
        node.done(&["volume", "attach", "vm"]);
        mount.fill();
        let mut owner = incarnation(&node);
        for life in ["stopped", "killed"] {
            match life {
                "stopped" => {
                    node.restart();
                }
                _ => {
                    let before = process(&node);
                    kill(
                        Pid::from_raw(i32::try_from(before).unwrap()),
                        Signal::SIGKILL,
                    )
                    .unwrap();
                    wait("the next life of the data process", || {
                        let status = node.output(&["--json", "node", "status"]);
                        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
                        let process = &status["processes"][0];
                        process["serving"] == true && process["pid"] != before
                    });
                }
            }
            // Its record needs no room either.
            owner += 1;
            assert_eq!(incarnation(&node), owner, "{kind}, {life}");
            let names = node.done(&["volume", "list"]);
            for name in ["image", "idle", "vm", "clone"] {
                assert!(names.contains(name), "{kind}, {life}: {names}");
            }
            let exported = dir.path().join("exported");
            node.done(&["image", "export", "image", path(&exported)]);
            assert!(fs::read(&exported).unwrap() == content, "{kind}, {life}");
            fs::remove_file(exported).unwrap();
            node.assert_clean();
        }
        node.done(&["volume", "remove", "idle"]);
        node.done(&["volume", "detach", "vm"]);
        node.done(&["volume", "remove", "vm"]);
        node.done(&["volume", "remove", "clone"]);
        node.done(&["volume", "remove", "image"]);
        node.done(&["node", "stop"]);
        node.assert_clean();
    }

    #[test]
    fn a_node_serves_from_an_ext4_without_a_free_block() {
        serves_while_full("ext4");
    }

    #[test]
    fn a_node_serves_from_an_xfs_without_a_free_block() {
        serves_while_full("xfs");
    }

    #[test]
    fn a_node_serves_from_a_tmpfs_without_a_free_page() {
        serves_while_full("tmpfs");
    }

    #[test]
    fn the_status_says_how_the_pool_is_accessed_and_why() {
        for (options, expected) in [
            ("rw", "direct, in units of "),
            (
                "data=journal",
                "page cache: the file system accepts O_DIRECT",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let Some(mount) = Mount::new(dir.path(), "ext4", options) else {
                return;
            };
            let node = Node::new();
            // A fresh mount point holds what mkfs has left, and is taken.
            assert!(mount.path.join("lost+found").is_dir());
            node.done(&["init", "--pool-dir", path(&mount.path)]);
            node.done(&["node", "start"]);
            let found = access(&node);
            assert!(found.starts_with(expected), "{options}: {found}");
            node.done(&["node", "stop"]);
            let config = node.path("archipelago.toml");
            let text = fs::read_to_string(&config).unwrap();
            assert!(text.contains("#direct = true"), "{text}");
            fs::write(&config, text.replace("#direct = true", "direct = false")).unwrap();
            node.done(&["node", "start"]);
            let expected = "page cache: `direct = false` in the configuration";
            assert_eq!(access(&node), expected);
            node.done(&["node", "stop"]);
        }
    }

    #[test]
    fn foreign_files_where_directories_belong_are_named_and_nothing_else_suffers() {
        let _dir = tempfile::tempdir().unwrap();
        let node = Node::new();
        node.done(&["init"]);
        node.done(&["node", "start"]);
        node.done(&["volume", "create", "vm", "--size", "64M"]);
        let pool = node.path("pool");
        let foreign = pool.join("ab").join(format!("ab{}", "7".repeat(30)));
        fs::create_dir_all(foreign.parent().unwrap()).unwrap();
        fs::write(&foreign, "somebody's").unwrap();
        for served in [true, false] {
            let report = node.json(&["doctor"]);
            assert_eq!(report["online"], served);
            assert_eq!(report["clean"], true, "{report}");
            let findings = report["findings"].as_array().unwrap();
            assert_eq!(findings.len(), 1, "{report}");
            assert_eq!(findings[0]["kind"], "foreign");
            let message = findings[0]["message"].as_str().unwrap();
            assert!(message.contains(path(&foreign)), "{message}");
            assert!(node.done(&["doctor"]).contains("note: "));
            if served {
                node.done(&["node", "stop"]);
            }
        }
        node.done(&["doctor", "--repair"]);
        node.done(&["node", "start"]);
        assert!(node.done(&["volume", "list"]).contains("vm"));
        assert_eq!(fs::read(&foreign).unwrap(), b"somebody's");
    }

    #[test]
    fn whatever_the_mask_of_whoever_starts_it_the_owner_can_use_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::new();
        let source = dir.path().join("source");
        fs::write(&source, [7; 65536]).unwrap();
        let exported = dir.path().join("exported");
        for arguments in [
            &["init"][..],
            &["node", "start"],
            &["image", "import", path(&source), "image"],
            &["volume", "create", "vm", "--size", "64M"],
            &["volume", "attach", "vm"],
            &["image", "export", "image", path(&exported)],
            &["node", "stop"],
        ] {
            let mut shell = Command::new("sh");
            shell.args(["-c", "umask 0777; exec \"$0\" \"$@\""]);
            shell.arg(env!("CARGO_BIN_EXE_archipelago")).args(arguments);
            shell.env("ARCHIPELAGO_ROOT", node.root());
            let output = run(&mut shell);
            let log = node.log();
            assert!(output.status.success(), "{arguments:?}: {output:?}\n{log}");
        }
        let mut folders = vec![node.root().to_owned()];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let found = entry.metadata().unwrap();
                let mode = found.permissions().mode() & 0o777;
                assert_eq!(mode & 0o600, 0o600, "{}: {mode:o}", entry.path().display());
                assert_eq!(mode & 0o077, 0, "{}: {mode:o}", entry.path().display());
                seen += 1;
                if found.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        assert!(seen > 10, "only {seen} files");
        let mut read = Vec::new();
        File::open(exported)
            .unwrap()
            .read_to_end(&mut read)
            .unwrap();
        assert_eq!(read, [7; 65536]);
    }
}
