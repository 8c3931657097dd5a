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
fn a_copy_of_a_client_that_never_reconnects_outlives_the_data_process() {
    if !has_clients() {
        return;
    }
    in_each_placement(&[("v", "256M")], &["v"], |node, server| {
        let content = noise(7, 256 * MIB);
        let source = file(node, "source", &content);
        let copy = slow_copy("64M", &source, &server.uri("v"));
        wait("a client", || log_of(node).contains("uses `v`"));
        wait("progress", || written(node) > 16);
        node.kill_endpoint();
        let output = ended(copy, "qemu-img convert", DEADLINE);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let log = log_of(node);
        assert!(
            log.contains("`v` is back") && !log.contains("cut off"),
            "{log}"
        );
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
