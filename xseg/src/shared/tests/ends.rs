//! The same conversation over either transport.

use super::*;
use crate::channel::{ChannelFigures, Client, Server};
use crate::port::ServerPort;
use crate::region::{Region, RegionId};

fn service(client: &mut Client, server: &mut Server) {
    for _ in 0..4 {
        client.service();
        server.service();
    }
    assert!(!client.service() && !server.service(), "nothing is left");
}

fn converse(mut client: Client, mut server: Server, transport: &'static str) {
    let is_shared = transport == "shared";
    assert_eq!(
        (client.fds().is_some(), server.fds().is_some()),
        (is_shared, is_shared)
    );
    assert!(client.is_connected() && !server.is_closed());
    assert_eq!(client.credits(), SIZE);

    assert!(server.accept().is_none() && server.prepare_sleep());
    server.wake();
    client.submit(7, request(5)).unwrap();
    client.submit(8, request(6)).unwrap();
    client.publish();
    assert_eq!(client.credits(), SIZE - 2);
    assert!(!server.prepare_sleep(), "there is work");
    server.wake();
    let asked = [server.accept(), server.accept()].map(Option::unwrap);
    assert_eq!(asked.map(|request| request.offset), [5, 6]);
    assert_eq!(server.accept(), None);

    assert!(client.complete().is_none() && client.prepare_sleep());
    client.wake();
    server.complete(answer(&asked[1]));
    server.publish();
    assert!(!client.prepare_sleep(), "there is an answer");
    client.wake();
    let (cookie, completion) = client.complete().unwrap();
    assert_eq!((cookie, completion.values), (8, [6, 0]));
    assert_eq!(client.complete(), None);
    let figures = ChannelFigures {
        transport,
        incarnation: 1,
        submitted: 2,
        in_flight: 1,
        violations: 0,
    };
    assert_eq!((client.figures(), client.incarnation()), (figures, 1));

    let len = |server: &Server, id| server.regions().get(id).map(Region::len);
    assert_eq!(client.arena().len(), 8192);
    assert_eq!(len(&server, RegionId::ARENA), Some(8192));
    let id = RegionId(3);
    assert!(!client.region_ready(id));
    client
        .add_region(id, Region::anonymous(4096).unwrap())
        .unwrap();
    service(&mut client, &mut server);
    assert!(client.region_ready(id));
    assert_eq!(len(&server, id), Some(4096));
    client.remove_region(id);
    service(&mut client, &mut server);
    server.accept();
    assert!(!client.region_ready(id));
    assert_eq!(len(&server, id), None);

    server.break_channel("it was asked for what cannot be");
    assert!(server.is_closed());
    client.service();
    assert!(!client.is_connected());
}

#[test]
fn ends_in_one_thread_and_ends_over_a_segment_are_used_alike() {
    let (client, server) = crate::local::channel(SIZE, 8192).unwrap();
    converse(client.into(), server.into(), "local");
    let place = place();
    let (_listener, client, server) = pair(&place, OnServerDeath::Report);
    converse(client.into(), server.into(), "shared");
}
