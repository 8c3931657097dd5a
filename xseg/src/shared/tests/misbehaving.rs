//! A peer that breaks the rules, and what it costs.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::super::doorbell_fd::DoorbellFd;
use super::super::layout::{self, Direction, Header};
use super::super::message::Message;
use super::super::socket::{self, Received};
use super::*;
use crate::mapping::{OwnHalf, PeerHalf};
use crate::port::{ClientPort, ServerPort};
use crate::region::Region;
use crate::ring::OwnWords;

/// A client or server made by hand, that breaks the rules.
struct MisbehavingPeer {
    socket: OwnedFd,
    own: OwnHalf,
    peer: Option<PeerHalf>,
    _doorbells: Vec<DoorbellFd>,
    _arena: Region,
}

fn misbehaving_client(
    place: &Place,
    listener: &mut Listener,
    change: impl FnOnce(&OwnHalf),
) -> (MisbehavingPeer, Option<SharedServer>) {
    let socket = socket::connect_to(&place.path).unwrap();
    let len = layout::memory_len(SIZE);
    let own = OwnHalf::new(len).unwrap();
    Header {
        direction: Direction::ClientToServer,
        size: SIZE,
        client_id: 1,
        incarnation: 1,
    }
    .write(&own);
    change(&own);
    let arena = Region::anonymous(4096).unwrap();
    let doorbells = [(); 2].map(|()| DoorbellFd::new().unwrap());
    let hello = Message::Hello {
        role: ROLE,
        client_id: 1,
        incarnation: 1,
        size: SIZE as u64,
        arena_len: 4096,
    };
    use std::os::fd::AsFd;
    let fds = [
        own.descriptor().as_fd(),
        arena.descriptor().0.as_fd(),
        doorbells[0].as_fd(),
        doorbells[1].as_fd(),
    ];
    socket::send(&socket, &hello, &fds).unwrap();
    let mut server = listener.accept();
    let mut peer = None;
    if let Received::Message(Message::Welcome { .. }, mut fds) = socket::next(&socket) {
        peer = Some(PeerHalf::new(fds.pop().unwrap(), len).unwrap());
    }
    if let Some(server) = &mut server {
        server.start();
    }
    (
        MisbehavingPeer {
            socket,
            own,
            peer,
            _doorbells: doorbells.into(),
            _arena: arena,
        },
        server,
    )
}

fn misbehaving_server(place: &Place) -> (MisbehavingPeer, SharedClient) {
    // A plain socket in the place of a listener, so that the welcome can be anything.
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let mut client = SharedClient::connect(&place.path, options(OnServerDeath::Replay)).unwrap();
    let server = listener.accept().unwrap();
    client.service();
    let (socket, own) = server.into_parts();
    (
        MisbehavingPeer {
            socket,
            own,
            peer: None,
            _doorbells: Vec::new(),
            _arena: Region::anonymous(4096).unwrap(),
        },
        client,
    )
}

const TAIL_OF_REQUESTS: usize = 0x80 / 8;
const CURSOR_OF_COMPLETIONS: usize = 0x100 / 8;
const ENTRIES: usize = 0x1000 / 8;

