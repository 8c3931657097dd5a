//! What virtio 1.2 asks of a device (docs/virtio.md), where no other test shows it.

use archipelago_protocol::volume::VolumeOp;

use crate::front_end::{AVAIL, BUFFERS, FrontEnd, GUEST, WRITE, words};
use crate::host::{Host, SIZE, eventually};

const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

/// A front end whose guest has accepted `features`, offered or not; its ring runs.
fn start_with(host: &Host, features: u64) -> FrontEnd {
    let mut guest = FrontEnd::connect(&host.socket);
    guest.negotiate();
    assert_eq!(guest.ask(2, &words(&[features]), &[]), Some(0));
    guest.add_memory();
    guest.start_ring(0, None);
    guest
}

fn reads_and_writes(guest: &mut FrontEnd) {
    guest.submit(0, 1, 0, 512, 0);
    assert_eq!((guest.used(), guest.status(0)), ((0, 1), 0));
    guest.submit(0, 0, 0, 512, WRITE);
    assert_eq!((guest.used(), guest.status(0)), ((0, 513), 0));
}

#[test]
fn a_legacy_guest_that_accepts_what_its_front_end_showed_unasked_is_served() {
    let legacy = 1 << 30 | 1 << 28 | 1 << 9;
    for (bit, what) in [
        (24, "NOTIFY_ON_EMPTY"),
        (27, "ANY_LAYOUT"),
        (36, "ORDER_PLATFORM"),
    ] {
        let host = Host::new();
        let mut guest = start_with(&host, legacy | 1 << bit);
        reads_and_writes(&mut guest);
        assert_eq!(host.status().connections, 1, "{what}");
    }
}

#[test]
fn features_that_would_have_to_be_kept_are_refused() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.negotiate();
    // SCSI, ACCESS_PLATFORM, RING_PACKED, IN_ORDER, RING_RESET.
    for bit in [7, 33, 34, 35, 40] {
        let features = guest.features | 1 << bit;
        assert_eq!(guest.ask(2, &words(&[features]), &[]), Some(1), "bit {bit}");
    }
}

#[test]
fn the_write_only_flag_of_an_indirect_descriptor_is_ignored() {
    let table = BUFFERS + 0x3_0000;
    let (header, data, status) = (BUFFERS, BUFFERS + 4096, BUFFERS + 16);
    // Descriptors that stand in the ring itself, before the one that refers to the table.
    for (direct, flags) in [(0, INDIRECT), (0, INDIRECT | WRITE), (1, INDIRECT | WRITE)] {
        let host = Host::new();
        let mut guest = start_with(&host, crate::front_end::FEATURES);
        guest.memory.write(header, &words(&[0, 0])).unwrap();
        guest.memory.write(status, &[0xff]).unwrap();
        let rest = |len: u64, flags: u16, next: u64| len | u64::from(flags) << 32 | next << 48;
        let all = [
            [GUEST + header, rest(16, NEXT, 1)],
            [GUEST + data, rest(512, NEXT | WRITE, 2)],
            [GUEST + status, rest(1, WRITE, 0)],
        ];
        let mut entries: Vec<u64> = all[usize::from(direct)..].concat();
        if direct == 1 {
            guest.descriptor(0, GUEST + header, 16, NEXT, 1);
            entries[1] = rest(512, NEXT | WRITE, 1);
        }
        guest.memory.write(table, &words(&entries)).unwrap();
        let len = u32::try_from(entries.len() * 8).unwrap();
        guest.descriptor(direct, GUEST + table, len, flags, 0);
        guest.offer(0);
        guest.ring();
        assert_eq!(guest.used(), (0, 513), "{direct} before, flags {flags}");
        assert_eq!(guest.status(0), 0);
    }
}

#[test]
fn a_guest_that_cannot_flush_has_no_write_cache() {
    let host = Host::new();
    // CONFIG_WCE without FLUSH.
    let mut guest = start_with(&host, 1 << 32 | 1 << 30 | 1 << 11);
    let byte = [32u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9];
    guest.send(24, 0, &byte, &[]);
    assert_eq!(guest.answer().unwrap()[12], 0, "the write-cache byte");
    let on = [32u8, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1];
    for round in 0..2 {
        guest.submit(0, 1, 0, 512, 0);
        guest.used();
        let last = host.volumes.state().journal.last().unwrap().op;
        assert_eq!(last, VolumeOp::Write { durable: true }, "round {round}");
        assert_eq!(guest.ask(25, &on, &[]), Some(0));
    }
}

#[test]
fn an_unknown_flag_is_unsupported_whatever_else_is_wrong() {
    let host = Host::new();
    let mut guest = start_with(&host, crate::front_end::FEATURES);
    let end = SIZE as u64 / 512;
    let (discard, zeroes) = (11, 13);
    // kind, sector, sectors, flags, status
    for (kind, sector, sectors, flags, status) in [
        (discard, 0, 8, 0, 0),
        (discard, 0, 8, 1, 2),
        (discard, end, 8, 1, 2),
        (discard, end, 8, 0, 1),
        (discard, 0, u64::from(u32::MAX), 2, 2),
        (zeroes, 0, 8, 1, 0),
        (zeroes, 0, 8, 2, 2),
        (zeroes, end, 8, 3, 2),
        (zeroes, end, 8, 1, 1),
    ] {
        let range = words(&[sector, sectors | flags << 32]);
        let at = FrontEnd::buffer(0) + 4096;
        guest.memory.write(at, &range).unwrap();
        guest.submit(0, kind, 0, 16, 0);
        guest.used();
        assert_eq!(
            guest.status(0),
            status,
            "{kind}: {sectors} at {sector}, flags {flags}"
        );
    }
}

#[test]
fn a_legacy_guest_is_interrupted_when_nothing_is_left_if_it_asked_for_that() {
    let legacy = 1 << 30 | 1 << 9;
    for (features, wanted) in [(legacy, false), (legacy | 1 << 24, true)] {
        let host = Host::new();
        let mut guest = start_with(&host, features);
        // NO_INTERRUPT.
        guest.memory.write(AVAIL, &[1, 0]).unwrap();
        guest.submit(0, 4, 0, 0, 0);
        guest.used();
        eventually("a batch", || {
            host.status().calls + host.status().calls_suppressed == 1
        });
        assert_eq!(host.status().calls == 1, wanted);
    }
}
