//! Exports by block status: a real node and the real command, in both placements.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::{Path, PathBuf};

    use nix::errno::Errno;
    use nix::unistd::{Whence, lseek};

    use crate::harness::{Node, PLACEMENTS};

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// A sparse file of `len` bytes with these parts.
    fn write(node: &Node, name: &str, parts: &[(u64, Vec<u8>)], len: u64) -> PathBuf {
        let path = node.root().join(name);
        let file = File::create(&path).unwrap();
        file.set_len(len).unwrap();
        for (offset, data) in parts {
            file.write_all_at(data, *offset).unwrap();
        }
        path
    }

    /// Numbers that differ from block to block; no block is zeros.
    fn pattern(seed: u8, len: usize) -> Vec<u8> {
        let numbers = (1..=251_u8).cycle().take(len);
        numbers.map(|number| number ^ (seed & 3) << 6 | 1).collect()
    }

    fn export(node: &Node, name: &str) -> PathBuf {
        let path = node.root().join("exported");
        // What was there before is gone.
        std::fs::write(&path, vec![7; 2 << 20]).unwrap();
        node.done(&["image", "export", name, path.to_str().unwrap()]);
        path
    }

    /// Where `file` has data, as its file system says.
    fn data(file: &File) -> Vec<(u64, u64)> {
        let seek = |from: u64, whence| lseek(file, i64::try_from(from).unwrap(), whence);
        let (mut found, mut at) = (Vec::new(), 0);
        loop {
            let start = match seek(at, Whence::SeekData) {
                Ok(start) => u64::try_from(start).unwrap(),
                Err(Errno::ENXIO) => return found,
                Err(errno) => panic!("{errno}"),
            };
            at = u64::try_from(seek(start, Whence::SeekHole).unwrap()).unwrap();
            found.push((start, at));
        }
    }

    /// Whether the two files have the same bytes, behind the shorter one zeros. Holes are not read.
    fn same(one: &Path, other: &Path) -> bool {
        let files = [one, other].map(|path| File::open(path).unwrap());
        let read = |file: &File, offset: u64, len: usize| {
            let mut bytes = vec![0; len];
            let mut filled = 0;
            while filled < len {
                match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(part) => filled += part,
                    Err(error) => panic!("{error}"),
                }
            }
            bytes
        };
        let mut extents = files.iter().flat_map(data);
        extents.all(|(start, end)| {
            let len = usize::try_from(end - start).unwrap();
            read(&files[0], start, len) == read(&files[1], start, len)
        })
    }

    #[test]
    fn of_fifty_gibibytes_only_the_data_is_read() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            let parts = [
                (4096, pattern(1, 512)),
                (20 * GIB - MIB, pattern(2, 3 << 20)),
                (50 * GIB - 4096, pattern(3, 4096)),
            ];
            let disk = write(&node, "disk", &parts, 50 * GIB);
            node.done(&["image", "import", disk.to_str().unwrap(), "i"]);
            let before = node.figures();
            let exported = export(&node, "i");
            let after = node.figures();
            assert!(same(&disk, &exported), "{placement}");
            let metadata = std::fs::metadata(&exported).unwrap();
            assert_eq!(metadata.len(), 50 * GIB);
            let stored = metadata.blocks() * 512;
            assert!(stored < 4 * MIB, "{stored} bytes are stored");
            let added = |name: &str| after[name] - before[name];
            // The data, and what opening the volume takes.
            let read = added("blocker-file read_bytes");
            let data = 3 * MIB + 2 * 4096;
            assert!(
                (data..data + MIB).contains(&read),
                "{placement}: {read} bytes"
            );
            let asked = added("mapper statuses");
            assert!(
                (1..=4).contains(&asked),
                "{placement}: {asked} status requests"
            );
        }
    }

    #[test]
    fn many_runs_and_a_hole_at_the_end_come_back_in_files_and_pipes() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            // More runs than two pages have, the gaps longer than what is read along; and short gaps.
            let mut parts: Vec<(u64, Vec<u8>)> = (0..600)
                .map(|index| (index * 80 * 1024, pattern(3, 4096)))
                .collect();
            parts.extend((0..40).map(|index| (50 * MIB + index * 8192, pattern(1, 4096))));
            let disk = write(&node, "disk", &parts, 64 * MIB + 512);
            node.done(&["image", "import", disk.to_str().unwrap(), "i"]);
            let exported = export(&node, "i");
            let expected = std::fs::read(&disk).unwrap();
            assert!(std::fs::read(exported).unwrap() == expected, "{placement}");
            let piped = node.output(&["image", "export", "i", "-"]);
            assert!(piped.stdout == expected, "{placement}");
        }
    }

    #[test]
    fn a_grown_clone_is_its_parent_and_a_hole_and_an_empty_volume_is_one() {
        let node = Node::start("fused");
        let disk = write(&node, "disk", &[(5 * MIB - 512, pattern(2, 512))], 5 * MIB);
        node.done(&["image", "import", disk.to_str().unwrap(), "i"]);
        node.done(&["volume", "clone", "i", "v", "--size", "60G"]);
        node.done(&["volume", "create", "empty", "--size", "2T"]);
        node.done(&["volume", "resize", "v", "61G"]);
        let before = node.figures();
        let exported = export(&node, "v");
        assert!(same(&disk, &exported));
        assert_eq!(std::fs::metadata(&exported).unwrap().len(), 61 * GIB);
        let exported = export(&node, "empty");
        let metadata = std::fs::metadata(&exported).unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (2048 * GIB, 0));
        let read = node.figures()["blocker-file read_bytes"] - before["blocker-file read_bytes"];
        assert!((4096..MIB).contains(&read), "{read} bytes");
    }
}
