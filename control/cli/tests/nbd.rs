//! NBD with the clients that people have, unmodified: `qemu-img`, `qemu-io`, libnbd's `nbdcopy` and `nbdinfo`, on a real node in both
//! placements.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use crate::harness::clients::{
        DEADLINE, bench, client, compare, content_with_a_hole, convert, do_every_command,
        has_clients, has_the_hole, holder, is_read_only, qemu_io, slow_copy, text,
    };
    use crate::harness::content::{file, noise};
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
        node.kill_endpoint();
        wait("a new process", || {
            let now = node.endpoint();
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
            let content = content_with_a_hole();
            let source = file(&node, "source", &content);
            convert(&source, &uri);
            compare(&source, &uri);

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

            has_the_hole(&uri);
            has_the_hole(&other);
            bench(&other);
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
            do_every_command(&uri);

            node.done(&["volume", "snapshot", "v", "s"]);
            let (_, frozen) = attach(&node, "s");
            let info = is_read_only(&frozen);
            let export = &info["exports"][0];
            assert_eq!(export["block_size_minimum"], 512, "{info}");
            assert_eq!(export["block_size_maximum"], 32 << 20, "{info}");

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
            let mut holder = holder(&uri);
            wait("a client", || {
                node.status().to_string().contains("\"connected\",1")
            });
            let refused = node.refused_as(&["volume", "detach", "v"], 5, "in-use");
            assert!(refused.to_string().contains("NBD client"), "{refused}");
            drop(holder.stdin.take());
            assert!(ended(holder, "qemu-io", DEADLINE).status.success());
            qemu_io(&[], &["write -P 3 0 1M"], &uri);
            node.done(&["node", "stop"]);
            assert!(!Path::new(&socket).exists());
            node.done(&["node", "start"]);
            wait("the socket", || PathBuf::from(&socket).exists());
            qemu_io(&[], &["read -P 3 0 1M"], &uri);
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
            let copy = slow_copy("128M", &source, &persistent(&socket));
            for round in 1..=2 {
                let before = written(&node);
                wait("progress", || written(&node) > before);
                kill_endpoint(&node, round);
            }
            let output = ended(copy, "qemu-img convert", DEADLINE);
            assert!(output.status.success(), "{}", text(&output.stderr));
            compare(&source, &uri);
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
