//! What commands say when something is in their way: a full pool, a source that changes, a log without room.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Stdio;

    use nix::poll::{PollTimeout, poll};

    use crate::harness::{Node, may_mount};

    /// How long the import may take until it has opened its source, in looks of a millisecond.
    const LOOKS: usize = 60_000;
    const LOOK_MS: u16 = 1;

    /// Takes the last byte of a file system.
    fn fill(directory: &Path) {
        let mut file = std::fs::File::create(directory.join("filler")).unwrap();
        for len in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; len]).is_ok() {}
        }
    }

    #[test]
    fn a_full_pool_is_said_in_words_by_every_command() {
        if !may_mount() {
            return;
        }
        let mut node = Node::new();
        let disk = node.mount_tmpfs("disk", "64M");
        let pool = disk.join("pool");
        node.done(&["init", "--pool-dir", pool.to_str().unwrap()]);
        node.done(&["node", "start"]);
        let source = node.root().join("source");
        std::fs::write(&source, vec![5; 8 << 20]).unwrap();
        let source = source.to_str().unwrap();
        node.done(&["image", "import", source, "image"]);
        node.done(&["volume", "create", "v", "--size", "1G"]);
        fill(&disk);
        // Small records still fit into what is allocated already: what does not fit is refused in words.
        let mut said = Vec::new();
        for arguments in [
            &["volume", "create", "n", "--size", "1G"][..],
            &["volume", "snapshot", "v", "s"],
            &["volume", "clone", "image", "c"],
            &["volume", "resize", "v", "2G"],
            &["image", "import", source, "other"],
        ] {
            let output = node.output(arguments);
            if !output.status.success() {
                assert_eq!(output.status.code(), Some(6), "{output:?}");
                said.push(String::from_utf8(output.stderr).unwrap());
            }
        }
        assert!(!said.is_empty(), "an import needs room");
        for text in &said {
            assert!(
                text.contains("file system") && text.contains("is full"),
                "{text}"
            );
            assert!(text.contains("hint: free "), "{text}");
            assert!(
                text.contains("`other`") || text.contains("`default`"),
                "{text}"
            );
            for internal in ["NoSpace", "token", "head of", "lineage"] {
                assert!(!text.contains(internal), "{internal}: {text}");
            }
        }
        node.done(&["node", "status"]);
    }

    type Change = fn(&std::fs::File);

    /// Whether process `pid` has taken the length of `path`.
    fn has_opened(pid: u32, path: &Path) -> bool {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            return false;
        };
        let mut ours = entries
            .flatten()
            .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|leads| leads == path));
        ours.any(|entry| {
            let number = entry.file_name().into_string().unwrap();
            let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
            info.is_ok_and(|info| !info.starts_with("pos:\t0\n"))
        })
    }

    #[test]
    fn a_source_that_changes_is_refused_and_nothing_is_kept() {
        let node = Node::new();
        node.done(&["init"]);
        node.done(&["node", "start"]);
        let path = node.root().join("disk");
        for (what, change) in [
            (
                "grew from",
                (|file| file.set_len(300 << 20).unwrap()) as Change,
            ),
            ("shrank from", |file| file.set_len(4096).unwrap()),
            ("was written to", |file| {
                file.write_all_at(&[8; 4096], 0).unwrap();
            }),
        ] {
            let file = std::fs::File::create(&path).unwrap();
            for megabyte in 0..256_u64 {
                file.write_all_at(&[7; 1 << 20], megabyte << 20).unwrap();
            }
            let import = node
                .command(&["image", "import", path.to_str().unwrap(), "i"])
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let looks = (0..LOOKS).find(|_| {
                poll(&mut [], PollTimeout::from(LOOK_MS)).unwrap();
                has_opened(import.id(), &path)
            });
            assert!(looks.is_some(), "waited for the import to open its source");
            change(&file);
            let output = import.wait_with_output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(5), "{said}");
            assert!(said.contains(what), "{said}");
            let left = node.refused(&["volume", "info", "i"], 3);
            assert!(left.contains('i'), "{left}");
        }
        node.done(&["image", "import", path.to_str().unwrap(), "i"]);
    }
}
