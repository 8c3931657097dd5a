//! What volumes, snapshots and images take of a pool, beside what its files occupy.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use serde_json::Value;

    use crate::harness::clients::{has_clients, holder, qemu_io};
    use crate::harness::content::{file, noise};
    use crate::harness::{Node, PLACEMENTS, wait};

    const MIB: u64 = 1 << 20;

    /// Bytes that files occupy.
    #[derive(Debug, Default)]
    struct Occupied {
        /// Containers.
        data: u64,
        all: u64,
    }

    /// What the files under `directory` occupy, as `du` counts.
    fn occupied(directory: &Path) -> Occupied {
        let mut sum = Occupied::default();
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            // A file may go while it is looked at.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                let below = occupied(&entry.path());
                sum.data += below.data;
                sum.all += below.all;
            }
            let bytes = metadata.blocks() * 512;
            let name = entry.file_name();
            let is_data = name.to_str().unwrap().starts_with("data-");
            sum.data += if is_data { bytes } else { 0 };
            sum.all += bytes;
        }
        sum
    }

    #[track_caller]
    fn assert_within_a_percent(what: &str, found: u64, expected: u64) {
        let difference = found.abs_diff(expected);
        assert!(
            difference * 100 <= expected,
            "{what}: {found}, expected {expected}"
        );
    }

    /// Attached as an NBD export; its address.
    fn export(node: &Node, name: &str) -> String {
        let socket = node.done(&["volume", "attach", name, "--nbd"]);
        format!("nbd+unix:///{name}?socket={}", socket.trim())
    }

    /// Writes `count` pieces of 4 KiB to 256 KiB of noise, anywhere in the first 512 MiB, and flushes.
    fn scatter(noise_file: &str, seed: u64, count: usize, export: &str) {
        let commands: Vec<String> = noise(seed, count * 16)
            .chunks_exact(16)
            .map(|words| {
                let word = |at: usize| {
                    u64::from(u32::from_le_bytes(words[at..at + 4].try_into().unwrap()))
                };
                let len = 4096 << (word(12) % 7);
                let at = word(4) % (512 * MIB / len) * len;
                format!("write -s {noise_file} {at} {len}")
            })
            .collect();
        let mut commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        commands.push("flush");
        qemu_io(&[], &commands, export);
    }

    fn usage(node: &Node, name: &str) -> Value {
        let info = node.json(&["volume", "info", name]);
        let usage = &info["usage"];
        let [mapped, unique, shared] =
            ["mapped", "unique", "shared"].map(|figure| bytes(&usage[figure]));
        assert_eq!(unique + shared, mapped, "{info}");
        usage.clone()
    }

    #[track_caller]
    fn bytes(value: &Value) -> u64 {
        value
            .as_u64()
            .unwrap_or_else(|| panic!("no number: {value}"))
    }

    /// The sum of what is stored for `names`, compared with what the pool's files occupy.
    fn check_sum(node: &Node, names: &[&str]) {
        let sum: u64 = names
            .iter()
            .map(|name| bytes(&usage(node, name)["stored"]))
            .sum();
        let pool = node.json(&["pool", "info", "default"]);
        let on_disk = occupied(&node.root().join("pool"));
        assert_within_a_percent("data", sum, on_disk.data);
        let stored = &pool["stored"];
        assert_within_a_percent("data as the pool says", sum, bytes(&stored["data"]));
        let reserve = bytes(&pool["reserve"]["held"]);
        let all = sum + bytes(&stored["metadata"]) + reserve;
        assert_within_a_percent("everything", all, on_disk.all);
    }

    /// Pages that the mapper reads while it is asked about `name`.
    fn pages_read(node: &Node, name: &str) -> u64 {
        let count = || node.figures()["mapper pages_read"];
        let before = count();
        usage(node, name);
        count() - before
    }

    #[test]
    fn the_figures_add_up_to_what_the_files_of_the_pool_occupy() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            let noise_file = file(&node, "noise", &noise(1, 256 << 10));
            let image = file(&node, "image", &noise(2, 24 << 20));
            node.done(&["image", "import", &image, "image", "--format", "raw"]);
            node.done(&["volume", "create", "v", "--size", "1G"]);
            let v = export(&node, "v");
            scatter(&noise_file, 3, 400, &v);
            node.done(&["volume", "snapshot", "v", "a"]);
            scatter(&noise_file, 4, 200, &v);
            node.done(&["volume", "snapshot", "v", "b"]);
            scatter(&noise_file, 5, 200, &v);
            for (source, clone, seed) in [("image", "of-image", 6), ("a", "of-a", 7)] {
                node.done(&["volume", "clone", source, clone, "--size", "1G"]);
                scatter(&noise_file, seed, 100, &export(&node, clone));
            }
            node.done(&["volume", "snapshot", "of-a", "c"]);
            node.done(&["volume", "clone", "c", "of-c"]);
            scatter(&noise_file, 8, 100, &export(&node, "of-c"));
            scatter(&noise_file, 9, 100, &export(&node, "of-a"));

            let volumes = ["v", "image", "of-image", "of-a", "of-c"];
            check_sum(&node, &volumes);
            let open: Vec<Value> = volumes.iter().map(|name| usage(&node, name)).collect();
            for name in ["v", "of-image", "of-a", "of-c"] {
                node.done(&["volume", "detach", name]);
            }
            node.restart();
            let closed: Vec<Value> = volumes.iter().map(|name| usage(&node, name)).collect();
            assert_eq!(open, closed, "open and closed");
            check_sum(&node, &volumes);

            // Each map has one leaf. The newest one is read alone, each other one beside its neighbour.
            assert_eq!(pages_read(&node, "v"), 1 + 2 + 2);
            assert_eq!(pages_read(&node, "of-c"), 1 + 2);
            assert_eq!(pages_read(&node, "image"), 1);

            // What a removal frees is what was said. `a` has clones.
            let snapshots = &closed[0]["snapshots"];
            assert_eq!(
                [&snapshots[0]["name"], &snapshots[1]["name"]],
                ["a", "b"],
                "{snapshots}"
            );
            assert_eq!(bytes(&snapshots[0]["unique"]), 0);
            let said = bytes(&snapshots[1]["unique"]);
            assert_eq!(bytes(&usage(&node, "b")["unique"]), said);
            let pool = node.root().join("pool");
            let before = occupied(&pool).data;
            node.done(&["volume", "remove", "b"]);
            let freed = || before - occupied(&pool).data;
            wait("the space of the snapshot", || freed() * 100 >= said * 99);
            assert_within_a_percent("freed", freed(), said);
            check_sum(&node, &volumes);

            let text = node.done(&["volume", "info", "v"]);
            for line in [
                " of 1G provisioned",
                "given back by its removal",
                "SNAPSHOT",
            ] {
                assert!(text.contains(line), "{text}");
            }
            let text = node.done(&["pool", "info", "default"]);
            assert!(
                text.contains("provisioned  4G (4294967296 bytes)"),
                "{text}"
            );
            assert!(text.contains(" of metadata"), "{text}");
        }
    }

    #[test]
    fn a_volume_whose_session_has_not_ended_is_shown_without_figures() {
        if !has_clients() {
            return;
        }
        let node = Node::start("fused");
        node.done(&["volume", "create", "v", "--size", "1G"]);
        let v = export(&node, "v");
        // A client that has written has the volume open.
        let mut holder = holder(&v);
        let mut stdin = holder.stdin.take().unwrap();
        stdin.write_all(b"write -P 1 0 1M\nflush\n").unwrap();
        wait("the write of the client", || {
            usage_of_open(&node) == Some(MIB)
        });
        node.kill_endpoint();
        // The client ends with its connection, and nobody opens the volume again.
        drop(stdin);
        holder.wait().unwrap();
        // The data process that was killed has to be replaced first.
        wait("the reason why there are no figures", || {
            let info = node.json(&["volume", "info", "v"]);
            let why = info["usage_unknown"].as_str().unwrap_or_default();
            why.contains("the last session of its volume has not ended")
        });
        let info = node.json(&["volume", "info", "v"]);
        assert!(info.get("usage").is_none(), "{info}");
        let text = node.done(&["volume", "info", "v"]);
        assert!(text.contains("mapped       not known: "), "{text}");
        let v = export(&node, "v");
        qemu_io(&["-r"], &["read -P 1 0 1M"], &v);
        assert_eq!(usage_of_open(&node), Some(MIB));
    }

    fn usage_of_open(node: &Node) -> Option<u64> {
        node.json(&["volume", "info", "v"])["usage"]["mapped"].as_u64()
    }
}
