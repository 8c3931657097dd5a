//! A pool without room.

use archipelago_protocol::{ErrorCode, OnFull};

use crate::client::{Client, Replies, is_closed};
use crate::host::{Host, eventually};

#[test]
fn a_write_waits_for_room_and_a_client_that_has_gone_does_not_wait_with_it() {
    let host = Host::new();
    host.volumes.state().full = true;
    let mut waiting = Client::connect(&host, Replies::Structured);
    waiting.send(1, 0, 0, 512, &[1; 512]);
    eventually("it waits", || host.volumes.state().parked.len() == 1);
    host.volumes.state().make_room();
    assert_eq!(waiting.receive().1.errno, 0);
    host.volumes.state().full = true;
    waiting.send(1, 0, 0, 512, &[2; 512]);
    eventually("it waits", || host.volumes.state().parked.len() == 1);
    drop(waiting);
    eventually("nobody waits", || host.status().connected == 0);
    let policies = host.volumes.state().policies.clone();
    assert!(policies.contains(&OnFull::Report), "{policies:?}");
}

#[test]
fn an_open_that_fails_is_answered_and_tried_again_by_the_next_client() {
    let host = Host::new();
    host.volumes.state().fail_open = Some(ErrorCode::Damaged);
    let mut client = Client::connect(&host, Replies::Structured);
    assert_eq!(client.call(0, 0, 0, 4096, &[]).errno, 5);
    assert_eq!(client.call(1, 0, 0, 4096, &[0; 4096]).errno, 5);
    assert_eq!(client.call(3, 0, 0, 0, &[]).errno, 5);
    client.send(2, 0, 0, 0, &[]);
    assert!(is_closed(&mut client.stream));
    host.volumes.state().fail_open = None;
    eventually("nobody is left", || host.status().connected == 0);
    let mut client = Client::connect(&host, Replies::Structured);
    assert_eq!(client.read(0, 4096), [0; 4096]);
    assert_eq!(host.status().open_failures, 1);
}
