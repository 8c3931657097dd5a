//! Requests and configuration, message by message.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use archipelago_doubles::memory_volumes::MemoryVolumes;
use archipelago_endpoint::{Detach, Endpoint as _};
use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::VolumeOp;

use crate::front_end::{FrontEnd, WRITE, words};
use crate::host::{Host, SIZE, eventually};

fn start(host: &Host) -> FrontEnd {
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    guest
}

#[test]
fn statuses_and_used_lengths_are_exact() {
    let host = Host::new();
    let mut guest = start(&host);
    let end = SIZE as u64 / 512;
    // kind, sector, bytes, writable, status, used length
    let rows = [
        (0, 0, 1024, WRITE, 0, 1025),
        (1, 0, 1024, 0, 0, 1),
        (4, 0, 0, 0, 0, 1),
        (8, 0, 20, WRITE, 0, 21),
        (8, 0, 19, WRITE, 1, 1),
        (99, 0, 512, 0, 2, 1),
        (0, end, 512, WRITE, 1, 1),
        (0, u64::MAX / 512, 512, WRITE, 1, 1),
        (0, u64::MAX, 512, WRITE, 1, 1),
        (1, end - 1, 1024, 0, 1, 1),
        (1, 0, 513, 0, 1, 1),
        (11, 0, 15, 0, 1, 1),
    ];
    for (kind, sector, len, flags, status, used) in rows {
        guest.submit(1, kind, sector, len, flags);
        assert_eq!(guest.used(), (1, used), "request {kind} at {sector}, {len}");
        assert_eq!(guest.status(1), status, "request {kind} at {sector}, {len}");
    }
    let mut id = [0; 20];
    guest
        .memory
        .read(FrontEnd::buffer(1) + 4096, &mut id)
        .unwrap();
    assert_eq!(&id, b"serial-of-this-volum");
}

#[test]
fn discards_of_several_segments_wait_for_credits_and_all_of_them() {
    let host = Host::new();
    let mut guest = start(&host);
    host.volumes.state().data.fill(1);
    host.volumes.state().credits = Some(2);
    let ranges = words(&[0, 8, 64, 8, 128, 8]);
    guest
        .memory
        .write(FrontEnd::buffer(0) + 4096, &ranges)
        .unwrap();
    guest.submit(0, 11, 0, 48, 0);
    eventually("two parts", || host.volumes.state().journal.len() == 2);
    assert_eq!(guest.used_index(), 0);
    host.volumes.state().credits = None;
    // Another completion or kick makes the device look again.
    guest.ring();
    guest.submit(1, 4, 0, 0, 0);
    let mut done = [guest.used().0, guest.used().0];
    done.sort_unstable();
    assert_eq!(done, [0, 1]);
    let state = host.volumes.state();
    for sector in [0, 64, 128] {
        assert_eq!(state.data[sector * 512..sector * 512 + 4096], [0; 4096]);
        assert_eq!(state.data[sector * 512 + 4096], 1);
    }
}

#[test]
fn the_write_cache_can_be_switched_at_any_time() {
    let host = Host::new();
    let mut guest = start(&host);
    let config = |byte: u8| [&[32u8, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0][..], &[byte]].concat();
    for (writeback, durable) in [(1, false), (0, true), (1, false)] {
        assert_eq!(guest.ask(25, &config(writeback), &[]), Some(0));
        guest.submit(0, 1, 0, 512, 0);
        guest.used();
        let last = host.volumes.state().journal.last().unwrap().op;
        assert_eq!(last, VolumeOp::Write { durable });
    }
    assert_eq!(guest.ask(25, &config(7), &[]), Some(1));
    guest.submit(0, 1, 0, 512, 0);
    assert_eq!(guest.used(), (0, 1));
}

#[test]
fn configuration_is_read_in_any_piece() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.negotiate();
    let whole = |offset: u32, size: u32| {
        let mut body: Vec<u8> = [offset, size, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        body.resize(12 + size as usize, 0);
        body
    };
    for (offset, size) in [
        (0, 57),
        (0, 60),
        (0, 8),
        (32, 1),
        (12, 4),
        (0, 200),
        (56, 100),
    ] {
        guest.send(24, 0, &whole(offset, size), &[]);
        let body = guest.answer().unwrap();
        assert_eq!(body.len(), 12 + size as usize);
        if offset == 0 {
            assert_eq!(body[12..20], (SIZE as u64 / 512).to_le_bytes());
        }
        if (offset, size) == (12, 4) {
            assert_eq!(body[12..], 254u32.to_le_bytes());
        }
    }
}

