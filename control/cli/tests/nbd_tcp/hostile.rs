//! Clients that mean harm.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use crate::harness::clients::{convert, has_clients, qemu_io};
use crate::harness::content::{file, noise};
use crate::harness::{Node, tool, wait};
use crate::server::{ClientSocket, Server, is_free, log_of, node_with};
use crate::wire::{is_ended, negotiated_over, read_request};

const MIB: usize = 1 << 20;

#[test]
fn hostile_clients_over_tcp_harm_nobody_else() {
    if has_clients() {
        hostile_clients_harm_nobody_else(|_| "--listen=127.0.0.1:0".to_owned());
    }
}

#[test]
fn hostile_clients_at_a_unix_socket_harm_nobody_else() {
    if has_clients() {
        hostile_clients_harm_nobody_else(|node| {
            format!("--socket={}", node.path("exports").display())
        });
    }
}

/// On a server that listens where `place` says.
fn hostile_clients_harm_nobody_else(place: impl FnOnce(&Node) -> String) {
    let node = node_with("fused", &[("v", "256M")]);
    let source = file(&node, "source", &noise(3, 32 * MIB));
    let server = Server::start(&node, &["v", &place(&node)]);
    let negotiated = || negotiated_over(server.client(), b"v");
    convert(&source, &server.uri("v"));

    // Garbage, in both phases, ends the connection at once.
    for garbage in [&[0xff; 4096][..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut socket = server.client();
        socket.write_all(garbage).unwrap();
        assert!(is_ended(&mut socket));
        let mut socket = negotiated();
        socket.write_all(&[garbage, garbage].concat()).unwrap();
        assert!(is_ended(&mut socket));
    }
    // A write that nobody could take, and one whose data does not come.
    let mut endless = read_request(u32::MAX);
    endless[7] = 1;
    let mut socket = negotiated();
    socket.write_all(&endless).unwrap();
    assert!(is_ended(&mut socket));
    let mut half = read_request(1 << 20);
    half[7] = 1;
    half.extend([7; 1000]);
    let mut halves: Vec<Box<dyn ClientSocket>> = (0..4)
        .map(|_| {
            let mut socket = negotiated();
            socket.write_all(&half).unwrap();
            socket
        })
        .collect();
    // Half a handshake, by more clients than may be in one, and clients that never read what they ask for.
    let mut idle: Vec<Box<dyn ClientSocket>> = (0..150).map(|_| server.client()).collect();
    let mut stalled: Vec<Box<dyn ClientSocket>> = (0..4)
        .map(|_| {
            let mut socket = negotiated();
            for _ in 0..64 {
                socket.write_all(&read_request(32 << 20)).unwrap();
            }
            socket
        })
        .collect();
    for _ in 0..3 {
        let commands = ["read 0 32M", "write 64M 32M", "flush"];
        qemu_io(&[], &commands, &server.uri("v"));
    }
    let memory = server.memory();
    assert!(memory < 400 * MIB, "{memory} bytes");
    for sockets in [&mut idle, &mut halves, &mut stalled] {
        for socket in sockets {
            socket.read_within(Duration::from_secs(60));
        }
    }
    assert!(idle.iter_mut().all(is_ended), "after 10 s");
    assert!(halves.iter_mut().all(is_ended), "after 30 s");
    wait("the end of those who do not read", || {
        log_of(&node).matches("took too long").count() >= halves.len() + stalled.len()
    });
    drop(stalled);
    compare_front(&node, &server, &source);
    let freed = server.memory();
    assert!(freed < 150 * MIB, "{freed} bytes");
    server.end();
    is_free(&node, "v");
}

/// What was written first is still there.
fn compare_front(node: &Node, server: &Server, source: &str) {
    let target = node.path("front");
    let mut dd = Command::new("qemu-img");
    dd.args(["dd", "-f", "raw", "-O", "raw", "bs=1M", "count=32"]);
    dd.arg(format!("if={}", server.uri("v")));
    dd.arg(format!("of={}", target.display()));
    tool(&mut dd);
    assert!(std::fs::read(target).unwrap() == std::fs::read(source).unwrap());
}
