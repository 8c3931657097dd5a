//! A pool without room below clients that write.

use std::fs::File;
use std::io::Write;

use crate::harness::clients::{client, failing_client, has_clients};
use crate::harness::{Node, may_mount, wait};
use crate::server::{Server, is_free, log_of};
use crate::wire::{negotiated_for, read_request, write_request};

const MIB: usize = 1 << 20;

#[test]
fn clients_that_leave_writes_in_a_full_pool_do_not_keep_the_others_waiting() {
    if !has_clients() || !may_mount() {
        return;
    }
    let mut node = Node::new();
    let mount = node.mount_tmpfs("mount", "160m");
    node.done(&["init", "--pool-dir", mount.join("pool").to_str().unwrap()]);
    node.done(&["node", "start"]);
    for name in ["v", "w", "x"] {
        node.done(&["volume", "create", name, "--size", "256M"]);
    }
    let server = Server::start(&node, &[]);
    let mut reset = negotiated_for(&server, b"v");
    let mut finished = negotiated_for(&server, b"x");
    let _held = negotiated_for(&server, b"w");
    let ballast = File::create(mount.join("ballast")).unwrap();
    while (&ballast).write_all(&[1; 4096]).is_ok() {}
    for socket in [&mut reset, &mut finished] {
        socket.write_all(&read_request(512)).unwrap();
        assert_eq!(socket.peek(&mut [0; 1]).unwrap(), 1);
        // As many as the volume takes at a time: the server reads on, and sees the end.
        for offset in (0..4 * MIB).step_by(MIB) {
            socket.write_all(&write_request(offset, MIB)).unwrap();
        }
    }
    // With replies that nobody has read, a socket that is closed is reset.
    drop(reset);
    finished.shutdown(std::net::Shutdown::Write).unwrap();
    wait("a client that leaves", || {
        log_of(&node).contains("has left `v`")
    });
    client(&["qemu-img", "info", &server.uri("w")]);
    let refused = failing_client(&["qemu-img", "info", &server.uri("v")]);
    assert!(
        refused.contains("did not open the export in time"),
        "{refused}"
    );
    wait("the end of both", || {
        let log = log_of(&node);
        log.contains("closing `v`") && log.contains("which uses `x`, is cut off")
    });
    drop(finished);
    std::fs::remove_file(mount.join("ballast")).unwrap();
    for name in ["v", "x"] {
        is_free(&node, name);
        client(&["qemu-img", "info", &server.uri(name)]);
    }
}
