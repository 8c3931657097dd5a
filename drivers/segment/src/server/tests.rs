//! A bulk copy whose client goes away while requests are in flight.

use std::cell::Cell;
use std::rc::Rc;

use archipelago_doubles::memory_volumes::MemoryVolumes;
use xseg::local::{LocalClient, LocalServer, channel};
use xseg::{ClientPort, RegionTable, Submission};

use super::*;

/// A port that counts how often its channel was broken.
#[derive(Debug)]
struct Counting {
    port: LocalServer,
    broken: Rc<Cell<u32>>,
}

impl ServerPort for Counting {
    fn accept(&mut self) -> Option<Submission> {
        self.port.accept()
    }

    fn complete(&mut self, completion: Completion) {
        self.port.complete(completion);
    }

    fn publish(&mut self) {
        self.port.publish();
    }

    fn regions(&self) -> &RegionTable {
        self.port.regions()
    }

    fn break_channel(&mut self, why: &str) {
        self.broken.set(self.broken.get() + 1);
        self.port.break_channel(why);
    }

    fn is_closed(&self) -> bool {
        self.port.is_closed()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.port.prepare_sleep()
    }

    fn wake(&mut self) {
        self.port.wake();
    }
}

/// A copy with one read in flight, which is held back.
fn copying() -> (
    MemoryVolumes,
    BulkServer<Counting>,
    LocalClient,
    Rc<Cell<u32>>,
) {
    let mut volumes = MemoryVolumes::new(1 << 20);
    volumes.state().hold = true;
    let mut server = BulkServer::open(&mut volumes, Lineage(1), false);
    assert!(matches!(
        server.poll(&mut volumes),
        BulkStep::Opened(Ok(()))
    ));
    let (mut client, port) = channel(16, 1 << 20).unwrap();
    let broken = Rc::new(Cell::new(0));
    let counting = Counting {
        port,
        broken: Rc::clone(&broken),
    };
    server.connect(&mut volumes, counting);
    let read = BulkRequest {
        op: BulkOp::Read,
        offset: 0,
        len: 4096,
        memory: 0,
        range: 0,
    };
    client.submit(0, read.encode()).unwrap();
    client.publish();
    server.poll(&mut volumes);
    assert_eq!(volumes.state().held.len(), 1);
    (volumes, server, client, broken)
}

#[test]
fn a_client_that_goes_away_ends_the_copy_once_and_quietly() {
    let (mut volumes, mut server, client, broken) = copying();
    drop(client);
    for _ in 0..10 {
        let step = server.poll(&mut volumes);
        assert!(matches!(step, BulkStep::Idle | BulkStep::Busy), "{step:?}");
    }
    assert!(matches!(server.poll(&mut volumes), BulkStep::Idle));
    assert_eq!((volumes.state().closes, broken.get()), (0, 0));
    volumes.state().release(0);
    while !matches!(server.poll(&mut volumes), BulkStep::Ended) {}
    assert_eq!(volumes.state().closes, 1);
}

#[test]
fn an_endpoint_that_stops_cuts_its_client_off_once() {
    let (mut volumes, mut server, _client, broken) = copying();
    for _ in 0..3 {
        server.give_up(&mut volumes);
        server.poll(&mut volumes);
    }
    assert_eq!((volumes.state().closes, broken.get()), (0, 1));
    volumes.state().release(0);
    while !matches!(server.poll(&mut volumes), BulkStep::Ended) {}
    assert_eq!(volumes.state().closes, 1);
}
