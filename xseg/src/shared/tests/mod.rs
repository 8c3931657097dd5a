//! Both ends in one process, and peers that break the rules. Real deaths of real processes: `tests/death.rs`.
//!
//! * `admission`: who is served, and as what.
//! * `ends`: a client and a server that do not know what carries their channel.
//! * `exchange`: how they meet, and what passes between honest ones.
//! * `recovery`: what becomes of requests when one of them dies.
//! * `misbehaving`: a peer that breaks the rules, and what it costs.

mod admission;
mod ends;
mod exchange;
mod misbehaving;
mod recovery;

use std::path::PathBuf;

use super::*;
use crate::entry::{Completion, Submission};
use crate::port::ClientPort;

/// Entries of a ring.
const SIZE: usize = 4;
/// What the clients say that they are.
const ROLE: u8 = 7;

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    Place {
        _directory: directory,
        path,
    }
}

fn options(on_server_death: OnServerDeath) -> ConnectOptions {
    ConnectOptions {
        role: ROLE,
        client_id: 42,
        ring_size: SIZE,
        arena_len: 8192,
        on_server_death,
        allowed_uids: Vec::new(),
    }
}

fn pair(place: &Place, on_server_death: OnServerDeath) -> (Listener, SharedClient, SharedServer) {
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let mut client = SharedClient::connect(&place.path, options(on_server_death)).unwrap();
    let server = meet(&mut listener, &mut client);
    (listener, client, server)
}

/// Lets a client and the next server find each other.
fn meet(listener: &mut Listener, client: &mut SharedClient) -> SharedServer {
    client.service();
    let mut server = listener.accept().expect("the hello is there");
    server.start();
    for _ in 0..4 {
        client.service();
        server.service();
    }
    assert!(client.is_connected());
    server
}

fn request(offset: u64) -> Submission {
    Submission {
        offset,
        ..Submission::default()
    }
}

fn answer(submission: &Submission) -> Completion {
    Completion {
        tag: submission.tag,
        values: [submission.offset, 0],
        ..Completion::default()
    }
}
