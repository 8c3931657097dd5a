//! A server that ends under load, and one whose data process dies.

use std::process::{Command, Stdio};

use crate::harness::clients::{DEADLINE, compare, has_clients, slow_copy, text};
use crate::harness::content::{file, noise};
use crate::harness::{Node, ended, wait};
use crate::server::{in_each_placement, is_free, log_of};

const MIB: usize = 1 << 20;

#[test]
fn a_signal_under_load_finishes_what_is_in_flight() {
    if !has_clients() {
        return;
    }
    in_each_placement(&[("v", "512M")], &["v"], |node, server| {
        let mut load = Command::new("qemu-img");
        load.args([
            "bench",
            "-w",
            "-f",
            "raw",
            "-d",
            "32",
            "-c",
            "100000000",
            &server.uri("v"),
        ]);
        let mut load = load
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait("load", || {
            let figures = node.figures().into_iter();
            figures
                .filter(|(name, _)| name.contains("write"))
                .any(|(_, count)| count > 1000)
        });
        server.end();
        let _failed = load.wait().unwrap();
        let log = log_of(node);
        assert!(!log.contains("ERROR") && !log.contains("cut off"), "{log}");
        is_free(node, "v");
    });
}

#[test]
fn clients_end_with_the_data_process_and_those_that_come_back_go_on() {
    if !has_clients() {
        return;
    }
    in_each_placement(&[("v", "256M")], &["v"], |node, server| {
        let content = noise(7, 256 * MIB);
        let source = file(node, "source", &content);
        let target = format!(
            r#"json:{{"driver":"raw","file":{{"driver":"nbd","server":{{"type":"inet","host":"127.0.0.1","port":"{}"}},"export":"v","reconnect-delay":60}}}}"#,
            server.port
        );
        let copy = slow_copy("64M", &source, &target);
        wait("a client", || log_of(node).contains("uses `v`"));
        wait("progress", || written(node) > 16);
        node.kill_endpoint();
        let output = ended(copy, "qemu-img convert", DEADLINE);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(log_of(node).contains("data process"), "{}", log_of(node));
        compare(&source, &server.uri("v"));
        server.end();
    });
}

/// Writes that the peers of the node count.
fn written(node: &Node) -> u64 {
    let figures = node.figures().into_iter();
    let writes = figures.filter(|(name, _)| name.ends_with(" writes"));
    writes.map(|(_, count)| count).sum()
}
