//! The peer with a blocker that does not answer, or one that is looked at by hand.

use archipelago_protocol::Lineage;
use archipelago_protocol::handle::HandleRequest;
use archipelago_protocol::map::MapOp;
use archipelago_protocol::object::{ObjectOp, ObjectReply, ObjectRequest};
use xseg::local::{LocalClient, LocalServer, channel};

use super::*;
use crate::MapperConfig;
use crate::journal::NoJournals;

type LocalPeer = MapperPeer<LocalServer, LocalClient>;

fn peer() -> (LocalPeer, LocalServer) {
    let (client, blocker) = channel(64, 1 << 20).unwrap();
    let mapper = Mapper::new(MapperConfig::default(), Box::new(NoJournals));
    (MapperPeer::new(mapper, client), blocker)
}

/// A channel with `count` requests that name no session.
fn client(peer: &mut LocalPeer, count: u64) -> LocalClient {
    let (mut client, server) = channel(256, 4096).unwrap();
    peer.add_channel(server, Rights::All);
    for cookie in 0..count {
        let request = MapRequest::new(MapOp::Close, 7);
        client.submit(cookie, request.encode()).unwrap();
    }
    client.publish();
    client
}

fn replies(client: &mut LocalClient) -> usize {
    std::iter::from_fn(|| client.complete()).count()
}

#[test]
fn a_busy_channel_delays_another_by_one_turn_at_most() {
    let (mut peer, _blocker) = peer();
    let mut busy = client(&mut peer, 200);
    let mut other = client(&mut peer, 1);
    peer.poll();
    assert_eq!(
        (replies(&mut busy), replies(&mut other)),
        (ENTRIES_PER_TURN, 1)
    );
}

#[test]
fn the_first_turn_goes_round() {
    let (mut peer, _blocker) = peer();
    let _clients = [0, 0, 0].map(|count| client(&mut peer, count));
    let firsts = [0; 4].map(|_| {
        peer.poll();
        peer.first
    });
    assert_eq!(firsts, [1, 2, 0, 1]);
}

#[test]
fn a_channel_is_idle_when_it_is_closed_and_all_is_answered() {
    let (mut peer, mut blocker) = peer();
    let (mut client, server) = channel(4, 4096).unwrap();
    let id = peer.add_channel(server, Rights::All);
    let open = MapRequest::open(Lineage(5), false);
    client.submit(1, open.encode()).unwrap();
    client.publish();
    peer.poll();
    drop(client);
    peer.poll();
    assert!(!peer.channel_idle(id), "the open waits for the blocker");
    assert!(!peer.is_idle());
    let entry = blocker.accept().expect("the backend is asked what it does");
    let request = ObjectRequest::decode(&entry, |_, _| Err(ErrorCode::NotOpen)).unwrap();
    assert_eq!(request.op, ObjectOp::Capabilities);
    blocker.complete(ObjectReply::done(0).encode(entry.tag));
    let entry = blocker.accept().expect("the catalogue is looked for");
    let request = HandleRequest::decode(&entry);
    let Some(Ok(HandleRequest::Open { object, .. })) = request else {
        panic!("an open comes before what needs it: {request:?}");
    };
    assert_eq!(object.id.lineage, Lineage::CATALOGUE);
    blocker.complete(ObjectReply::done(0).encode(entry.tag));
    let entry = blocker.accept().expect("the request travels with it");
    let failed = ObjectReply::failed(ErrorCode::Io);
    blocker.complete(failed.encode(entry.tag));
    blocker.publish();
    for _ in 0..3 {
        peer.poll();
    }
    assert!(peer.channel_idle(id));
}

#[test]
fn the_catalogues_objects_are_behind_a_port_of_their_own_if_there_is_one() {
    let (peer, mut blocker) = peer();
    let (client, mut catalogue) = channel(64, 1 << 20).unwrap();
    let mut peer = peer.with_catalogue_at(client);
    peer.mapper.start();
    peer.poll();
    let entry = catalogue.accept().expect("the head is looked for there");
    let request = HandleRequest::decode(&entry);
    let Some(Ok(HandleRequest::Open { object, .. })) = request else {
        panic!("{request:?}");
    };
    assert_eq!(object.id, ObjectId::head(Lineage::CATALOGUE));
    let entry = blocker.accept().expect("the backend is asked what it does");
    let request = ObjectRequest::decode(&entry, |_, _| Err(ErrorCode::NotOpen)).unwrap();
    assert_eq!(request.op, ObjectOp::Capabilities);
    assert!(blocker.accept().is_none() && !peer.is_idle());
    for (op, lineage, of_catalogue) in [
        (ObjectOp::Append, Lineage::CATALOGUE, true),
        (ObjectOp::Append, Lineage(1), false),
        (ObjectOp::SyncPool, Lineage::CATALOGUE, false),
    ] {
        let id = ObjectId::log(lineage, 1);
        let request = ObjectRequest::new(op, id);
        let chosen = std::ptr::from_ref(peer.objects_for(&request));
        let other = peer.catalogue.as_ref().map(std::ptr::from_ref);
        assert_eq!(Some(chosen) == other, of_catalogue, "{op:?} of {lineage}");
    }
}
