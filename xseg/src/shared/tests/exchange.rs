//! How they meet, and what passes between honest ones.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::socket;
use super::*;
use crate::port::{ClientPort, PortError, ServerPort};
use crate::region::{Region, RegionId};

fn readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn requests_and_regions_pass_and_the_doorbell_rings_for_sleepers_only() {
    let place = place();
    let (_listener, mut client, mut server) = pair(&place, OnServerDeath::Replay);
    assert_eq!(
        (server.role(), server.client_id(), server.incarnation()),
        (7, 42, 1)
    );
    assert_eq!(
        u32::try_from(server.peer_pid()).unwrap(),
        std::process::id()
    );
    let region = Region::anonymous(4096).unwrap();
    region.write(5, b"guest").unwrap();
    client.add_region(RegionId(3), region).unwrap();
    assert!(!client.region_ready(RegionId(3)));
    server.service();
    client.service();
    assert!(client.region_ready(RegionId(3)));
    let mut bytes = [0; 5];
    server
        .regions()
        .get(RegionId(3))
        .unwrap()
        .read(5, &mut bytes)
        .unwrap();
    assert_eq!(&bytes, b"guest");
    client.arena().store_u32(4, 99, Ordering::Relaxed).unwrap();
    assert_eq!(
        server
            .regions()
            .get(RegionId::ARENA)
            .unwrap()
            .load_u32(4, Ordering::Relaxed),
        Ok(99)
    );

    for round in 0..20 {
        for n in 0..SIZE as u64 {
            client.submit(round * 10 + n, request(n)).unwrap();
        }
        assert_eq!(client.submit(0, request(0)), Err(PortError::Full));
        assert_eq!(server.accept(), None, "not published");
        assert!(server.prepare_sleep());
        client.publish();
        assert!(readable(server.fds()[0]));
        server.wake();
        assert!(!readable(server.fds()[0]));
        assert!(!server.prepare_sleep(), "there is work");
        for n in 0..SIZE as u64 {
            let submission = server.accept().unwrap();
            assert_eq!(submission.offset, n);
            server.complete(answer(&submission));
        }
        server.publish();
        assert!(!readable(client.fds()[0]), "nobody sleeps there");
        for n in 0..SIZE as u64 {
            assert_eq!(client.complete().unwrap().0, round * 10 + n);
        }
        assert!(client.prepare_sleep());
        client.wake();
    }
    assert_eq!(
        (
            client.submitted(),
            client.in_flight(),
            server.in_flight(),
            server.accepted()
        ),
        (80, 0, 0, 80)
    );
    client.remove_region(RegionId(3));
    server.service();
    assert!(server.regions().get(RegionId(3)).is_none());
    drop(client);
    server.service();
    assert!(server.is_closed());
}

#[test]
fn many_regions_are_all_acknowledged() {
    let place = place();
    let (_listener, mut client, mut server) = pair(&place, OnServerDeath::Replay);
    let region = Region::anonymous(4096).unwrap();
    for id in 1..=500 {
        client.add_region(RegionId(id), region.clone()).unwrap();
    }
    client.remove_region(RegionId(500));
    for _ in 0..100 {
        server.service();
        client.service();
    }
    assert!((1..500).all(|id| client.region_ready(RegionId(id))));
    assert!(!client.region_ready(RegionId(500)) && server.regions().get(RegionId(500)).is_none());
}

#[test]
fn a_listener_replaces_a_dead_socket_but_not_a_living_one() {
    use std::os::unix::fs::PermissionsExt;
    let place = place();
    let first = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let mode = std::fs::metadata(&place.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        Listener::bind(&place.path, Admission::own([ROLE]))
            .unwrap_err()
            .kind(),
        std::io::ErrorKind::AddrInUse
    );
    drop(first);
    let mut second = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let silent: Vec<OwnedFd> = (0..60)
        .map(|_| socket::connect_to(&place.path).unwrap())
        .collect();
    assert!(second.accept().is_none());
    let more: Vec<OwnedFd> = (0..60)
        .map(|_| socket::connect_to(&place.path).unwrap())
        .collect();
    let mut client = SharedClient::connect(&place.path, options(OnServerDeath::Replay)).unwrap();
    let server = second.accept().or_else(|| second.accept());
    assert!(server.is_some(), "the silent ones are pushed out");
    client.service();
    assert!(client.is_connected());
    drop((silent, more));
}
