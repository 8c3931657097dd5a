//! NBD with the clients that people have, unmodified: `qemu-img`, `qemu-io`, libnbd's `nbdcopy` and `nbdinfo`, on a real node in both
//! placements.

#[cfg(test)]
mod clients;
#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::Value;

    use crate::clients::{DEADLINE, client, failing_client, file, has_clients, noise, text};
    use crate::harness::{Node, PLACEMENTS, ended, wait, wait_for};

    const MIB: usize = 1 << 20;

    /// Attaches a volume; its socket and its address.
    fn attach(node: &Node, name: &str) -> (String, String) {
        let socket = node.done(&["volume", "attach", name, "--nbd"]);
        let socket = socket.trim().to_owned();
        let uri = format!("nbd+unix:///{name}?socket={socket}");
        (socket, uri)
    }

    /// A connection that goes on when the server comes back.
    fn persistent(socket: &str) -> String {
        format!(
            r#"json:{{"driver":"raw","file":{{"driver":"nbd","server":{{"type":"unix","path":"{socket}"}},"reconnect-delay":60}}}}"#
        )
    }

    /// Kills the process that serves endpoints, and waits for its successor.
    fn kill_endpoint(node: &Node, round: u64) {
        let endpoint = |status: &Value| {
            let mut processes = status["processes"].as_array().unwrap().iter();
            let found = processes.find(|one| one["roles"].to_string().contains("endpoint"));
            found.unwrap_or_else(|| panic!("{status}")).clone()
        };
        let before = endpoint(&node.status());
        let pid = i32::try_from(before["pid"].as_i64().unwrap()).unwrap();
        assert!(pid > 1);
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        wait("a new process", || {
            let now = endpoint(&node.status());
            now["restarts"].as_u64() == Some(round) && now["serving"] == true
        });
    }

    #[test]
    fn reference_clients_copy_compare_and_map_both_ways() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            for name in ["v", "w"] {
                node.done(&["volume", "create", name, "--size", "64M"]);
            }
            let (socket, uri) = attach(&node, "v");
            assert_eq!(attach(&node, "v").0, socket, "the same again");
            node.refused_as(&["volume", "attach", "v", "--vhost-user"], 5, "in-use");
            let mut content = noise(1, 64 * MIB);
            content[8 * MIB..24 * MIB].fill(0);
            let source = file(&node, "source", &content);
            client(&[
                "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", &source, &uri,
            ]);
            client(&[
                "qemu-img", "compare", "-f", "raw", "-F", "raw", &source, &uri,
            ]);

            let copy = node.path("copy");
            client(&["nbdcopy", &uri, copy.to_str().unwrap()]);
            assert!(std::fs::read(&copy).unwrap() == content, "{placement}");
            let (_, other) = attach(&node, "w");
            client(&["nbdcopy", "--flush", &uri, &other]);
            client(&[
                "qemu-img",
                "convert",
                "-f",
                "raw",
                "-O",
                "raw",
                &other,
                copy.to_str().unwrap(),
            ]);
            assert!(std::fs::read(&copy).unwrap() == content, "{placement}");

            for mapped in [&uri, &other] {
                let map = client(&["nbdinfo", "--map", "--json", mapped]);
                let map: Value = serde_json::from_str(&map).unwrap();
                let extents = map.as_array().unwrap().iter();
                let extents: Vec<_> = extents
                    .map(|it| {
                        (
                            it["offset"].as_u64(),
                            it["length"].as_u64(),
                            it["type"].as_u64(),
                        )
                    })
                    .collect();
                let mib = |count: u64| Some(count << 20);
                let expected = [
                    (mib(0), mib(8), Some(0)),
                    (mib(8), mib(16), Some(3)),
                    (mib(24), mib(40), Some(0)),
                ];
                assert_eq!(extents, expected, "{placement}");
            }
            let map = client(&["qemu-img", "map", "--output=json", "-f", "raw", &uri]);
            let map: Value = serde_json::from_str(&map).unwrap();
            assert_eq!(map[1]["zero"], true, "{map}");
            assert_eq!(map[1]["length"].as_u64(), Some(16 << 20), "{map}");

            for arguments in [&["-w"][..], &["-w", "-d", "16", "-s", "64k"], &["-d", "32"]] {
                let mut bench = vec!["qemu-img", "bench", "-f", "raw", "-c", "2000"];
                bench.extend(arguments);
                bench.push(&other);
                client(&bench);
            }
        }
    }

    #[test]
    fn every_command_does_what_qemu_expects() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["volume", "create", "v", "--size", "256M"]);
            let (_, uri) = attach(&node, "v");
            let mut script = vec!["qemu-io", "-f", "raw", "-d", "unmap"];
            for command in [
                "write -P 7 1M 3M",
                "read -P 7 1M 3M",
                "write -f -P 9 512 512",
                "read -P 9 512 512",
                "read -P 0 0 512",
                "write -z 2M 1M",
                "read -P 0 2M 1M",
                "write -z -u 1M 512k",
                "read -P 0 1M 512k",
                "read -P 7 1536k 512k",
                "discard 3M 1M",
                "read -P 0 3M 1M",
                "write -P 5 100M 31M",
                "read -P 5 100M 31M",
                "flush",
            ] {
                script.extend(["-c", command]);
            }
            script.push(&uri);
            let said = client(&script);
            assert!(
                !said.contains("failed") && !said.contains("error"),
                "{said}"
            );

            node.done(&["volume", "snapshot", "v", "s"]);
            let (_, frozen) = attach(&node, "s");
            let info = client(&["nbdinfo", "--json", &frozen]);
            let info: Value = serde_json::from_str(&info).unwrap();
            let export = &info["exports"][0];
            for (flag, expected) in [
                ("is_read_only", true),
                ("can_multi_conn", true),
                ("can_flush", true),
                ("can_trim", false),
                ("can_zero", false),
            ] {
                assert_eq!(export[flag], expected, "{flag}: {info}");
            }
            assert_eq!(export["block_size_minimum"], 512, "{info}");
            assert_eq!(export["block_size_maximum"], 32 << 20, "{info}");
            client(&[
                "qemu-io",
                "-r",
                "-f",
                "raw",
                "-c",
                "read -P 5 100M 31M",
                &frozen,
            ]);
            let refused = failing_client(&["qemu-io", "-f", "raw", "-c", "write 0 4k", &frozen]);
            // EPERM of ours, or QEMU's own refusal to open it for writing.
            assert!(
                refused.contains("denied") || refused.contains("read-only"),
                "{refused}"
            );

            // A resize is seen by whoever connects after it.
            node.done(&["volume", "resize", "v", "512M"]);
            assert_eq!(
                client(&["nbdinfo", "--size", &uri]).trim(),
                (512 << 20).to_string()
            );
            let listed = node.done(&["volume", "attachments"]);
            assert!(
                listed.contains("read-write") && listed.contains("read-only"),
                "{listed}"
            );
            let listed = node.json(&["volume", "attachments", "s"]);
            assert_eq!(
                listed["attachments"].as_array().unwrap().len(),
                1,
                "{listed}"
            );
            assert_eq!(listed["attachments"][0]["kind"], "nbd", "{listed}");
        }
    }

    #[test]
    fn a_volume_in_use_is_not_detached_and_is_served_again_after_a_restart() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["volume", "create", "v", "--size", "64M"]);
            let (socket, uri) = attach(&node, "v");
            let mut holder = Command::new("qemu-io");
            holder.args(["-f", "raw", &uri]).stdin(Stdio::piped());
            let mut holder = holder.stdout(Stdio::null()).spawn().unwrap();
            wait("a client", || {
                node.status().to_string().contains("\"connected\",1")
            });
            let refused = node.refused_as(&["volume", "detach", "v"], 5, "in-use");
            assert!(refused.to_string().contains("NBD client"), "{refused}");
            drop(holder.stdin.take());
            assert!(ended(holder, "qemu-io", DEADLINE).status.success());
            client(&["qemu-io", "-f", "raw", "-c", "write -P 3 0 1M", &uri]);
            node.done(&["node", "stop"]);
            assert!(!Path::new(&socket).exists());
            node.done(&["node", "start"]);
            wait("the socket", || PathBuf::from(&socket).exists());
            client(&["qemu-io", "-f", "raw", "-c", "read -P 3 0 1M", &uri]);
            wait_for("the end of the connection", || {
                let output = node.output(&["volume", "detach", "v"]);
                output.status.success().then_some(())
            });
            assert!(!Path::new(&socket).exists());
        }
    }

    #[test]
    fn a_client_goes_on_when_the_process_that_serves_it_is_killed() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["volume", "create", "v", "--size", "512M"]);
            let (socket, uri) = attach(&node, "v");
            let content = noise(7, 512 * MIB);
            let source = file(&node, "source", &content);
            let target = persistent(&socket);
            let mut copy = Command::new("qemu-img");
            // Slow enough for the kills to come in the midst of it.
            copy.args([
                "convert", "-n", "-f", "raw", "-O", "raw", "-r", "128M", &source, &target,
            ]);
            copy.stdout(Stdio::piped()).stderr(Stdio::piped());
            let copy = copy.spawn().unwrap();
            for round in 1..=2 {
                let before = written(&node);
                wait("progress", || written(&node) > before);
                kill_endpoint(&node, round);
            }
            let output = ended(copy, "qemu-img convert", DEADLINE);
            assert!(output.status.success(), "{}", text(&output.stderr));
            client(&[
                "qemu-img", "compare", "-f", "raw", "-F", "raw", &source, &uri,
            ]);
        }
    }

    /// Bytes that NBD clients have written, as the process that serves them counts.
    fn written(node: &Node) -> u64 {
        let figures = node.figures().into_iter();
        let of_exports = figures
            .filter(|(name, _)| name.starts_with("nbd:") && name.ends_with(" written_bytes"));
        of_exports.map(|(_, bytes)| bytes).sum()
    }
}