#[test]
fn violations_of_a_client_end_its_channel_by_their_name() {
    let place = place();
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let (_, _refused) = misbehaving_client(&place, &mut listener, |own| {
        own.store(6, 5, Ordering::Relaxed);
    });
    assert_eq!(listener.refused(), (1, Some(Violation::Header)));

    let tail = |own: &OwnHalf, tail| own.store(TAIL_OF_REQUESTS, tail, Ordering::Release);
    let check = |violate: &dyn Fn(&OwnHalf), accepted: usize, wanted: Violation| {
        let mut listener = Listener::bind(&place.path, Admission::own([ROLE]));
        let listener = listener.as_mut().expect("the last one is gone");
        let (misbehaving, server) = misbehaving_client(&place, listener, |_| {});
        let mut server = server.unwrap();
        violate(&misbehaving.own);
        for _ in 0..accepted {
            assert!(server.accept().is_some(), "{wanted}");
        }
        assert_eq!(server.accept(), None);
        assert!(server.is_closed());
        assert_eq!(server.violation(), Some(wanted));
    };
    drop(listener);
    check(&|own| tail(own, SIZE as u64 + 1), 0, Violation::Cursor);
    check(&|own| tail(own, u64::MAX), 0, Violation::Cursor);
    check(&|own| tail(own, 1), 0, Violation::Tag);
    let tags = |own: &OwnHalf, list: &[u64]| {
        for (slot, tag) in list.iter().enumerate() {
            own.store(ENTRIES + slot * 8, *tag, Ordering::Relaxed);
        }
        tail(own, list.len() as u64);
    };
    check(&|own| tags(own, &[1 << 16, 2 << 16]), 1, Violation::Tag);
    check(
        &|own| tags(own, &[1 << 16 | SIZE as u64]),
        0,
        Violation::Tag,
    );
}

#[test]
fn a_client_that_does_not_take_its_answers_or_breaks_its_cursor_is_cut_off() {
    let place = place();
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let (misbehaving, server) = misbehaving_client(&place, &mut listener, |_| {});
    let mut server = server.unwrap();
    let mut rounds = 0;
    while !server.is_closed() {
        rounds += 1;
        assert!(rounds <= 3 * SIZE, "the ring of completions has an end");
        misbehaving.own.store(
            ENTRIES + (rounds - 1) % SIZE * 8,
            (rounds as u64) << 16,
            Ordering::Relaxed,
        );
        misbehaving
            .own
            .store(TAIL_OF_REQUESTS, rounds as u64, Ordering::Release);
        let submission = server.accept().unwrap();
        server.complete(answer(&submission));
        server.publish();
    }
    assert_eq!(rounds, 2 * SIZE + 1);
    assert_eq!(server.violation(), Some(Violation::Cursor));
    assert!(misbehaving.peer.is_some());
    drop(server);
    let (misbehaving, server) = misbehaving_client(&place, &mut listener, |_| {});
    let mut server = server.unwrap();
    socket::send(&misbehaving.socket, &Message::RegionRemove { id: 0 }, &[]).unwrap();
    server.service();
    assert_eq!(
        server.violation(),
        Some(Violation::Message),
        "the arena stays"
    );
}

