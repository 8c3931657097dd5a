//! A bulk copy whose client goes away while requests are in flight.

use std::cell::Cell;
use std::rc::Rc;

use archipelago_doubles::memory_volumes::MemoryVolumes;
use archipelago_protocol::status::{BlockState, StatusPage};
use xseg::local::{LocalClient, LocalServer, channel};
use xseg::{ClientPort, Completion, RegionTable, Submission};

use super::*;
use crate::BulkFlags;

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
    let mut server = BulkServer::open(&mut volumes, Lineage(1), false, OnFull::Report);
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
        flags: BulkFlags::default(),
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
    while !matches!(server.poll(&mut volumes), BulkStep::Ended { .. }) {}
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
    while !matches!(server.poll(&mut volumes), BulkStep::Ended { .. }) {}
    assert_eq!(volumes.state().closes, 1);
}

#[test]
fn a_loss_after_the_client_was_cut_off_leaves_a_marker_and_no_other_does() {
    let (lost, full) = (Some(ErrorCode::SyncFailed), Some(ErrorCode::NoSpace));
    // Whether the endpoint stops or the client goes; how its request fails, then the close.
    for (stops, request, close, expected) in [
        (true, None, None, false),
        (true, lost, None, true),
        (true, None, lost, true),
        // It is sent again when the endpoint is back, and was not acknowledged.
        (true, full, None, false),
        (true, full, lost, true),
        (true, None, full, true),
        (false, lost, None, false),
        (false, None, lost, false),
    ] {
        let (mut volumes, mut server, client, _) = copying();
        match stops {
            true => server.give_up(&mut volumes),
            false => drop(client),
        }
        server.poll(&mut volumes);
        volumes.state().fail = request;
        volumes.state().fail_close = close;
        volumes.state().release(0);
        server.poll(&mut volumes);
        let ended = loop {
            if let BulkStep::Ended { lost } = server.poll(&mut volumes) {
                break lost;
            }
        };
        assert_eq!(
            ended, expected,
            "stops: {stops}, request: {request:?}, close: {close:?}"
        );
    }
}

/// A write that waits for room in the pool when the endpoint stops, as with the policy to wait.
#[test]
fn a_write_that_waits_for_room_when_the_endpoint_stops_is_no_loss() {
    let mut volumes = MemoryVolumes::new(1 << 20);
    volumes.state().full = true;
    let mut server = BulkServer::open(&mut volumes, Lineage(1), true, OnFull::Wait { limit: None });
    server.poll(&mut volumes);
    let (mut client, port) = channel(16, 1 << 20).unwrap();
    server.connect(&mut volumes, port);
    let write = BulkRequest {
        op: BulkOp::Write,
        offset: 0,
        len: 4096,
        memory: 0,
        range: 0,
        flags: BulkFlags::default(),
    };
    client.submit(0, write.encode()).unwrap();
    client.publish();
    server.poll(&mut volumes);
    assert_eq!(volumes.state().parked.len(), 1);
    server.give_up(&mut volumes);
    let ended = loop {
        if let BulkStep::Ended { lost } = server.poll(&mut volumes) {
            break lost;
        }
    };
    assert!(!ended);
}

/// The answer to `request` of a client whose copy may only read.
fn answer(volumes: &mut MemoryVolumes, request: BulkRequest) -> (i32, Vec<u8>) {
    let mut server = BulkServer::open(volumes, Lineage(1), false, OnFull::Report);
    server.poll(volumes);
    let (mut client, port) = channel(16, 1 << 20).unwrap();
    server.connect(volumes, port);
    client.submit(7, request.encode()).unwrap();
    client.publish();
    let completion = loop {
        server.poll(volumes);
        if let Some((cookie, completion)) = client.complete() {
            assert_eq!(cookie, 7);
            break completion;
        }
    };
    let mut page = vec![0; 32];
    client.arena().read(request.memory, &mut page).unwrap();
    drop(client);
    while !matches!(server.poll(volumes), BulkStep::Ended { .. }) {}
    (completion.result, page)
}

#[test]
fn a_copy_that_only_reads_may_ask_for_the_status_of_more_than_its_memory_holds() {
    let mut volumes = MemoryVolumes::new(8 << 20);
    volumes.state().data[(4 << 20) + 5000] = 1;
    let status = BulkRequest {
        op: BulkOp::Status,
        offset: 4096,
        len: 32,
        memory: 4096,
        range: (8 << 20) - 4096,
        flags: BulkFlags::default(),
    };
    let (result, page) = answer(&mut volumes, status);
    assert_eq!(result, 0);
    let page = StatusPage::decode(&page, status.range).unwrap();
    let runs: Vec<_> = page.runs().map(|run| (run.len, run.state)).collect();
    let expected = [
        (4 << 20, BlockState::Hole),
        (4096, BlockState::Data),
        ((4 << 20) - 8192, BlockState::Hole),
    ];
    assert_eq!(runs, expected);
    let beyond = BulkRequest {
        range: 8 << 20,
        ..status
    };
    let (result, _) = answer(&mut volumes, beyond);
    assert_eq!(result, ErrorCode::Invalid.to_result());
}
