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
fn report_forgets_what_was_in_flight_and_says_so() {
    let place = place();
    let (mut listener, mut client, mut server) = pair(&place, OnServerDeath::Report);
    client.submit(1, request(1)).unwrap();
    client.publish();
    let submission = server.accept().unwrap();
    server.complete(answer(&submission));
    server.publish();
    drop(server);
    client.service();
    assert_eq!(
        (
            client.incarnation(),
            client.in_flight(),
            client.is_connected()
        ),
        (2, 0, false)
    );
    assert_eq!(client.complete(), None, "no answer of a former server");
    assert_eq!(client.submit(2, request(2)), Err(PortError::Broken));
    let mut server = meet(&mut listener, &mut client);
    client.submit(2, request(2)).unwrap();
    client.publish();
    assert_eq!(server.accept().unwrap().offset, 2);
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
