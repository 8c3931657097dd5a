//! Exports of one port, and where it listens.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::harness::clients::{
    bench, client, compare, content_with_a_hole, convert, do_every_command, failing_client,
    has_clients, has_the_hole, is_read_only, qemu_io, refuses_writes,
};
use crate::harness::content::file;
use crate::server::{Server, in_each_placement, is_free, node_with};

#[test]
fn reference_clients_use_several_exports_of_one_port() {
    if !has_clients() {
        return;
    }
    in_each_placement(
        &[("v", "64M"), ("w", "64M"), ("x", "64M")],
        &["v", "w"],
        |node, server| {
            let content = content_with_a_hole();
            let source = file(node, "source", &content);
            convert(&source, &server.uri("v"));
            compare(&source, &server.uri("v"));
            let copy = node.path("copy");
            client(&["nbdcopy", &server.uri("v"), copy.to_str().unwrap()]);
            assert!(std::fs::read(&copy).unwrap() == content);
            client(&["nbdcopy", "--flush", &server.uri("v"), &server.uri("w")]);
            compare(&source, &server.uri("w"));
            let info = client(&["qemu-img", "info", &server.uri("w")]);
            assert!(info.contains("64 MiB"), "{info}");

            has_the_hole(&server.uri("w"));
            let listed = client(&["nbdinfo", "--list", "--json", &server.uri("")]);
            assert_eq!(names_of(&listed), ["v", "w"], "{listed}");
            for unnamed in ["x", "", "nobody"] {
                let refused = failing_client(&["qemu-img", "info", &server.uri(unnamed)]);
                assert!(refused.contains("no export of this name"), "{refused}");
            }
            bench(&server.uri("w"));
            server.end();
            is_free(node, "v");
        },
    );
}

#[test]
fn five_volumes_are_exports_of_one_unix_socket() {
    if !has_clients() {
        return;
    }
    let names = ["v1", "v2", "v3", "v4", "v5"];
    let node = node_with("fused", &names.map(|name| (name, "4M")));
    let socket = node.path("exports");
    let server = Server::start(&node, &["--socket", socket.to_str().unwrap()]);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let sources: Vec<_> = names
        .into_iter()
        .zip(1..)
        .map(|(name, byte)| file(&node, &format!("source-{name}"), &vec![byte; 4 << 20]))
        .collect();
    for (name, source) in names.iter().zip(&sources) {
        convert(source, &server.uri(name));
    }
    for (name, source) in names.iter().zip(&sources) {
        compare(source, &server.uri(name));
    }
    let listed = client(&["nbdinfo", "--list", "--json", &server.uri("")]);
    assert_eq!(names_of(&listed), names, "{listed}");
    client(&["nbdcopy", "--flush", &server.uri("v1"), &server.uri("v5")]);
    compare(&sources[0], &server.uri("v5"));
    let refused = failing_client(&["qemu-img", "info", &server.uri("nobody")]);
    assert!(refused.contains("no export of this name"), "{refused}");
    let path = socket.to_str().unwrap();
    node.refused_as(&["nbd", "serve", "--socket", path], 5, "in-use");
    compare(&sources[2], &server.uri("v3"));
    // A killed server leaves its socket to the next one.
    drop(server);
    assert!(socket.exists());
    let server = Server::start(&node, &["--socket", path]);
    compare(&sources[1], &server.uri("v2"));
    server.end();
    assert!(!socket.exists(), "its socket is left");
    // Only what is named is listed.
    let server = Server::start(&node, &["v2", "v4", "--socket", path]);
    let listed = client(&["nbdinfo", "--list", "--json", &server.uri("")]);
    assert_eq!(names_of(&listed), ["v2", "v4"], "{listed}");
    let refused = failing_client(&["qemu-img", "info", &server.uri("v1")]);
    assert!(refused.contains("no export of this name"), "{refused}");
    server.end();
}

/// The exports of a list of `nbdinfo`.
fn names_of(listed: &str) -> Vec<String> {
    let listed: Value = serde_json::from_str(listed).unwrap();
    let exports = listed["exports"].as_array().unwrap().iter();
    let names = exports.map(|export| export["export-name"].as_str().unwrap().to_owned());
    names.collect()
}

#[test]
fn every_command_does_what_qemu_expects_and_a_resize_is_seen() {
    if !has_clients() {
        return;
    }
    let node = node_with("fused", &[("v", "256M")]);
    let server = Server::start(&node, &[]);
    do_every_command(&server.uri("v"));
    // What one connection has written is seen through another way in once nobody uses it any more.
    is_free(&node, "v");
    node.done(&["volume", "snapshot", "v", "s"]);
    is_read_only(&server.uri("s"));
    node.done(&["volume", "resize", "v", "512M"]);
    let size = client(&["nbdinfo", "--size", &server.uri("v")]);
    assert_eq!(size.trim(), (512 << 20).to_string());
    qemu_io(&[], &["write -P 3 511M 1M"], &server.uri("v"));

    let read_only = Server::start(&node, &["v", "--read-only"]);
    qemu_io(&["-r"], &["read -P 3 511M 1M"], &read_only.uri(""));
    refuses_writes(&read_only.uri("v"));
    read_only.end();
    server.end();
}

#[test]
fn other_hosts_are_served_in_the_clear_only_if_the_operator_says_so() {
    let node = node_with("fused", &[("v", "64M")]);
    let anywhere = ["nbd", "serve", "v", "--listen", "0.0.0.0:0"];
    let refused = node.refused_as(&anywhere, 2, "invalid");
    assert!(
        refused["hint"].to_string().contains("--insecure"),
        "{refused}"
    );
    let server = Server::start(&node, &["v", "--listen", "0.0.0.0:0", "--insecure"]);
    server.end();
    let server = Server::start(&node, &["--listen", "127.0.0.1:0"]);
    let taken = format!("127.0.0.1:{}", server.port);
    node.refused_as(&["nbd", "serve", "--listen", &taken], 5, "in-use");
    server.end();
    node.refused_as(
        &["nbd", "serve", "none", "--listen", "127.0.0.1:0"],
        3,
        "not-found",
    );
    node.done(&["node", "stop"]);
    let refused = node.refused_as(
        &["nbd", "serve", "--listen", "127.0.0.1:0"],
        1,
        "unavailable",
    );
    assert!(
        refused["hint"].to_string().contains("node start"),
        "{refused}"
    );
}
