use std::time::Duration;

use archipelago_endpoint::{Detach, Endpoint as _};
use archipelago_protocol::ErrorCode;

use crate::client::{Client, Replies, greeted, is_closed};
use crate::host::{Host, eventually};

#[test]
fn a_detach_is_refused_while_somebody_is_connected_unless_it_is_forced() {
    let mut host = Host::new();
    let mut client = Client::connect(&host, Replies::Structured);
    client.write(0, &[1; 512]);
    let endpoint = host.endpoint.as_mut().unwrap();
    let refused = endpoint.detach(Detach::IfUnused).unwrap_err();
    assert_eq!(refused.code, ErrorCode::InUse);
    assert_eq!(client.read(0, 512), [1; 512], "nothing has changed");
    let endpoint = host.endpoint.as_mut().unwrap();
    endpoint.detach(Detach::Force).unwrap();
    assert!(is_closed(&mut client.stream));
    assert!(!host.volumes.state().open);
}

#[test]
fn a_client_in_its_handshake_does_not_hold_up_a_detach() {
    let mut host = Host::new();
    let mut stream = greeted(&host);
    let endpoint = host.endpoint.as_mut().unwrap();
    endpoint.detach(Detach::IfUnused).unwrap();
    assert!(is_closed(&mut stream));
}

#[test]
fn a_client_that_says_goodbye_gets_its_answers_first_and_one_that_does_not_leaves_nothing() {
    let host = Host::new();
    host.volumes.state().hold = true;
    let mut polite = Client::connect(&host, Replies::Structured);
    let read = polite.send(0, 0, 0, 4096, &[]);
    polite.send(2, 0, 0, 0, &[]);
    let rude = {
        let mut rude = Client::connect(&host, Replies::Structured);
        rude.send(0, 0, 0, 4096, &[]);
        rude
    };
    eventually("both in the volume", || {
        host.volumes.state().held.len() == 2
    });
    drop(rude);
    host.volumes.state().hold = false;
    host.volumes.state().release(0);
    assert_eq!(polite.receive().0, read);
    assert!(is_closed(&mut polite.stream));
    eventually("one is left, whose request finishes", || {
        host.status().connected == 1
    });
    host.volumes.state().release(0);
    eventually("nobody is left", || host.status().connected == 0);
    eventually("the volume is closed", || !host.volumes.state().open);
}

#[test]
fn a_new_client_sees_the_new_size_and_an_old_one_reaches_it() {
    let host = Host::new();
    let mut old = Client::connect(&host, Replies::Structured);
    let size = host.volumes.state().data.len();
    host.volumes.state().data.resize(2 * size, 0);
    host.endpoint.as_ref().unwrap().resized(2 * size as u64);
    // The kernel's client learns of it otherwise, and goes on with its connection.
    assert_eq!(old.read(size as u64, 512), [0; 512]);
    assert_eq!(old.call(0, 0, 2 * size as u64, 512, &[]).errno, 22);
    let mut new = Client::connect(&host, Replies::Structured);
    assert_eq!(new.read(size as u64, 512), [0; 512]);
}

#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    let host = Host::with(|config| config.handshake_max = Duration::from_millis(50));
    let mut stream = greeted(&host);
    assert!(is_closed(&mut stream));
    assert_eq!(host.status().handshake_timeouts, 1);
    // One that is through is not.
    let mut client = Client::connect(&host, Replies::Simple);
    let waited = nix::poll::poll(&mut [], 100_u8);
    assert_eq!(waited, Ok(0));
    assert_eq!(client.read(0, 512), [0; 512]);
}
