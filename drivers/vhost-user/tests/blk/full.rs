//! A pool without room: what a front end asks for is done all the same, and what waits is lost on nobody.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use xseg::Region;

use crate::front_end::{FEATURES, FrontEnd, GUEST, MEMORY, USER, WRITE, words};
use crate::host::{Host, eventually};

const OUT: u32 = 1;
const IN: u32 = 0;
/// A command that would wait with what waits for room is done by then.
const DONE_BY: Duration = Duration::from_secs(5);
const IO_ERROR: u8 = 1;
/// Nothing was written there.
const UNANSWERED: u8 = 0xff;

#[expect(clippy::disallowed_methods, reason = "measures another thread")]
fn within<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = act();
    let took = begun.elapsed();
    assert!(took < DONE_BY, "{what} took {took:?}");
    result
}

/// Writes in these slots wait for room.
fn wait(host: &Host, guest: &mut FrontEnd, slots: &[u16]) {
    let before = host.volumes.state().parked.len();
    host.volumes.state().full = true;
    for slot in slots {
        guest.submit(*slot, OUT, u64::from(*slot), 512, 0);
    }
    let parked = || host.volumes.state().parked.len();
    eventually("writes that wait", || parked() == before + slots.len());
}

/// Writes in slots 0 and 1 wait, and a read between them is done.
fn wait_around_a_read(host: &Host, guest: &mut FrontEnd) {
    wait(host, guest, &[0]);
    guest.submit(4, IN, 0, 512, WRITE);
    assert_eq!(guest.used(), (4, 513));
    wait(host, guest, &[1]);
}

fn started(
    tracked: bool,
) -> (
    Host,
    FrontEnd,
    Option<Vec<u8>>,
    Option<std::os::fd::OwnedFd>,
) {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    // An answer that does not come fails the test.
    guest.stream.set_read_timeout(Some(DONE_BY)).unwrap();
    guest.negotiate();
    let (mut body, mut fd) = (None, None);
    if tracked {
        let (area, file) = guest.inflight();
        assert_eq!(guest.ask(32, &area, &[file.as_raw_fd()]), Some(0));
        (body, fd) = (Some(area), Some(file));
    }
    guest.add_memory();
    guest.start_ring(0, None);
    (host, guest, body, fd)
}

#[test]
fn a_ring_whose_last_requests_wait_for_room_stops_before_them() {
    for tracked in [false, true] {
        let (host, mut guest, _, _) = started(tracked);
        guest.submit(4, IN, 0, 512, WRITE);
        assert_eq!(guest.used(), (4, 513));
        wait(&host, &mut guest, &[0, 1, 2]);
        let base = within("a stop", || guest.stop_ring());
        assert_eq!(base, 1, "as if the writes had not been taken");
        assert!(!host.volumes.state().open, "the volume is given back");
        assert_eq!(guest.used_index(), 1);
        host.volumes.state().make_room();
        guest.start_ring(base, None);
        let done: Vec<u16> = (0..3).map(|_| guest.used().0).collect();
        assert_eq!(done, [0, 1, 2]);
        assert_eq!([0, 1, 2].map(|slot| guest.status(slot)), [0; 3]);
        assert_eq!(host.status().resubmitted, 0);
    }
}

#[test]
fn with_an_in_flight_region_requests_that_wait_are_done_by_the_next_run_of_the_ring() {
    let (host, mut guest, body, fd) = started(true);
    wait_around_a_read(&host, &mut guest);
    let base = within("a stop", || guest.stop_ring());
    assert_eq!(base, 3);
    assert_eq!([0, 1].map(|slot| guest.status(slot)), [UNANSWERED; 2]);
    host.volumes.state().make_room();
    let fd = fd.unwrap();
    assert_eq!(guest.ask(32, &body.unwrap(), &[fd.as_raw_fd()]), Some(0));
    guest.start_ring(base, None);
    let done: Vec<u16> = (0..2).map(|_| guest.used().0).collect();
    assert_eq!(done, [0, 1]);
    assert_eq!(host.status().resubmitted, 2);
    guest.submit(2, OUT, 0, 512, 0);
    assert_eq!(guest.used().0, 2, "the ring goes on where it was");
}

#[test]
fn without_one_they_fail_if_something_later_was_done() {
    crate::log::collect();
    let (host, mut guest, _, _) = started(false);
    wait_around_a_read(&host, &mut guest);
    let base = within("a stop", || guest.stop_ring());
    assert_eq!(base, 3);
    let done: Vec<u16> = (0..2).map(|_| guest.used().0).collect();
    assert_eq!(done, [0, 1]);
    assert_eq!([0, 1].map(|slot| guest.status(slot)), [IO_ERROR; 2]);
    assert_eq!(host.status().errors_no_space, 2);
    let said = crate::log::lines(&host.socket, "cannot wait elsewhere");
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn a_migration_gets_an_answer_to_each_request_that_the_other_host_could_not_know() {
    let (host, mut guest, _, _) = started(true);
    wait_around_a_read(&host, &mut guest);
    // SET_LOG_BASE with a log of the guest's memory, then the feature that switches it on.
    let log = Region::anonymous(0x1000).unwrap();
    let fd = log.descriptor().0.as_raw_fd();
    guest.send(6, 0, &words(&[0x1000, 0]), &[fd]);
    guest.answer().unwrap();
    let features = words(&[FEATURES | 1 << 26]);
    within("a wish to log", || {
        assert_eq!(guest.ask(2, &features, &[]), Some(0));
    });
    let parked = || host.volumes.state().parked.len();
    eventually("the writes to wait again", || parked() == 2);
    within("a stop", || guest.stop_ring());
    assert_eq!([0, 1].map(|slot| guest.status(slot)), [IO_ERROR; 2]);
    for slot in [0, 1] {
        let page = (GUEST + FrontEnd::buffer(slot)) / 4096;
        let mut byte = [0];
        log.read(page / 8, &mut byte).unwrap();
        assert_eq!(
            byte[0] >> (page % 8) & 1,
            1,
            "the status byte of {slot} is logged"
        );
    }
}

#[test]
fn memory_is_changed_under_requests_that_wait() {
    let (host, mut guest, _, _) = started(false);
    wait(&host, &mut guest, &[0, 1]);
    // The whole table anew, at the same addresses.
    let table = words(&[1, GUEST, MEMORY, USER, 0]);
    let fd = guest.memory.descriptor().0.as_raw_fd();
    within("new memory", || {
        assert_eq!(guest.ask(5, &table, &[fd]), Some(0));
    });
    assert_eq!(host.volumes.state().regions(), 1);
    let parked = || host.volumes.state().parked.len();
    eventually("the writes to wait again", || parked() == 2);
    assert_eq!(guest.used_index(), 0);
    host.volumes.state().make_room();
    let done: Vec<u16> = (0..2).map(|_| guest.used().0).collect();
    assert_eq!(done, [0, 1]);
    assert_eq!([0, 1].map(|slot| guest.status(slot)), [0; 2]);
}
