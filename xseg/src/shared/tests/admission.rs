//! Who is served, and as what.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_client_is_served_only_in_a_role_that_its_user_is_admitted_in() {
    let place = place();
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let mut other = ConnectOptions {
        role: ROLE + 1,
        ..options(OnServerDeath::Replay)
    };
    let mut client = SharedClient::connect(&place.path, other.clone()).unwrap();
    assert!(listener.accept().is_none());
    assert_eq!(listener.refused(), (1, Some(Violation::Role)));
    client.service();
    assert!(client.is_refused_for_credentials() && !client.is_refused_for_version());
    assert!(!client.is_connected());
    drop(client);
    other.role = ROLE;
    let mut client = SharedClient::connect(&place.path, other).unwrap();
    // The refused one has left a socket that is gone, not a place that is taken.
    let server = listener.accept().or_else(|| listener.accept()).unwrap();
    client.service();
    assert!(client.is_connected() && !client.is_refused_for_credentials());
    assert_eq!(server.peer_uid(), nix::unistd::geteuid().as_raw());
}

#[test]
fn a_socket_is_open_to_its_group_only_if_others_are_admitted() {
    let place = place();
    let others = Admission::own([ROLE]).and(1, [ROLE]);
    let _listener = Listener::bind(&place.path, others).unwrap();
    let mode = std::fs::metadata(&place.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}
