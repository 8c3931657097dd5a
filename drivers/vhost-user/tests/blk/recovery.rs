//! What outlives a connection or the endpoint, and what changes under load.

use std::io::Write;
use std::os::fd::AsRawFd;

use archipelago_endpoint::{Detach, Endpoint as _};
use xseg::Region;

use crate::front_end::{FrontEnd, GUEST, MEMORY, USED, USER, WRITE, words};
use crate::host::{Host, eventually};

#[test]
fn requests_of_a_dead_endpoint_are_done_by_its_successor_once_each() {
    let first = Host::new();
    let volumes = first.volumes.clone();
    let mut guest = FrontEnd::connect(&first.socket);
    guest.negotiate();
    let (body, fd) = guest.inflight();
    assert_eq!(guest.ask(32, &body, &[fd.as_raw_fd()]), Some(0));
    guest.add_memory();
    guest.start_ring(0, None);
    // The guest switches its cache off; the successor is not told again.
    let off = [32u8, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(guest.ask(25, &off, &[]), Some(0));
    // More than a ring of them, so that the order of the completions alone does not tell what is done.
    for _ in 0..20 {
        guest.submit(2, 1, 0, 512, 0);
        assert_eq!(guest.used().0, 2);
    }
    volumes.state().hold = true;
    for slot in 0..5 {
        guest.submit(slot, 1, u64::from(slot), 512, 0);
    }
    eventually("five in flight", || volumes.state().held.len() == 5);
    volumes.state().release(2);
    assert_eq!(guest.used().0, 2);
    volumes.state().release(0);
    assert_eq!(guest.used().0, 0);
    volumes.state().journal.clear();
    first.die();
    assert_eq!(guest.used_index(), 22, "nothing is shown after the end");
    let second = Host::new();
    guest.reconnect(&second.socket);
    guest.negotiate();
    assert_eq!(guest.ask(32, &body, &[fd.as_raw_fd()]), Some(0));
    guest.add_memory();
    // A front end may say an old base.
    guest.start_ring(0, None);
    let done: Vec<u16> = (0..3).map(|_| guest.used().0).collect();
    assert_eq!(done, [1, 3, 4], "in the order of their submission");
    assert_eq!(guest.used_index(), 25);
    let state = second.volumes.state();
    assert_eq!(state.journal.len(), 3);
    let durable = archipelago_protocol::volume::VolumeOp::Write { durable: true };
    assert!(state.journal.iter().all(|request| request.op == durable));
    drop(state);
    guest.submit(2, 4, 0, 0, 0);
    assert_eq!(guest.used().0, 2);
    assert_eq!(second.status().resubmitted, 3);
}

#[test]
fn a_guest_whose_interrupt_was_lost_gets_one_when_its_ring_starts_again() {
    let first = Host::new();
    let mut guest = FrontEnd::connect(&first.socket);
    guest.start();
    guest.submit(0, 1, 0, 512, 0);
    assert_eq!(guest.used().0, 0);
    eventually("the interrupt", || first.status().calls == 1);
    first.die();
    // As if it had died before the interrupt.
    while guest.call.read().is_ok() {}
    let second = Host::new();
    guest.reconnect(&second.socket);
    guest.negotiate();
    guest.add_memory();
    guest.start_ring(1, None);
    eventually("an interrupt", || guest.call.read().is_ok());
    // A front end may give the eventfd of the guest after the start.
    assert_eq!(
        guest.ask(13, &words(&[0]), &[guest.call.as_raw_fd()]),
        Some(0)
    );
    eventually("another one", || guest.call.read().is_ok());
    assert_eq!(second.status().calls, 0, "nothing was completed");
}

#[test]
fn completions_come_in_any_order() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    host.volumes.state().hold = true;
    for slot in 0..5 {
        guest.submit(slot, 0, 0, 512, WRITE);
    }
    eventually("five in flight", || host.volumes.state().held.len() == 5);
    for (index, slot) in [(3, 3), (0, 0), (2, 4), (0, 1), (0, 2)] {
        host.volumes.state().release(index);
        assert_eq!(guest.used(), (slot, 513));
    }
}

#[test]
fn a_ring_stops_when_it_has_drained_and_the_last_closes_the_volume() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    host.volumes.state().hold = true;
    for slot in 0..3 {
        guest.submit(slot, 1, 0, 512, 0);
    }
    eventually("three in flight", || host.volumes.state().held.len() == 3);
    let volumes = host.volumes.clone();
    guest.send(11, 0, &words(&[0]), &[]);
    let late = std::thread::spawn(move || {
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        assert_eq!(volumes.state().closes, 0);
        let mut state = volumes.state();
        while !state.held.is_empty() {
            state.release(0);
        }
    });
    let body = guest.answer().unwrap();
    assert_eq!(body[4], 3);
    assert_eq!(
        guest.used_index(),
        3,
        "everything was shown before the answer"
    );
    assert!(!host.volumes.state().open);
    late.join().unwrap();
}

