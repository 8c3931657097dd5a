//! A peer that breaks the rules, and what it costs.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::super::bell_fd::BellFd;
use super::super::layout::{self, Direction, Header};
use super::super::message::Message;
use super::super::socket::{self, Received};
use super::*;
use crate::mapping::{OwnHalf, PeerHalf};
use crate::port::{ClientPort, ServerPort};
use crate::region::Region;
use crate::ring::OwnWords;

/// A client or server made by hand, to lie with.
struct Liar {
    socket: OwnedFd,
    own: OwnHalf,
    peer: Option<PeerHalf>,
    _bells: Vec<BellFd>,
    _arena: Region,
}

fn lying_client(
    place: &Place,
    listener: &mut Listener,
    change: impl FnOnce(&OwnHalf),
) -> (Liar, Option<SharedServer>) {
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
    let bells = [(); 2].map(|()| BellFd::new().unwrap());
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
        bells[0].as_fd(),
        bells[1].as_fd(),
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
        Liar {
            socket,
            own,
            peer,
            _bells: bells.into(),
            _arena: arena,
        },
        server,
    )
}

fn lying_server(place: &Place) -> (Liar, SharedClient) {
    // A plain socket in the place of a listener, so that the welcome can lie.
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let mut client = SharedClient::connect(&place.path, options(OnServerDeath::Replay)).unwrap();
    let server = listener.accept().unwrap();
    client.service();
    let (socket, own) = server.into_parts();
    (
        Liar {
            socket,
            own,
            peer: None,
            _bells: Vec::new(),
            _arena: Region::anonymous(4096).unwrap(),
        },
        client,
    )
}

const TAIL_OF_REQUESTS: usize = 0x80 / 8;
const CURSOR_OF_COMPLETIONS: usize = 0x100 / 8;
const ENTRIES: usize = 0x1000 / 8;

#[test]
fn lies_of_a_client_end_its_channel_by_their_name() {
    let place = place();
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let (_, _header_lie) = lying_client(&place, &mut listener, |own| {
        own.store(6, 5, Ordering::Relaxed);
    });
    assert_eq!(listener.refused(), (1, Some(Violation::Header)));

    let tail = |own: &OwnHalf, tail| own.store(TAIL_OF_REQUESTS, tail, Ordering::Release);
    let check = |lie: &dyn Fn(&OwnHalf), accepted: usize, wanted: Violation| {
        let mut listener = Listener::bind(&place.path, Admission::own([ROLE]));
        let listener = listener.as_mut().expect("the last one is gone");
        let (liar, server) = lying_client(&place, listener, |_| {});
        let mut server = server.unwrap();
        lie(&liar.own);
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
fn a_client_that_does_not_take_its_answers_or_lies_about_it_is_cut_off() {
    let place = place();
    let mut listener = Listener::bind(&place.path, Admission::own([ROLE])).unwrap();
    let (liar, server) = lying_client(&place, &mut listener, |_| {});
    let mut server = server.unwrap();
    let mut rounds = 0;
    while !server.is_closed() {
        rounds += 1;
        assert!(rounds <= 3 * SIZE, "the ring of completions has an end");
        liar.own.store(
            ENTRIES + (rounds - 1) % SIZE * 8,
            (rounds as u64) << 16,
            Ordering::Relaxed,
        );
        liar.own
            .store(TAIL_OF_REQUESTS, rounds as u64, Ordering::Release);
        let submission = server.accept().unwrap();
        server.complete(answer(&submission));
        server.publish();
    }
    assert_eq!(rounds, 2 * SIZE + 1);
    assert_eq!(server.violation(), Some(Violation::Cursor));
    assert!(liar.peer.is_some());
    drop(server);
    let (liar, server) = lying_client(&place, &mut listener, |_| {});
    let mut server = server.unwrap();
    socket::send(&liar.socket, &Message::RegionRemove { id: 0 }, &[]).unwrap();
    server.service();
    assert_eq!(
        server.violation(),
        Some(Violation::Message),
        "the arena stays"
    );
}

#[test]
fn lies_of_a_server_end_its_channel_and_harm_no_request() {
    type Lie<'a> = &'a dyn Fn(&OwnHalf, u64);
    let lies: [(Lie<'_>, Violation); 4] = [
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
                // A believable one after it: nothing more is taken from a liar.
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
    for (lie, wanted) in lies {
        let place = place();
        let (liar, mut client) = lying_server(&place);
        client.submit(77, request(0)).unwrap();
        client.publish();
        lie(&liar.own, 1 << 16);
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
    let (liar, mut client) = lying_server(&place);
    client.submit(77, request(0)).unwrap();
    client.publish();
    for slot in 0..2 {
        liar.own
            .store(ENTRIES + slot * 4, 1 << 16, Ordering::Relaxed);
    }
    liar.own.store(CURSOR_OF_COMPLETIONS, 2, Ordering::Release);
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
        let (liar, server) = lying_client(&place, &mut listener, |_| {});
        let mut server = server.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let own = liar.own.clone();
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
                // Small numbers too, so that some lies are believable for a while.
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
        let (liar, server) = lying_client(&place, &mut listener, |_| {});
        let mut server = server.unwrap();
        for (index, value) in words {
            liar.own.store(ENTRIES + index, value, Ordering::Relaxed);
        }
        liar.own.store(TAIL_OF_REQUESTS, tail, Ordering::Release);
        let mut taken = 0;
        while let Some(_submission) = server.accept() {
            taken += 1;
        }
        prop_assert!(taken <= SIZE);
        prop_assert!(server.in_flight() == taken);
    }
}
