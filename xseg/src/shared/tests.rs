//! Both ends in one process, and peers that lie. Real deaths of real processes: `tests/death.rs`.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;

use super::layout::{self, Direction, Header};
use super::message::Message;
use super::socket::{self, Received};
use super::*;
use crate::entry::{Completion, Submission};
use crate::mapping::{OwnHalf, PeerHalf};
use crate::port::{ClientPort, PortError, ServerPort};
use crate::region::{Region, RegionId};
use crate::ring::OwnWords;

const SIZE: usize = 4;

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    Place {
        _directory: directory,
        path,
    }
}

fn options(on_server_death: OnServerDeath) -> ConnectOptions {
    ConnectOptions {
        role: 7,
        client_id: 42,
        ring_size: SIZE,
        arena_len: 8192,
        on_server_death,
        allowed_uids: Vec::new(),
    }
}

fn pair(place: &Place, on_server_death: OnServerDeath) -> (Listener, SharedClient, SharedServer) {
    let mut listener = Listener::bind(&place.path, &[]).unwrap();
    let mut client = SharedClient::connect(&place.path, options(on_server_death)).unwrap();
    let server = meet(&mut listener, &mut client);
    (listener, client, server)
}

/// Lets a client and the next server find each other.
fn meet(listener: &mut Listener, client: &mut SharedClient) -> SharedServer {
    client.service();
    let mut server = listener.accept().expect("the hello is there");
    server.start();
    for _ in 0..4 {
        client.service();
        server.service();
    }
    assert!(client.is_connected());
    server
}

fn request(offset: u64) -> Submission {
    Submission {
        offset,
        ..Submission::default()
    }
}

fn answer(submission: &Submission) -> Completion {
    Completion {
        tag: submission.tag,
        values: [submission.offset, 0],
        ..Completion::default()
    }
}

fn readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn requests_and_regions_pass_and_the_bell_rings_for_sleepers_only() {
    let place = place();
    let (_listener, mut client, mut server) = pair(&place, OnServerDeath::Replay);
    assert_eq!(
        (server.role(), server.client_id(), server.incarnation()),
        (7, 42, 1)
    );
    assert_eq!(
        u32::try_from(server.peer_pid()).unwrap(),
        std::process::id()
    );
    let region = Region::anonymous(4096).unwrap();
    region.write(5, b"guest").unwrap();
    client.add_region(RegionId(3), region).unwrap();
    assert!(!client.region_ready(RegionId(3)));
    server.service();
    client.service();
    assert!(client.region_ready(RegionId(3)));
    let mut bytes = [0; 5];
    server
        .regions()
        .get(RegionId(3))
        .unwrap()
        .read(5, &mut bytes)
        .unwrap();
    assert_eq!(&bytes, b"guest");
    client.arena().store_u32(4, 99, Ordering::Relaxed).unwrap();
    assert_eq!(
        server
            .regions()
            .get(RegionId::ARENA)
            .unwrap()
            .load_u32(4, Ordering::Relaxed),
        Ok(99)
    );

    for round in 0..20 {
        for n in 0..SIZE as u64 {
            client.submit(round * 10 + n, request(n)).unwrap();
        }
        assert_eq!(client.submit(0, request(0)), Err(PortError::Full));
        assert_eq!(server.accept(), None, "not published");
        assert!(server.prepare_sleep());
        client.publish();
        assert!(readable(server.fds()[0]));
        server.wake();
        assert!(!readable(server.fds()[0]));
        assert!(!server.prepare_sleep(), "there is work");
        for n in 0..SIZE as u64 {
            let submission = server.accept().unwrap();
            assert_eq!(submission.offset, n);
            server.complete(answer(&submission));
        }
        server.publish();
        assert!(!readable(client.fds()[0]), "nobody sleeps there");
        for n in 0..SIZE as u64 {
            assert_eq!(client.complete().unwrap().0, round * 10 + n);
        }
        assert!(client.prepare_sleep());
        client.wake();
    }
    assert_eq!(
        (
            client.submitted(),
            client.in_flight(),
            server.in_flight(),
            server.accepted()
        ),
        (80, 0, 0, 80)
    );
    client.remove_region(RegionId(3));
    server.service();
    assert!(server.regions().get(RegionId(3)).is_none());
    drop(client);
    server.service();
    assert!(server.is_closed());
}