#[test]
fn a_new_size_is_announced_and_valid() {
    let host = Host::new();
    let mut guest = start(&host);
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert_eq!(guest.ask(21, &[], &[theirs.as_raw_fd()]), Some(0));
    host.volumes.state().data.resize(SIZE * 2, 0);
    host.endpoint.as_ref().unwrap().resized(SIZE as u64 * 2);
    let mut notice = [0; 12];
    (&ours).read_exact(&mut notice).unwrap();
    assert_eq!(notice, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    guest.submit(0, 0, SIZE as u64 / 512, 512, WRITE);
    assert_eq!(guest.used(), (0, 513));
}

#[test]
fn a_read_only_volume_refuses_writes() {
    let volumes = MemoryVolumes::new(SIZE);
    let host = Host::with(volumes, |config| config.volume.read_only = true);
    let mut guest = start(&host);
    guest.submit(0, 1, 0, 512, 0);
    guest.used();
    guest.submit(1, 0, 0, 512, WRITE);
    guest.used();
    assert_eq!((guest.status(0), guest.status(1)), (1, 0));
    assert_eq!(host.volumes.state().journal.len(), 1);
}

#[test]
fn errors_of_the_volume_reach_the_guest() {
    let host = Host::new();
    host.volumes.state().fail_open = Some(ErrorCode::Damaged);
    let mut guest = start(&host);
    guest.submit(0, 0, 0, 512, WRITE);
    assert_eq!((guest.used(), guest.status(0)), ((0, 1), 1));
    assert_eq!(guest.stop_ring(), 1);
    host.volumes.state().fail_open = None;
    guest.start_ring(1, None);
    guest.submit(0, 0, 0, 512, WRITE);
    assert_eq!((guest.used(), guest.status(0)), ((0, 513), 0));
    host.volumes.state().fail = Some(ErrorCode::Io);
    guest.submit(0, 0, 0, 512, WRITE);
    assert_eq!((guest.used(), guest.status(0)), ((0, 1), 1));
    assert_eq!(host.status().open_failures, 1);
}

#[test]
fn a_volume_whose_last_session_is_ending_is_waited_for() {
    let host = Host::new();
    host.volumes.state().fail_open = Some(ErrorCode::InUse);
    let mut guest = start(&host);
    guest.submit(0, 0, 0, 512, WRITE);
    eventually("a third open", || host.volumes.state().opens >= 3);
    host.volumes.state().fail_open = None;
    assert_eq!((guest.used(), guest.status(0)), ((0, 513), 0));
}

#[test]
fn a_volume_that_stays_in_use_is_an_error() {
    let host = Host::new();
    host.volumes.state().fail_open = Some(ErrorCode::InUse);
    let mut guest = start(&host);
    guest.submit(0, 0, 0, 512, WRITE);
    assert_eq!((guest.used(), guest.status(0)), ((0, 1), 1));
    assert!(host.volumes.state().opens >= 3, "it was waited for");
}

#[test]
fn a_volume_for_which_there_is_no_slot_is_waited_for_and_not_reported() {
    let host = Host::new();
    host.volumes.state().fail_open = Some(ErrorCode::NoSpace);
    let mut guest = start(&host);
    guest.submit(0, 0, 0, 512, WRITE);
    eventually("a second open", || host.volumes.state().opens >= 2);
    assert_eq!(host.status().errors, 0);
    host.volumes.state().fail_open = None;
    assert_eq!((guest.used(), guest.status(0)), ((0, 513), 0));
    // A ring that stops meanwhile does not wait for the slot.
    guest.stop_ring();
    host.volumes.state().fail_open = Some(ErrorCode::NoSpace);
    guest.start_ring(1, None);
    eventually("another open", || host.status().open_failures >= 2);
    guest.stop_ring();
    assert_eq!(host.status().errors, 0);
}

#[test]
fn a_ring_without_interrupts_is_not_interrupted() {
    let host = Host::new();
    let mut guest = start(&host);
    eventually("that of the start", || guest.call.read().is_ok());
    guest
        .memory
        .write(crate::front_end::AVAIL, &[1, 0])
        .unwrap();
    guest.submit(0, 4, 0, 0, 0);
    guest.used();
    eventually("a batch", || host.status().calls_suppressed == 1);
    assert!(guest.call.read().is_err());
    guest
        .memory
        .write(crate::front_end::AVAIL, &[0, 0])
        .unwrap();
    guest.submit(0, 4, 0, 0, 0);
    guest.used();
    eventually("an interrupt", || guest.call.read().is_ok());
}

#[test]
fn a_volume_in_use_is_detached_only_by_force() {
    let mut host = Host::new();
    let guest = start(&host);
    let mut endpoint = host.endpoint.take().unwrap();
    endpoint.detach(Detach::IfUnused).unwrap_err();
    endpoint.detach(Detach::Force).unwrap();
    drop(endpoint);
    assert!(!std::path::Path::new(&host.socket).exists());
    assert_eq!(host.volumes.state().closes, 1);
    drop(guest);
}
