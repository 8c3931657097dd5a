//! What becomes of requests when one of them goes.

use super::*;
use crate::channel::Client;
use crate::port::{ClientPort, PortError, ServerPort};
use crate::region::{Region, RegionId};

#[test]
fn replay_sends_what_is_in_flight_again_in_order_and_with_its_regions() {
    let place = place();
    let (listener, mut client, mut server) = pair(&place, OnServerDeath::Replay);
    client
        .add_region(RegionId(1), Region::anonymous(4096).unwrap())
        .unwrap();
    server.service();
    client.service();
    client.arena().write(0, b"kept").unwrap();
    for n in 0..4 {
        client.submit(100 + n, request(n)).unwrap();
    }
    client.publish();
    let taken: Vec<Submission> = (0..3).map(|_| server.accept().unwrap()).collect();
    server.complete(answer(&taken[1]));
    server.publish();
    server.complete(answer(&taken[2]));
    drop(server);
    drop(listener);

    assert!(!client.service());
    assert!(!client.is_connected());
    assert_eq!(client.incarnation(), 2);
    assert!(
        !client.prepare_sleep(),
        "an answer of the dead server waits"
    );
    assert_eq!(
        client.credits(),
        0,
        "an answer that was not taken holds its credit"
    );
    assert_eq!(client.complete().unwrap().0, 101);
    client.submit(104, request(4)).unwrap();

    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    client.service();
    let mut server = listener.accept().unwrap();
    server.start();
    client.service();
    assert_eq!(server.accept(), None, "the region is not there yet");
    assert!(!client.is_connected());
    server.service();
    client.service();
    assert!(client.is_connected());
    assert_eq!(server.incarnation(), 2);
    assert!(client.region_ready(RegionId(1)));
    assert!(
        server.regions().get(RegionId(1)).is_some(),
        "before any request that names it"
    );
    let mut kept = [0; 4];
    server
        .regions()
        .get(RegionId::ARENA)
        .unwrap()
        .read(0, &mut kept)
        .unwrap();
    assert_eq!(&kept, b"kept");
    let again: Vec<Submission> = std::iter::from_fn(|| server.accept()).collect();
    assert_eq!(
        again
            .iter()
            .map(|submission| submission.offset)
            .collect::<Vec<_>>(),
        [0, 2, 3, 4]
    );
    for submission in &again {
        server.complete(answer(submission));
    }
    server.publish();
    let cookies: Vec<u64> = std::iter::from_fn(|| client.complete())
        .map(|(cookie, _)| cookie)
        .collect();
    let client = Client::Shared(Box::new(client));
    assert_eq!(client.figures().incarnation, 2);
    assert_eq!(cookies, [100, 102, 103, 104], "each once");
}

#[test]
fn report_gives_back_what_was_answered_and_forgets_the_rest() {
    let place = place();
    let (mut listener, mut client, mut server) = pair(&place, OnServerDeath::Report);
    for n in 0..3 {
        client.submit(100 + n, request(n)).unwrap();
    }
    client.publish();
    let taken: Vec<Submission> = (0..3).map(|_| server.accept().unwrap()).collect();
    let failed = Completion {
        result: -5,
        ..answer(&taken[1])
    };
    server.complete(failed);
    server.publish();
    server.complete(answer(&taken[2]));
    drop(server);
    client.service();
    let state = (client.incarnation(), client.in_flight());
    assert_eq!((state, client.is_connected()), ((2, 1), false));
    assert!(!client.prepare_sleep(), "an answer waits");
    assert_eq!(client.submit(103, request(3)), Err(PortError::Broken));
    // Also beside its successor.
    let mut server = meet(&mut listener, &mut client);
    assert_eq!(client.complete(), Some((101, failed)));
    assert_eq!((client.complete(), client.in_flight()), (None, 0));
    client.submit(103, request(3)).unwrap();
    client.publish();
    assert_eq!(server.accept().unwrap().offset, 3);
    assert_eq!(server.accept(), None, "the others are forgotten");
    assert_eq!(client.incarnation(), 2);
}

#[test]
fn a_server_takes_nothing_before_it_is_started_and_counts_what_a_dead_client_left() {
    let place = place();
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let mut client = SharedClient::connect(&place.path, options(OnServerDeath::Replay)).unwrap();
    let mut server = listener.accept().unwrap();
    for n in 0..3 {
        client.submit(n, request(n)).unwrap();
    }
    client.service();
    client.publish();
    assert_eq!(server.accept(), None);
    assert!(server.prepare_sleep());
    server.start();
    let first = server.accept().unwrap();
    let second = server.accept().unwrap();
    drop(client);
    server.service();
    assert!(server.is_closed());
    assert_eq!(
        server.accept(),
        None,
        "what was not started is not started any more"
    );
    assert_eq!(server.in_flight(), 2);
    server.complete(answer(&first));
    server.complete(answer(&second));
    server.publish();
    assert_eq!(server.in_flight(), 0);
}

#[test]
fn what_was_open_is_opened_again_before_a_request_is_sent_again() {
    let place = place();
    let (listener, mut client, server) = pair(&place, OnServerDeath::Replay);
    // More than a ring holds; one of them is open no more.
    for number in 0..7 {
        client.announce(
            number,
            500 + u64::from(number),
            request(900 + u64::from(number)),
        );
    }
    client.withdraw(3);
    for n in 0..4 {
        client.submit(100 + n, request(n)).unwrap();
    }
    client.publish();
    drop(server);
    drop(listener);
    client.service();
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    client.service();
    let mut server = listener.accept().unwrap();
    server.start();
    let mut seen = Vec::new();
    let mut cookies = Vec::new();
    for _ in 0..20 {
        server.service();
        client.service();
        while let Some(submission) = server.accept() {
            assert_eq!(submission.offset < 900, client.is_connected());
            seen.push(submission.offset);
            server.complete(answer(&submission));
        }
        server.publish();
        cookies.extend(std::iter::from_fn(|| client.complete()).map(|(cookie, _)| cookie));
    }
    let expected = [900, 901, 902, 904, 905, 906, 0, 1, 2, 3];
    assert_eq!(seen, expected);
    assert_eq!(cookies, [500, 501, 502, 504, 505, 506, 100, 101, 102, 103]);
}