#[test]
fn many_regions_are_all_acknowledged() {
    let place = place();
    let (_listener, mut client, mut server) = pair(&place, OnServerDeath::Replay);
    let region = Region::anonymous(4096).unwrap();
    for id in 1..=500 {
        client.add_region(RegionId(id), region.clone()).unwrap();
    }
    client.remove_region(RegionId(500));
    for _ in 0..100 {
        server.service();
        client.service();
    }
    assert!((1..500).all(|id| client.region_ready(RegionId(id))));
    assert!(!client.region_ready(RegionId(500)) && server.regions().get(RegionId(500)).is_none());
}

#[test]
fn replay_sends_what_is_in_flight_again_in_order_and_with_its_regions() {
    let place = place();
    let (listener, mut client, mut server) = pair(&place, OnServerDeath::Replay);
    client
        .add_region(RegionId(1), Region::anonymous(4096).unwrap())
        .unwrap();
    server.service();
    client.service();
    client.arena().write(0, b"kept").unwrap();
    for n in 0..4 {
        client.submit(100 + n, request(n)).unwrap();
    }
    client.publish();
    let taken: Vec<Submission> = (0..3).map(|_| server.accept().unwrap()).collect();
    server.complete(answer(&taken[1]));
    server.publish();
    server.complete(answer(&taken[2]));
    drop(server);
    drop(listener);

    assert!(!client.service());
    assert!(!client.is_connected());
    assert_eq!(client.incarnation(), 2);
    assert!(
        !client.prepare_sleep(),
        "an answer of the dead server waits"
    );
    assert_eq!(
        client.credits(),
        0,
        "an answer that was not taken holds its credit"
    );
    assert_eq!(client.complete().unwrap().0, 101);
    client.submit(104, request(4)).unwrap();

    let mut listener = Listener::bind(&place.path, &[]).unwrap();
    client.service();
    let mut server = listener.accept().unwrap();
    server.start();
    client.service();
    assert_eq!(server.accept(), None, "the region is not there yet");
    assert!(!client.is_connected());
    server.service();
    client.service();
    assert!(client.is_connected());
    assert_eq!(server.incarnation(), 2);
    assert!(client.region_ready(RegionId(1)));
    assert!(
        server.regions().get(RegionId(1)).is_some(),
        "before any request that names it"
    );
    let mut kept = [0; 4];
    server
        .regions()
        .get(RegionId::ARENA)
        .unwrap()
        .read(0, &mut kept)
        .unwrap();
    assert_eq!(&kept, b"kept");
    let again: Vec<Submission> = std::iter::from_fn(|| server.accept()).collect();
    assert_eq!(
        again
            .iter()
            .map(|submission| submission.offset)
            .collect::<Vec<_>>(),
        [0, 2, 3, 4]
    );
    for submission in &again {
        server.complete(answer(submission));
    }
    server.publish();
    let cookies: Vec<u64> = std::iter::from_fn(|| client.complete())
        .map(|(cookie, _)| cookie)
        .collect();
    assert_eq!(cookies, [100, 102, 103, 104], "each once");
}

