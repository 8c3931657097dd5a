//! Guests and front ends that lie: they harm nobody but themselves.

use std::io::Write;
use std::sync::atomic::Ordering;

use archipelago_doubles::memory_volumes::MemoryVolumes;
use proptest::prelude::*;
use xseg::Region;

use crate::front_end::{AVAIL, BUFFERS, FrontEnd, GUEST, MEMORY, RING, USER, WRITE, words};
use crate::host::{Host, SIZE, eventually};
use crate::log::{collect, lines};

const FAR_AHEAD: &str = "avail index 999 is more than the ring's 16 entries ahead of 0";

/// The device still serves a front end that behaves.
fn check_alive(host: &Host) {
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    guest.submit(0, 0, 0, 512, WRITE);
    assert_eq!((guest.used(), guest.status(0)), ((0, 513), 0));
}

#[test]
fn a_malformed_chain_with_a_status_byte_gets_a_status() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    // A bad address, and a readable piece after a writable one.
    for (address, flags) in [(GUEST + MEMORY, WRITE), (u64::MAX - 5, WRITE)] {
        guest.submit(0, 0, 0, 512, WRITE);
        guest.used();
        guest.descriptor(1, address, 512, 1 | flags, 2);
        guest.offer(0);
        guest.ring();
        assert_eq!((guest.used(), guest.status(0)), ((0, 1), 1));
    }
    assert_eq!(host.status().malformed, 2);
    assert!(guest.error.read().is_err());
}

#[test]
fn a_chain_without_an_end_breaks_its_ring_only() {
    type Lie = fn(&mut FrontEnd);
    let lies: [(&str, Lie); 10] = [
        ("has no end within 512 descriptors", |guest| {
            guest.descriptor(0, GUEST, 16, 1, 0);
        }),
        ("index 16 is not below the table's size 16", |guest| {
            guest.descriptor(0, GUEST, 16, 1, RING);
        }),
        ("does not end in a writable status byte", |guest| {
            guest.descriptor(0, GUEST, 16, 0, 0);
        }),
        ("stands in an indirect table", |guest| {
            guest.descriptor(0, GUEST, 16, 4, 0);
        }),
        ("indirect table of 17 bytes", |guest| {
            guest.descriptor(0, GUEST, 17, 4, 0);
        }),
        ("indirect table of 0 bytes", |guest| {
            guest.descriptor(0, GUEST, 0, 4, 0);
        }),
        ("has the flag NEXT", |guest| {
            guest.descriptor(0, GUEST, 16, 4 | 1, 1);
        }),
        (
            "indirect table of 16 bytes at 0x1ffff8 is not in",
            |guest| {
                guest.descriptor(0, GUEST + MEMORY - 8, 16, 4, 0);
            },
        ),
        ("not negotiated", |guest| {
            guest.features &= !(1 << 28);
            assert_eq!(guest.ask(2, &words(&[guest.features]), &[]), Some(0));
            guest.descriptor(0, GUEST, 16, 4, 0);
        }),
        (FAR_AHEAD, |guest| {
            guest
                .memory
                .store_u16(AVAIL + 2, 999, Ordering::Release)
                .unwrap();
        }),
    ];
    collect();
    let host = Host::new();
    for (count, (what, lie)) in lies.into_iter().enumerate() {
        let mut guest = FrontEnd::connect(&host.socket);
        guest.start();
        lie(&mut guest);
        if what != FAR_AHEAD {
            guest.offer(0);
        }
        guest.ring();
        eventually(what, || guest.error.read().is_ok());
        assert_eq!(host.status().broken_rings, count as u64 + 1, "{what}");
        let lines = lines(&host.socket, what);
        assert_eq!(lines.len(), 1, "{what}");
        assert!(lines[0].contains("queue=0"), "{lines:?}");
        let head = what == FAR_AHEAD || lines[0].contains("at head 0");
        assert!(head, "{lines:?}");
        drop(guest);
        check_alive(&host);
    }
}

#[test]
fn a_head_offered_twice_breaks_the_ring_and_is_done_once() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    host.volumes.state().hold = true;
    guest.submit(0, 1, 0, 512, 0);
    guest.offer(0);
    guest.ring();
    eventually("the error", || guest.error.read().is_ok());
    host.volumes.state().release(0);
    assert_eq!(guest.used().0, 0);
    assert_eq!(host.volumes.state().journal.len(), 1);
}

#[test]
fn memory_that_is_truncated_under_the_device_breaks_its_rings_only() {
    xseg::guard_against_truncation().unwrap();
    let (host, neighbour) = (Host::new(), Host::new());
    let mut other = FrontEnd::connect(&neighbour.socket);
    other.start();
    let mut guest = FrontEnd::connect(&host.socket);
    // Not sealed, as a memfd of QEMU's is not either.
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEMORY).unwrap();
    let fd = file.try_clone().unwrap().into();
    guest.memory = Region::from_fd(fd, 0, usize::try_from(MEMORY).unwrap()).unwrap();
    guest.start();
    guest.submit(0, 0, 0, 512, WRITE);
    assert_eq!((guest.used(), guest.status(0)), ((0, 513), 0));
    // The rings stay, the buffers go.
    file.set_len(BUFFERS).unwrap();
    guest.submit(1, 0, 0, 512, WRITE);
    eventually("the error", || guest.error.read().is_ok());
    assert_eq!(host.status().broken_rings, 1);
    drop(guest);
    check_alive(&host);
    other.submit(0, 0, 0, 512, WRITE);
    assert_eq!((other.used(), other.status(0)), ((0, 513), 0));
}

