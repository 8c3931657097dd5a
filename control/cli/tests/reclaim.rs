//! Space that comes back to the file system of a pool.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use crate::harness::clients::{has_clients, qemu_io};
    use crate::harness::{Node, PLACEMENTS, wait};

    const MIB: u64 = 1 << 20;
    /// Snapshots; each is followed by four MiB of writes.
    const SNAPSHOTS: u64 = 20;
    /// MiB of the volume that hold data.
    const DATA: u64 = 32;

    /// Bytes that the files under `directory` occupy.
    fn occupied(directory: &Path) -> u64 {
        let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
        let bytes = entries.map(|entry| {
            // A file may go while it is looked at.
            let Ok(metadata) = entry.metadata() else {
                return 0;
            };
            match metadata.is_dir() {
                true => occupied(&entry.path()),
                false => metadata.blocks() * 512,
            }
        });
        bytes.sum()
    }

    #[test]
    fn snapshots_of_a_busy_volume_leave_one_copy_of_it_when_they_are_removed() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            let pool = node.root().join("pool");
            node.done(&["volume", "create", "v", "--size", "1G"]);
            let socket = node.done(&["volume", "attach", "v", "--nbd"]);
            let export = format!("nbd+unix:///v?socket={}", socket.trim());
            let fill = format!("write -P 255 0 {DATA}M");
            qemu_io(&[], &[&fill, "flush"], &export);
            let one_copy = occupied(&pool);
            let mut expected = vec![255; usize::try_from(DATA).unwrap()];
            for number in 1..=SNAPSHOTS {
                node.done(&["volume", "snapshot", "v", &format!("s{number}")]);
                // Eight pieces of 512 KiB, elsewhere each time.
                let writes: Vec<String> = (0..8)
                    .map(|piece| (number * 5 + piece * 4) % DATA)
                    .map(|at| {
                        expected[usize::try_from(at).unwrap()] = number;
                        format!("write -P {number} {at}M 512k")
                    })
                    .collect();
                let mut commands: Vec<&str> = writes.iter().map(String::as_str).collect();
                commands.push("flush");
                qemu_io(&[], &commands, &export);
            }
            let full = occupied(&pool);
            assert!(full > one_copy + SNAPSHOTS * 4 * MIB, "{full}");
            for number in 1..=SNAPSHOTS {
                node.done(&["volume", "remove", &format!("s{number}")]);
            }
            // The map's pages stay.
            let left = one_copy + MIB;
            wait("the space of the snapshots", || occupied(&pool) <= left);
            let reads: Vec<String> = expected
                .iter()
                .enumerate()
                .map(|(at, byte)| format!("read -P {byte} {at}M 512k"))
                .collect();
            let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
            qemu_io(&[], &reads, &export);
            let figures = node.figures();
            assert!(
                figures["mapper reclaimed_bytes"] >= SNAPSHOTS * 4 * MIB,
                "{figures:?}"
            );
            node.assert_clean();
        }
    }

    #[test]
    fn a_volume_that_is_snapshotted_again_and_again_takes_one_copy() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            let pool = node.root().join("pool");
            node.done(&["volume", "create", "v", "--size", "1G"]);
            let socket = node.done(&["volume", "attach", "v", "--nbd"]);
            let export = format!("nbd+unix:///v?socket={}", socket.trim());
            let fill = format!("write -P 255 0 {DATA}M");
            qemu_io(&[], &[&fill, "flush"], &export);
            let one_copy = occupied(&pool);
            for round in 1..=10 {
                node.done(&["volume", "snapshot", "v", "s"]);
                let part = format!("write -P {round} 1M 2M");
                qemu_io(&[], &[&part, "flush"], &export);
                node.done(&["volume", "remove", "s"]);
                let left = one_copy + MIB;
                wait("the space of the snapshot", || occupied(&pool) <= left);
                // In place: without another copy.
                let all = format!("write -P {round} 0 {DATA}M");
                qemu_io(&[], &[&all, "flush"], &export);
                let now = occupied(&pool);
                assert!(now <= left, "{now} bytes in round {round}, {placement:?}");
            }
            let read = format!("read -P 10 0 {DATA}M");
            qemu_io(&[], &[&read], &export);
            node.assert_clean();
        }
    }
}