#[test]
fn report_forgets_what_was_in_flight_and_says_so() {
    let place = place();
    let (mut listener, mut client, mut server) = pair(&place, OnServerDeath::Report);
    client.submit(1, request(1)).unwrap();
    client.publish();
    let submission = server.accept().unwrap();
    server.complete(answer(&submission));
    server.publish();
    drop(server);
    client.service();
    assert_eq!(
        (
            client.incarnation(),
            client.in_flight(),
            client.is_connected()
        ),
        (2, 0, false)
    );
    assert_eq!(client.complete(), None, "no answer of a former server");
    assert_eq!(client.submit(2, request(2)), Err(PortError::Broken));
    let mut server = meet(&mut listener, &mut client);
    client.submit(2, request(2)).unwrap();
    client.publish();
    assert_eq!(server.accept().unwrap().offset, 2);
    assert_eq!(client.incarnation(), 2);
}

#[test]
fn a_server_takes_nothing_before_it_is_started_and_counts_what_a_dead_client_left() {
    let place = place();
    let mut listener = Listener::bind(&place.path, &[]).unwrap();
    let mut client = SharedClient::connect(&place.path, options(OnServerDeath::Replay)).unwrap();
    let mut server = listener.accept().unwrap();
    for n in 0..3 {
        client.submit(n, request(n)).unwrap();
    }
    client.service();
    client.publish();
    assert_eq!(server.accept(), None);
    assert!(server.prepare_sleep());
    server.start();
    let first = server.accept().unwrap();
    let second = server.accept().unwrap();
    drop(client);
    server.service();
    assert!(server.is_closed());
    assert_eq!(
        server.accept(),
        None,
        "what was not started is not started any more"
    );
    assert_eq!(server.in_flight(), 2);
    server.complete(answer(&first));
    server.complete(answer(&second));
    server.publish();
    assert_eq!(server.in_flight(), 0);
}

#[test]
fn a_listener_replaces_a_dead_socket_but_not_a_living_one() {
    use std::os::unix::fs::PermissionsExt;
    let place = place();
    let first = Listener::bind(&place.path, &[]).unwrap();
    let mode = std::fs::metadata(&place.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        Listener::bind(&place.path, &[]).unwrap_err().kind(),
        std::io::ErrorKind::AddrInUse
    );
    drop(first);
    let mut second = Listener::bind(&place.path, &[]).unwrap();
    let silent: Vec<OwnedFd> = (0..60)
        .map(|_| socket::connect_to(&place.path).unwrap())
        .collect();
    assert!(second.accept().is_none());
    let more: Vec<OwnedFd> = (0..60)
        .map(|_| socket::connect_to(&place.path).unwrap())
        .collect();
    let mut client = SharedClient::connect(&place.path, options(OnServerDeath::Replay)).unwrap();
    let server = second.accept().or_else(|| second.accept());
    assert!(server.is_some(), "the silent ones are pushed out");
    client.service();
    assert!(client.is_connected());
    drop((silent, more));
}

/// A client or server made by hand, to lie with.
struct Liar {
    socket: OwnedFd,
    own: OwnHalf,
    peer: Option<PeerHalf>,
    _bells: Vec<super::bell_fd::BellFd>,
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
    let bells = [(); 2].map(|()| super::bell_fd::BellFd::new().unwrap());
    let hello = Message::Hello {
        role: 0,
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
    let mut listener = Listener::bind(&place.path, &[]).unwrap();
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
    let mut listener = Listener::bind(&place.path, &[]).unwrap();
    let (_, _header_lie) = lying_client(&place, &mut listener, |own| {
        own.store(6, 5, Ordering::Relaxed);
    });
    assert_eq!(listener.refused(), (1, Some(Violation::Header)));

    let tail = |own: &OwnHalf, tail| own.store(TAIL_OF_REQUESTS, tail, Ordering::Release);
    let check = |lie: &dyn Fn(&OwnHalf), accepted: usize, wanted: Violation| {
        let mut listener = Listener::bind(&place.path, &[]);
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
    let mut listener = Listener::bind(&place.path, &[]).unwrap();
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
        let mut listener = Listener::bind(&place.path, &[]).unwrap();
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
    let mut listener = Listener::bind(&place.path, &[]).unwrap();
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
        let mut listener = Listener::bind(&place.path, &[]).unwrap();
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
