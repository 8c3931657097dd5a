//! `volume diff`: a copy of a snapshot, with what differs copied, is the volume.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use crate::harness::clients::{has_clients, qemu_io};
    use crate::harness::{Node, PLACEMENTS};

    const MIB: u64 = 1 << 20;

    /// Offset, length, and whether they read as zeros now.
    fn ranges(diff: &Value) -> Vec<(u64, u64, bool)> {
        let ranges = diff["ranges"].as_array().unwrap().iter();
        let number = |value: &Value| value.as_u64().unwrap();
        ranges
            .map(|range| {
                let zero = range["zero"].as_bool().unwrap();
                (number(&range["offset"]), number(&range["len"]), zero)
            })
            .collect()
    }

    fn index(offset: u64) -> usize {
        usize::try_from(offset).unwrap()
    }

    /// The content of a snapshot.
    fn content(node: &Node, name: &str) -> Vec<u8> {
        let path = node.path(&format!("{name}.raw"));
        node.done(&["image", "export", name, path.to_str().unwrap()]);
        fs::read(path).unwrap()
    }

    #[test]
    fn a_copy_of_a_snapshot_becomes_the_next_one_by_what_differs() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["volume", "create", "v", "--size", "64M"]);
            let socket = node.done(&["volume", "attach", "v", "--nbd"]);
            let export = format!("nbd+unix:///v?socket={}", socket.trim());
            let first = ["write -P 1 0 8M", "write -P 2 20M 4M", "flush"];
            qemu_io(&[], &first, &export);
            node.done(&["volume", "snapshot", "v", "a"]);
            // More scattered blocks than ranges that a page has.
            let scattered: Vec<String> = (0..4500)
                .map(|number| format!("write -q -P 3 {} 4k", 24 * MIB + number * 8192))
                .collect();
            let mut commands = vec!["write -P 4 1M 64k", "discard 21M 1M"];
            commands.extend(scattered.iter().map(String::as_str));
            commands.push("flush");
            for part in commands.chunks(1000) {
                qemu_io(&["-d", "unmap"], part, &export);
            }
            // Open: what the guest has written last counts, too.
            let open = node.json(&["volume", "diff", "--from", "a", "v"]);
            node.done(&["volume", "snapshot", "v", "b"]);
            let diff = node.json(&["volume", "diff", "--from", "a", "b"]);
            assert_eq!(open, diff, "open and frozen");
            let found = ranges(&diff);
            assert_eq!(found.len(), 2 + 4500, "{:?}", &found[..4]);
            assert_eq!(found[0], (MIB, 64 << 10, false));
            assert_eq!(found[1], (21 * MIB, MIB, true));

            let (mut copy, new) = (content(&node, "a"), content(&node, "b"));
            assert!(copy != new);
            for (offset, len, zero) in found {
                let range = index(offset)..index(offset + len);
                assert!(!zero || new[range.clone()].iter().all(|byte| *byte == 0));
                copy[range.clone()].copy_from_slice(&new[range]);
            }
            assert!(copy == new, "something differs that is not listed");

            let all = ranges(&node.json(&["volume", "diff", "a"]));
            assert_eq!(all, [(0, 8 * MIB, false), (20 * MIB, 4 * MIB, false)]);
            let table = node.done(&["volume", "diff", "a"]);
            let lines: Vec<Vec<&str>> = table
                .lines()
                .map(|line| line.split_whitespace().collect())
                .collect();
            assert_eq!(lines[0], ["OFFSET", "LENGTH", "NOW"]);
            assert_eq!(lines[1], ["0", "8388608", "data"]);
            assert_eq!(node.done(&["volume", "diff", "--from", "a", "a"]), "");
            let refused = node.refused_as(&["volume", "diff", "--from", "v", "a"], 2, "invalid");
            let why = refused["message"].as_str().unwrap();
            assert!(why.contains("neither a snapshot nor an image"), "{why}");
            node.refused_as(
                &["volume", "diff", "--from", "nothing", "v"],
                3,
                "not-found",
            );
        }
    }
}
