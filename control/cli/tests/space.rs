//! What a pool says about its file system: the room in it, the level that is reached, and who has it open.
//!
//! Needs root for mounts; says what it skips.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::path::{Path, PathBuf};

    use nix::sys::statvfs::statvfs;
    use serde_json::Value;

    use crate::harness::{Node, may_mount};

    const MIB: u64 = 1 << 20;

    /// A node whose pool is a tmpfs of `size`, and where that is.
    fn node_on_tmpfs(size: &str) -> (Node, PathBuf) {
        let mut node = Node::new();
        let mount = node.mount_tmpfs("mount", size);
        node.done(&["init", "--pool-dir", mount.join("pool").to_str().unwrap()]);
        node.done(&["node", "start"]);
        (node, mount)
    }

    /// Takes so much that `left` bytes are free.
    fn leave(mount: &Path, left: u64) {
        // In one step from the old length to the new one: the node looks at any time, and shall see no other level in between.
        let mut ballast = File::options();
        ballast.append(true).create(true);
        let mut ballast = ballast.open(mount.join("ballast")).unwrap();
        let found = statvfs(mount).unwrap();
        let free = found.blocks_available() * found.fragment_size();
        if let Some(more) = free.checked_sub(left) {
            let more = usize::try_from(more).unwrap();
            ballast.write_all(&vec![1; more]).unwrap();
        } else {
            let len = ballast.metadata().unwrap().len();
            ballast.set_len(len - (left - free)).unwrap();
        }
    }

    fn pool(node: &Node) -> Value {
        node.status()["pools"][0].clone()
    }

    /// Lines of the log that are about the room in the pool.
    fn lines(node: &Node) -> Vec<String> {
        let log = node.log();
        let about = |line: &&str| line.contains("bytes are free");
        log.lines().filter(about).map(str::to_owned).collect()
    }

    #[test]
    fn each_level_is_shown_and_logged_once_when_it_is_reached_and_when_it_is_left() {
        if !may_mount() {
            return;
        }
        let (node, mount) = node_on_tmpfs("100m");
        let directory = mount.join("pool").display().to_string();
        // Bytes left, the level by then, and lines of the log so far.
        for (left, level, logged) in [
            (50 * MIB, "ok", 0),
            (20 * MIB, "80", 1),
            (21 * MIB, "80", 1),
            (20 * MIB, "80", 1),
            (9 * MIB, "90", 2),
            (4 * MIB, "95", 3),
            (0, "full", 4),
            (MIB / 2, "full", 4),
            (50 * MIB, "ok", 5),
        ] {
            leave(&mount, left);
            // Twice: what has been said is not said again.
            for _ in 0..2 {
                let pool = pool(&node);
                assert_eq!(pool["space"]["level"], level, "{left} left: {pool}");
                assert_eq!(pool["space"]["free"], left, "{pool}");
            }
            let lines = lines(&node);
            assert_eq!(lines.len(), logged, "{left} left: {lines:#?}");
            let problem = &node.status()["problems"][0];
            let text = node.done(&["node", "status"]);
            if level == "ok" {
                assert!(problem.is_null(), "{problem}");
                continue;
            }
            assert_eq!(problem["pool"], "default");
            let what = problem["what"].as_str().unwrap();
            for part in [directory.as_str(), "bytes are free", "grow the file system"] {
                assert!(what.contains(part), "{what}");
            }
            assert!(text.contains(what), "{text}");
        }
        for line in &lines(&node)[..4] {
            for part in ["`default`", directory.as_str(), "free space there or grow"] {
                assert!(line.contains(part), "{line}");
            }
        }
    }

    #[test]
    fn a_file_system_without_inodes_is_full() {
        if !may_mount() {
            return;
        }
        let (node, mount) = node_on_tmpfs("64m,nr_inodes=400");
        assert_eq!(pool(&node)["space"]["level"], "ok");
        let total = pool(&node)["space"]["inodes"]["total"].as_u64();
        assert_eq!(total, Some(400));
        let mut made = 0;
        while fs::write(mount.join(format!("{made}")), "").is_ok() {
            made += 1;
        }
        let pool = pool(&node);
        assert_eq!(pool["space"]["level"], "full", "{pool}");
        assert_eq!(pool["space"]["inodes"]["free"], 0);
        let what = node.status()["problems"][0]["what"].clone();
        assert!(what.as_str().unwrap().contains("0 of 400 inodes"), "{what}");
    }

    #[test]
    fn pool_list_and_info_say_what_the_status_says() {
        let node = Node::new();
        node.done(&["init"]);
        node.done(&["node", "start"]);
        let told = pool(&node);
        let process = node.status()["processes"][0]["pid"].clone();
        assert_eq!(told["lock"]["pid"], process);
        assert_eq!(told["lock"]["ours"], true);
        assert!(
            told["owner"]
                .as_str()
                .is_some_and(|owner| owner.starts_with("this node"))
        );
        assert!(told["access"]["kind"].is_string(), "{told}");
        let listed = node.json(&["pool", "list"])["pools"][0].clone();
        let info = node.json(&["pool", "info", "default"]);
        for other in [listed, info] {
            for key in ["name", "kind", "directory", "access", "lock"] {
                assert_eq!(other[key], told[key], "{key}");
            }
            for key in ["total", "level"] {
                assert_eq!(other["space"][key], told["space"][key], "{key}");
            }
            assert_eq!(other["free"], other["space"]["free"]);
            assert_eq!(other["total"], told["space"]["total"]);
        }
        let text = node.done(&["pool", "info", "default"]);
        let status = node.done(&["node", "status"]);
        for part in ["access", "free", "used", "lock", "owner"] {
            assert!(text.contains(part), "{text}");
            assert!(status.contains(&format!("{part}: ")), "{status}");
        }
        let held = format!("held by process {process} of this node");
        assert!(text.contains(&held) && status.contains(&held), "{text}");
    }
}