#[test]
fn memory_is_taken_back_only_when_nothing_names_it() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    let extra = Region::anonymous(0x1000).unwrap();
    let slot = words(&[0, GUEST + MEMORY, 0x1000, USER + MEMORY, 0]);
    let fd = extra.descriptor().0.as_raw_fd();
    assert_eq!(guest.ask(37, &slot, &[fd]), Some(0));
    assert_eq!(host.volumes.state().regions(), 2);
    host.volumes.state().hold = true;
    guest.submit(0, 0, 0, 512, WRITE);
    eventually("one in flight", || host.volumes.state().held.len() == 1);
    guest.send(38, 8, &slot, &[]);
    // What comes meanwhile is served, and cannot name the slot.
    guest.submit(1, 0, 0, 512, WRITE);
    guest.descriptor(4, GUEST + MEMORY, 512, 1 | WRITE, 5);
    eventually("another", || {
        host.volumes.state().held.len() == 2 || guest.used_index() == 1
    });
    assert_eq!(host.volumes.state().regions(), 2, "still in use");
    let mut state = host.volumes.state();
    state.hold = false;
    while !state.held.is_empty() {
        state.release(0);
    }
    drop(state);
    assert_eq!(guest.answer().unwrap(), words(&[0]));
    assert_eq!(host.volumes.state().regions(), 1);
    // The whole table anew under a running ring: same memory, another mapping.
    let table = words(&[1, GUEST, MEMORY, USER, 0]);
    let fd = guest.memory.descriptor().0.as_raw_fd();
    for round in 0..20 {
        guest.submit(2, 0, round, 512, WRITE);
        assert_eq!(guest.ask(5, &table, &[fd]), Some(0));
        // A head is offered again only when it came back.
        eventually("its answer", || u64::from(guest.used_index()) == 3 + round);
    }
    assert_eq!(host.volumes.state().regions(), 1);
}

#[test]
fn what_is_written_into_guest_memory_is_logged() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    let log = Region::anonymous(4096).unwrap();
    let fd = log.descriptor().0.as_raw_fd();
    guest.send(6, 0, &words(&[4096, 0]), &[fd]);
    guest.answer().unwrap();
    guest.features |= 1 << 26;
    assert_eq!(guest.ask(2, &words(&[guest.features]), &[]), Some(0));
    guest.set_ring_address(Some(GUEST + USED));
    let buffer = GUEST + FrontEnd::buffer(0);
    let page = |address: u64| {
        let mut byte = [0];
        log.read(address / 4096 / 8, &mut byte).unwrap();
        byte[0] >> (address / 4096 % 8) & 1 == 1
    };
    guest.submit(0, 1, 0, 512, 0);
    guest.used();
    assert!(page(buffer), "the status byte");
    assert!(!page(buffer + 4096), "what is only read by the device");
    eventually("the used ring", || page(GUEST + USED));
    guest.submit(0, 0, 0, 512, WRITE);
    guest.used();
    assert!(page(buffer + 4096), "data that was read");
    guest.features &= !(1 << 26);
    assert_eq!(guest.ask(2, &words(&[guest.features]), &[]), Some(0));
    log.fill(0, 4096, 0).unwrap();
    guest.submit(0, 0, 0, 512, WRITE);
    guest.used();
    assert!(!page(buffer + 4096), "a cancelled migration");
}

#[test]
fn half_a_message_holds_up_nobody_but_its_sender() {
    let mut host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    guest.stream.write_all(&[11, 0, 0, 0, 1, 0]).unwrap();
    for round in 0..20 {
        guest.submit(0, 0, round, 512, WRITE);
        assert_eq!(guest.used(), (0, 513));
    }
    let mut endpoint = host.endpoint.take().unwrap();
    endpoint.detach(Detach::Force).unwrap();
}

#[test]
fn a_front_end_that_comes_back_finds_the_ring_as_it_was() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    for round in 0..5 {
        guest.submit(0, 1, 0, 512, 0);
        guest.used();
        guest.reconnect(&host.socket);
        guest.negotiate();
        guest.add_memory();
        guest.start_ring(round + 1, None);
    }
    guest.submit(0, 1, 0, 512, 0);
    guest.used();
    assert_eq!(host.status().connections, 6);
    assert_eq!(host.volumes.state().regions(), 1);
}
