//! Volumes that others use, and names that change.

use std::io::{Read, Write};

use crate::harness::clients::{DEADLINE, client, failing_client, has_clients, holder, qemu_io};
use crate::harness::{ended, wait};
use crate::server::{Server, in_each_placement, is_free, log_of, node_with};
use crate::wire::{negotiated, read_request};

#[test]
fn a_volume_in_use_elsewhere_is_refused_with_words_and_is_free_behind_the_last_client() {
    if !has_clients() {
        return;
    }
    let node = node_with("fused", &[("v", "64M")]);
    let server = Server::start(&node, &[]);
    let socket = node.done(&["volume", "attach", "v", "--nbd"]);
    let elsewhere = format!("nbd+unix:///v?socket={}", socket.trim());
    let mut elsewhere = holder(&elsewhere);
    wait("a client", || {
        node.status().to_string().contains("\"connected\",1")
    });
    let refused = failing_client(&["qemu-io", "-f", "raw", "-c", "read 0 512", &server.uri("v")]);
    assert!(
        refused.contains("open") || refused.contains("use"),
        "{refused}"
    );
    node.refused_as(
        &["nbd", "serve", "v", "--listen", "127.0.0.1:0"],
        5,
        "in-use",
    );
    drop(elsewhere.stdin.take());
    assert!(ended(elsewhere, "qemu-io", DEADLINE).status.success());
    wait("the end of it", || {
        node.output(&["volume", "detach", "v"]).status.success()
    });

    // A client that is killed leaves nothing behind, and so does the server.
    let mut client = holder(&server.uri("v"));
    wait("a client", || log_of(&node).contains("uses `v`"));
    node.refused_as(&["volume", "remove", "v"], 5, "in-use");
    client.kill().unwrap();
    client.wait().unwrap();
    is_free(&node, "v");
    let mut client = holder(&server.uri("v"));
    wait("a client", || {
        log_of(&node).matches("uses `v`").count() == 2
    });
    drop(server);
    is_free(&node, "v");
    let _gone = client.kill();
    client.wait().unwrap();
}

#[test]
fn a_name_that_means_something_else_while_a_client_uses_it_is_opened_anew() {
    if !has_clients() {
        return;
    }
    in_each_placement(&[("v", "8M")], &["v"], |node, server| {
        let mut first = negotiated(&server);
        node.done(&["volume", "rename", "v", "old"]);
        node.done(&["volume", "create", "v", "--size", "16M"]);
        let info = client(&["qemu-img", "info", &server.uri("v")]);
        assert!(info.contains("16 MiB"), "{info}");
        qemu_io(&[], &["write -P 5 0 1M", "flush"], &server.uri("v"));
        first.write_all(&read_request(512)).unwrap();
        let mut answer = [5; 16 + 512];
        first.read_exact(&mut answer).unwrap();
        assert_eq!(answer[16..], [0; 512], "it is of `old`");
        drop(first);
        server.end();
        is_free(node, "old");
        is_free(node, "v");
    });
}