#[test]
fn a_front_end_that_starts_again_and_again_opens_the_volume_a_few_times_only() {
    let interval = std::time::Duration::from_secs(3600);
    let volumes = MemoryVolumes::new(SIZE);
    let host = Host::with(volumes, |config| config.start_interval = interval);
    let restless = || {
        let mut guest = FrontEnd::connect(&host.socket);
        guest.start();
        // Within one connection too.
        guest.stop_ring();
        guest.start_ring(0, None);
    };
    (0..8).for_each(|_| restless());
    // The next one is heard an hour later; a detach does not wait for that (when the host is dropped).
    let mut guest = FrontEnd::connect(&host.socket);
    guest.send(1, 0, &[], &[]);
    let patience = std::time::Duration::from_millis(300);
    guest.stream.set_read_timeout(Some(patience)).unwrap();
    assert!(guest.answer().is_none(), "the seventeenth start waits");
    assert_eq!(host.volumes.state().opens, 16);
}

/// The time is only ever too long: a slow machine passes.
#[test]
#[expect(clippy::disallowed_methods, reason = "a lower bound on the time")]
fn a_front_end_that_changes_its_memory_again_and_again_waits_for_its_turn() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.negotiate();
    let start = std::time::Instant::now();
    let slot = words(&[0, GUEST, MEMORY, USER, 0]);
    for _ in 0..300 {
        guest.add_memory();
        assert_eq!(guest.ask(38, &slot, &[]), Some(0));
    }
    let least = std::time::Duration::from_millis(2 * (300 - 128));
    assert!(
        start.elapsed() >= least,
        "one in two milliseconds after 128"
    );
}

#[test]
fn a_guest_whose_requests_cost_it_nothing_is_left_alone_for_a_while_and_served_again() {
    const PIECES: u16 = 511;
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    // A request of no known kind, as long as one may be, and each entry of the ring is it.
    let (header, status, table) = (BUFFERS, BUFFERS + 16, BUFFERS + 0x4000);
    guest.memory.write(header, &words(&[77, 0])).unwrap();
    for piece in 0..PIECES {
        let last = piece == PIECES - 1;
        let (at, flags) = if last { (status, WRITE) } else { (header, 1) };
        let rest = 1 << if piece == 0 { 4 } else { 0 } | u64::from(flags) << 32;
        let entry = words(&[GUEST + at, rest | u64::from(piece + 1) << 48]);
        let place = table + 16 * u64::from(piece);
        guest.memory.write(place, &entry).unwrap();
    }
    for head in 0..RING {
        guest.descriptor(head, GUEST + table, 16 * u32::from(PIECES), 4, 0);
    }
    eventually("a rest", || {
        (0..RING).for_each(|head| guest.offer(head));
        guest.ring();
        for _ in 0..RING {
            guest.used();
        }
        host.status().throttled > 0
    });
    let answered = host.status();
    assert_eq!(answered.unsupported, answered.others, "understood, refused");
    guest.submit(0, 0, 0, 512, WRITE);
    assert_eq!((guest.used(), guest.status(0)), ((0, 513), 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_rings_and_descriptors_harm_nobody(
        bytes in proptest::collection::vec(any::<u8>(), 16 * usize::from(RING)),
        nearly in any::<bool>(),
        heads in proptest::collection::vec(0..RING + 2, 1..20),
    ) {
        let host = Host::new();
        let mut guest = FrontEnd::connect(&host.socket);
        guest.features |= 1 << 29;
        guest.start();
        guest.memory.write(0, &bytes).unwrap();
        if nearly {
            for index in 0..RING {
                let at = usize::from(index) * 16;
                let address = GUEST + u64::from(bytes[at]) * 4096 + u64::from(bytes[at + 1]);
                let flags = u16::from(bytes[at + 2] & 7);
                let next = u16::from(bytes[at + 3]) % RING;
                guest.descriptor(index, address, u32::from(bytes[at + 4]) * 64, flags, next);
            }
        }
        for head in heads {
            guest.offer(head);
        }
        guest.ring();
        drop(guest);
        check_alive(&host);
    }

    #[test]
    fn random_messages_harm_nobody(messages in proptest::collection::vec(
        (0..45u32, 0..16u32, proptest::collection::vec(any::<u8>(), 0..64)), 1..20)) {
        let host = Host::new();
        let mut guest = FrontEnd::connect(&host.socket);
        guest.negotiate();
        for (request, flags, body) in messages {
            let header: Vec<u8> = [request, flags, u32::try_from(body.len()).unwrap()]
                .iter().flat_map(|word| word.to_le_bytes()).collect();
            let sent = guest.stream.write_all(&header).and_then(|()| guest.stream.write_all(&body));
            if sent.is_err() {
                break;
            }
        }
        drop(guest);
        check_alive(&host);
    }
}
