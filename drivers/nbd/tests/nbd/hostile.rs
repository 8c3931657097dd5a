//! Clients that lie, stall or die: each harms itself only.

use std::io::Write;

use archipelago_nbd::config::CONNECTIONS_MAX;
use archipelago_nbd::layout::CELLS_SHARED;
use archipelago_nbd_protocol::offer::BLOCK_MAX;
use archipelago_nbd_protocol::request::Header;
use archipelago_nbd_protocol::requests::REQUESTS;

use crate::client::{Client, Replies, greeted, is_closed, option};
use crate::host::{Host, eventually};

/// An honest client is served beside whatever else there is.
fn is_served(host: &Host) {
    let mut client = Client::connect(host, Replies::Structured);
    client.write(4096, &[9; 4096]);
    assert_eq!(client.read(4096, 4096), [9; 4096]);
}

#[test]
fn nonsense_ends_its_connection_alone() {
    let host = Host::new();
    let mut honest = Client::connect(&host, Replies::Structured);
    for nonsense in [
        vec![0; 28],
        vec![0xff; 28],
        Header {
            flags: 0,
            command: 1,
            cookie: 1,
            offset: 0,
            len: BLOCK_MAX + 512,
        }
        .encode()
        .to_vec(),
        Header {
            flags: 0,
            command: 1,
            cookie: 1,
            offset: 0,
            len: u32::MAX,
        }
        .encode()
        .to_vec(),
    ] {
        let mut client = Client::connect(&host, Replies::Structured);
        client.stream.write_all(&nonsense).unwrap();
        assert!(is_closed(&mut client.stream));
    }
    for nonsense in [
        vec![0; 16],
        option(6, &[]).repeat(65),
        option(1, b"another"),
    ] {
        let mut stream = greeted(&host);
        // It may be gone before all of it is sent.
        let _gone = stream.write_all(&nonsense);
        assert!(is_closed(&mut stream));
    }
    assert_eq!(host.status().violations, 7);
    assert_eq!(honest.read(0, 512), [0; 512]);
}

#[test]
fn connections_beyond_the_limit_are_sent_away_and_places_come_back() {
    let host = Host::new();
    let mut clients: Vec<Client> = (0..CONNECTIONS_MAX)
        .map(|_| Client::connect(&host, Replies::Simple))
        .collect();
    let mut one_more = std::os::unix::net::UnixStream::connect(&host.socket).unwrap();
    assert!(is_closed(&mut one_more));
    assert_eq!(host.status().turned_away, 1);
    for client in &mut clients {
        assert_eq!(client.read(0, 512), [0; 512]);
    }
    clients.truncate(3);
    eventually("places", || host.status().connected == 3);
    is_served(&host);
}

#[test]
fn data_that_does_not_come_holds_up_nobody_else() {
    let host = Host::new();
    let mut stalled: Vec<Client> = (1..CONNECTIONS_MAX)
        .map(|_| Client::connect(&host, Replies::Structured))
        .collect();
    for client in &mut stalled {
        // A third of a header; half of the data of a write.
        let header = Header {
            flags: 0,
            command: 1,
            cookie: 1,
            offset: 0,
            len: BLOCK_MAX,
        };
        let bytes = [&header.encode()[..], &vec![7; 5 << 20]].concat();
        client.stream.write_all(&bytes).unwrap();
    }
    is_served(&host);
    let state = host.volumes.state();
    assert!(state.data[(6 << 20)..].iter().all(|byte| *byte == 0));
    drop(state);
    drop(stalled);
    eventually("nobody is left", || host.status().connected == 0);
}

#[test]
fn a_client_that_does_not_read_keeps_no_more_than_its_own() {
    let host = Host::new();
    let mut deaf = Client::connect(&host, Replies::Structured);
    deaf.stream.set_nonblocking(true).unwrap();
    let request = Header {
        flags: 0,
        command: 0,
        cookie: 1,
        offset: 0,
        len: BLOCK_MAX,
    }
    .encode();
    // Until neither side takes any more.
    let mut sent = 0;
    let mut quiet = 0;
    while quiet < 20 && sent < 100_000 {
        match deaf.stream.write(&request) {
            Ok(len) if len == request.len() => (sent, quiet) = (sent + 1, 0),
            _ => {
                quiet += 1;
                let _rested = nix::poll::poll(&mut [], 5_u8);
            }
        }
    }
    is_served(&host);
    let journal = host.volumes.state().journal.len();
    assert!(
        journal < 2 * usize::from(CELLS_SHARED) + 8,
        "{journal} pieces"
    );
    // Errors need no cell, and are bounded too.
    let mut errors = Client::connect(&host, Replies::Structured);
    errors.stream.set_nonblocking(true).unwrap();
    let request = Header {
        flags: 0,
        command: 99,
        cookie: 1,
        offset: 0,
        len: 0,
    }
    .encode();
    let mut quiet = 0;
    while quiet < 20 {
        match errors.stream.write(&request) {
            Ok(len) if len == request.len() => quiet = 0,
            _ => {
                quiet += 1;
                let _rested = nix::poll::poll(&mut [], 5_u8);
            }
        }
    }
    is_served(&host);
}

#[test]
fn more_requests_than_are_served_at_once_wait_in_the_socket() {
    let host = Host::new();
    host.volumes.state().hold = true;
    let mut client = Client::connect(&host, Replies::Structured);
    let count = usize::from(REQUESTS) + 100;
    for _ in 0..count {
        client.send(3, 0, 0, 0, &[]);
    }
    eventually("all that is served at once", || {
        host.volumes.state().held.len() == usize::from(REQUESTS)
    });
    let mut state = host.volumes.state();
    state.hold = false;
    while !state.held.is_empty() {
        state.release(0);
    }
    drop(state);
    for _ in 0..count {
        assert_eq!(client.receive().1.errno, 0);
    }
}

#[test]
fn bytes_that_come_one_at_a_time_are_understood() {
    let host = Host::new();
    let mut client = Client::connect(&host, Replies::Structured);
    let header = Header {
        flags: 0,
        command: 1,
        cookie: 5,
        offset: 0,
        len: 1024,
    };
    let mut header_bytes = 0..header.encode().len();
    for byte in header.encode().iter().chain(&[3; 1024]) {
        client.stream.write_all(&[*byte]).unwrap();
        if header_bytes.next().is_some() {
            // Some of them are taken before the next one comes.
            let _rested = nix::poll::poll(&mut [], 2_u8);
        }
    }
    assert_eq!(client.receive().1.errno, 0);
    assert_eq!(client.read(0, 1024), [3; 1024]);
}