#[test]
fn violations_of_a_server_end_its_channel_and_harm_no_request() {
    type Break<'a> = &'a dyn Fn(&OwnHalf, u64);
    let violations: [(Break<'_>, Violation); 4] = [
        (
            &|own, _| {
                own.store(
                    CURSOR_OF_COMPLETIONS,
                    2 * SIZE as u64 + 1,
                    Ordering::Release,
                );
            },
            Violation::Cursor,
        ),
        (
            &|own, _| own.store(CURSOR_OF_COMPLETIONS, 1, Ordering::Release),
            Violation::Completion,
        ),
        (
            &|own, tag| {
                own.store(ENTRIES, tag + (1 << 16), Ordering::Relaxed);
                // A valid one after it: nothing more is taken from a misbehaving peer.
                own.store(ENTRIES + 4, tag, Ordering::Relaxed);
                own.store(CURSOR_OF_COMPLETIONS, 2, Ordering::Release);
            },
            Violation::Completion,
        ),
        (
            &|own, tag| {
                own.store(ENTRIES, tag | 0xffff, Ordering::Relaxed);
                own.store(CURSOR_OF_COMPLETIONS, 1, Ordering::Release);
            },
            Violation::Completion,
        ),
    ];
    for (violate, wanted) in violations {
        let place = place();
        let (misbehaving, mut client) = misbehaving_server(&place);
        client.submit(77, request(0)).unwrap();
        client.publish();
        violate(&misbehaving.own, 1 << 16);
        assert_eq!(client.complete(), None);
        assert_eq!(client.complete(), None);
        assert!(!client.is_connected());
        assert_eq!(client.violations(), (1, Some(wanted)));
        assert_eq!(client.in_flight(), 1, "an honest successor gets it");
        let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
        let mut server = meet(&mut listener, &mut client);
        let submission = server.accept().unwrap();
        server.complete(answer(&submission));
        server.publish();
        assert_eq!(client.complete().unwrap().0, 77);
    }
}

#[test]
fn an_answer_given_twice_breaks_the_channel() {
    let place = place();
    let (misbehaving, mut client) = misbehaving_server(&place);
    client.submit(77, request(0)).unwrap();
    client.publish();
    for slot in 0..2 {
        misbehaving
            .own
            .store(ENTRIES + slot * 4, 1 << 16, Ordering::Relaxed);
    }
    misbehaving
        .own
        .store(CURSOR_OF_COMPLETIONS, 2, Ordering::Release);
    assert_eq!(client.complete().unwrap().0, 77);
    assert_eq!(client.complete(), None);
    assert_eq!(client.violations(), (1, Some(Violation::Completion)));
}

#[test]
fn a_peer_that_scribbles_without_end_harms_only_its_own_channel() {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    let place = place();
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let mut neighbour = SharedClient::connect(&place.path, options(OnServerDeath::Replay)).unwrap();
    let mut neighbours_server = meet(&mut listener, &mut neighbour);
    for seed in 1..=20u64 {
        let (misbehaving, server) = misbehaving_client(&place, &mut listener, |_| {});
        let mut server = server.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let own = misbehaving.own.clone();
        let stopped = Arc::clone(&stop);
        let scribbler = std::thread::spawn(move || {
            let mut state = seed;
            while !stopped.load(Ordering::Relaxed) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let word = match state >> 60 {
                    0..4 => TAIL_OF_REQUESTS,
                    4 => CURSOR_OF_COMPLETIONS,
                    5 => layout::SLEEP,
                    6 => usize::try_from(state >> 40).unwrap() % ENTRIES,
                    _ => ENTRIES + usize::try_from(state >> 40).unwrap() % (SIZE * 8),
                };
                // Small numbers too, so that some violations are valid entries for a while.
                let value = if state & 8 == 0 {
                    state >> 32
                } else {
                    state >> 32 & 7
                };
                own.store(word, value, Ordering::Release);
            }
        });
        let mut turns = 0u64;
        while !server.is_closed() && turns < 100_000 {
            turns += 1;
            for turn in 0.. {
                let Some(submission) = server.accept() else {
                    break;
                };
                assert!(turn <= SIZE, "no more is open than the ring has entries");
                if submission.offset % 2 == 0 {
                    server.complete(answer(&submission));
                    break;
                }
            }
            server.publish();
            if server.prepare_sleep() {
                server.wake();
            }
            server.service();
            neighbour.submit(turns, request(turns)).unwrap();
            neighbour.publish();
            let submission = neighbours_server.accept().unwrap();
            neighbours_server.complete(answer(&submission));
            neighbours_server.publish();
            let (cookie, completion) = neighbour.complete().unwrap();
            assert_eq!((cookie, completion.values[0]), (turns, turns));
        }
        stop.store(true, Ordering::Relaxed);
        scribbler.join().unwrap();
        assert!(server.is_closed(), "seed {seed}: scribbling was found out");
    }
    assert!(neighbour.is_connected() && !neighbours_server.is_closed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // Whatever stands in the client's half, a server hands out at most a ring's worth of requests and survives.
    #[test]
    fn any_half_of_a_client_is_survived(words in proptest::collection::vec((0usize..32, any::<u64>()), 1..20), tail in 0u64..10) {
        let place = place();
        let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
        let (misbehaving, server) = misbehaving_client(&place, &mut listener, |_| {});
        let mut server = server.unwrap();
        for (index, value) in words {
            misbehaving.own.store(ENTRIES + index, value, Ordering::Relaxed);
        }
        misbehaving.own.store(TAIL_OF_REQUESTS, tail, Ordering::Release);
        let mut taken = 0;
        while let Some(_submission) = server.accept() {
            taken += 1;
        }
        prop_assert!(taken <= SIZE);
        prop_assert!(server.in_flight() == taken);
    }
}
