//! The blocker peer as its clients see it, over backends that the test holds in its hand.

#![cfg(test)]

use std::collections::{BTreeSet, VecDeque};

use archipelago_blocker::{Backend, BlockerPeer, ChannelId, ENTRIES_PER_TURN, Rights};
use archipelago_doubles::MemoryBackend;
use archipelago_protocol::object::{
    Memory, ObjectId, ObjectOp, ObjectReply, ObjectRequest, SCATTER_MAX,
};
use archipelago_protocol::{Access, Epoch, ErrorCode, Grants, Lineage};
use archipelago_runtime::{Peer, Progress};
use xseg::local::{LocalClient, channel};
use xseg::{ClientPort, Region, RegionId, Server, Span, Submission};

/// Replies when told to, in the order that the test wants.
#[derive(Debug, Default)]
struct Manual {
    started: Vec<(u64, ObjectRequest)>,
    replies: VecDeque<(u64, ObjectReply)>,
}

impl Backend for Manual {
    fn name(&self) -> &str {
        "manual"
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, _memory: &[Span]) {
        self.started.push((ticket, *request));
    }

    fn poll(&mut self) -> Option<(u64, ObjectReply)> {
        self.replies.pop_front()
    }
}

impl Manual {
    fn reply(&mut self, index: usize) {
        let (ticket, request) = self.started.remove(index);
        self.replies
            .push_back((ticket, ObjectReply::done(request.len)));
    }
}

fn connect<B: Backend>(peer: &mut BlockerPeer<B>) -> (LocalClient, ChannelId) {
    connect_with(peer, Rights::All)
}

fn connect_with<B: Backend>(peer: &mut BlockerPeer<B>, rights: Rights) -> (LocalClient, ChannelId) {
    let (client, server) = channel(256, 1 << 20).unwrap();
    let id = peer.add_channel(Server::from(server), rights);
    (client, id)
}

fn object() -> ObjectId {
    ObjectId::data(Lineage(1), Epoch(1))
}

fn request(op: ObjectOp, offset: u64, len: u32) -> ObjectRequest {
    ObjectRequest {
        offset,
        len,
        ..ObjectRequest::new(op, object())
    }
}

/// Cookies and results that have come.
fn completions(client: &mut LocalClient) -> Vec<(u64, Result<u32, ErrorCode>)> {
    std::iter::from_fn(|| client.complete())
        .map(|(cookie, completion)| (cookie, ObjectReply::decode(&completion).result))
        .collect()
}

#[test]
fn what_a_channel_may_not_ask_for_is_denied_and_reaches_no_backend() {
    let mut peer = BlockerPeer::new(Manual::default());
    let (mut volume, _) = connect_with(&mut peer, Rights::Granted);
    let (mut mapper, _) = connect(&mut peer);
    let swap = ObjectRequest::new(ObjectOp::CompareAndSwap, ObjectId::head(Lineage(1)));
    let log = ObjectRequest::new(ObjectOp::Write, ObjectId::log(Lineage(1), 1));
    for (cookie, request) in [swap, log].into_iter().enumerate() {
        volume.submit(cookie as u64, request.encode()).unwrap();
    }
    let write = request(ObjectOp::Write, 0, 512);
    volume.submit(2, write.encode()).unwrap();
    mapper.submit(3, swap.encode()).unwrap();
    peer.poll();
    assert_eq!(
        completions(&mut volume),
        [0, 1, 2].map(|cookie| (cookie, Err(ErrorCode::Denied)))
    );
    let mut grants = Grants::default();
    grants.allow(write.id.lineage, Access::Write);
    peer.set_grants(grants);
    volume.submit(4, write.encode()).unwrap();
    peer.poll();
    let started: Vec<ObjectOp> = peer
        .backend()
        .started
        .iter()
        .map(|(_, request)| request.op)
        .collect();
    assert_eq!(started, [ObjectOp::CompareAndSwap, ObjectOp::Write]);
    let counters = peer.counters();
    assert_eq!((counters.denied, counters.failed), (3, 3));
}

#[test]
fn requests_of_several_channels_reach_the_backend_and_come_back() {
    let mut peer = BlockerPeer::new(MemoryBackend::new());
    let (mut writer, _) = connect(&mut peer);
    let (mut reader, _) = connect(&mut peer);
    writer.arena().write(4096, &[7; 512]).unwrap();
    let write = ObjectRequest {
        memory: Memory {
            region: 0,
            count: 0,
            offset: 4096,
        },
        ..request(ObjectOp::Write, 0, 512)
    };
    writer.submit(1, write.encode()).unwrap();
    assert_eq!(peer.poll(), Progress::Busy);
    assert_eq!(completions(&mut writer), [(1, Ok(512))]);
    reader
        .submit(2, request(ObjectOp::Read, 0, 512).encode())
        .unwrap();
    peer.poll();
    assert_eq!(completions(&mut reader), [(2, Ok(512))]);
    let mut bytes = [0; 512];
    reader.arena().read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 512]);
    assert_eq!(peer.poll(), Progress::Idle);
    let counters = peer.counters();
    assert_eq!(
        (
            counters.requests,
            counters.read_bytes,
            counters.written_bytes
        ),
        (2, 512, 512)
    );
}

#[test]
fn scatter_lists_name_any_region_of_the_channel() {
    let mut peer = BlockerPeer::new(MemoryBackend::new());
    let (mut client, _) = connect(&mut peer);
    let guest = Region::anonymous(8192).unwrap();
    guest.write(1024, &[5; 512]).unwrap();
    client.add_region(RegionId(3), guest).unwrap();
    client.arena().write(0, &[9; 512]).unwrap();
    let entry = |region: u32, offset: u64| {
        [
            &region.to_le_bytes()[..],
            &512_u32.to_le_bytes(),
            &offset.to_le_bytes(),
        ]
        .concat()
    };
    client
        .arena()
        .write(65_536, &[entry(3, 1024), entry(0, 0)].concat())
        .unwrap();
    let write = ObjectRequest {
        memory: Memory {
            region: 0,
            count: 2,
            offset: 65_536,
        },
        ..request(ObjectOp::Write, 0, 1024)
    };
    client.submit(1, write.encode()).unwrap();
    client
        .submit(2, request(ObjectOp::Read, 0, 1024).encode())
        .unwrap();
    peer.poll();
    assert_eq!(completions(&mut client), [(1, Ok(1024)), (2, Ok(1024))]);
    let mut bytes = [0; 1024];
    client.arena().read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [[5; 512], [9; 512]].concat()[..]);
}

#[test]
fn bad_requests_are_answered_and_the_channel_goes_on() {
    let mut peer = BlockerPeer::new(MemoryBackend::new());
    let (mut client, _) = connect(&mut peer);
    let write = request(ObjectOp::Write, 0, 512).encode();
    let bad = [
        (Submission { op: 99, ..write }, ErrorCode::Unsupported),
        (
            Submission {
                handle: 77,
                ..write
            },
            ErrorCode::Invalid,
        ),
        (
            Submission {
                region: 42,
                ..write
            },
            ErrorCode::Invalid,
        ),
        (
            Submission {
                region_offset: (1 << 20) - 511,
                ..write
            },
            ErrorCode::Invalid,
        ),
        (
            Submission {
                region_offset: u64::MAX,
                ..write
            },
            ErrorCode::Invalid,
        ),
        (
            Submission {
                count: SCATTER_MAX,
                ..write
            },
            ErrorCode::Invalid,
        ),
        (
            Submission {
                count: 1,
                region_offset: (1 << 20) - 8,
                ..write
            },
            ErrorCode::Invalid,
        ),
    ];
    for (cookie, (entry, code)) in (1..).zip(bad) {
        client.submit(cookie, entry).unwrap();
        peer.poll();
        assert_eq!(completions(&mut client), [(cookie, Err(code))], "{entry:?}");
    }
    client.submit(100, write).unwrap();
    peer.poll();
    assert_eq!(completions(&mut client), [(100, Ok(512))]);
    assert_eq!(peer.counters().refused, 7);
    assert_eq!(peer.in_flight(), 0);
}

#[test]
fn a_busy_channel_gets_its_turn_and_no_more() {
    let mut peer = BlockerPeer::new(Manual::default());
    let (mut busy, _) = connect(&mut peer);
    let (mut quiet, _) = connect(&mut peer);
    for cookie in 0..200 {
        busy.submit(cookie, request(ObjectOp::Read, 0, 512).encode())
            .unwrap();
    }
    quiet
        .submit(0, request(ObjectOp::Read, 4096, 512).encode())
        .unwrap();
    peer.poll();
    let started = &peer.backend().started;
    assert_eq!(started.len(), ENTRIES_PER_TURN + 1);
    assert!(
        started.iter().any(|(_, request)| request.offset == 4096),
        "the quiet channel was served in the same turn"
    );
}

#[test]
fn what_a_dead_client_started_finishes_before_the_channel_is_idle() {
    let mut peer = BlockerPeer::new(Manual::default());
    let (mut client, id) = connect(&mut peer);
    for cookie in 0..3 {
        client
            .submit(cookie, request(ObjectOp::Write, 0, 512).encode())
            .unwrap();
    }
    peer.poll();
    drop(client);
    for left in (0..3).rev() {
        assert!(!peer.channel_idle(id), "{left}");
        peer.backend_mut().reply(0);
        peer.poll();
    }
    assert!(peer.channel_idle(id));
    assert_eq!(
        (
            peer.counters().dropped,
            peer.channel_count(),
            peer.in_flight()
        ),
        (3, 0, 0)
    );
}

#[test]
fn a_removed_channel_accepts_nothing_more_and_finishes() {
    let mut peer = BlockerPeer::new(Manual::default());
    let (mut client, id) = connect(&mut peer);
    client
        .submit(1, request(ObjectOp::Write, 0, 512).encode())
        .unwrap();
    peer.poll();
    peer.remove_channel(id);
    client
        .submit(2, request(ObjectOp::Write, 0, 512).encode())
        .unwrap();
    peer.poll();
    assert_eq!(peer.backend().started.len(), 1);
    peer.backend_mut().reply(0);
    peer.poll();
    assert_eq!(completions(&mut client), [(1, Ok(512))]);
    assert!(peer.channel_idle(id));
}

#[test]
fn slots_are_used_again() {
    let mut peer = BlockerPeer::new(Manual::default());
    let (mut client, _) = connect(&mut peer);
    let (mut tickets, mut slots) = (BTreeSet::new(), BTreeSet::new());
    for cookie in 0..1000 {
        for op in [ObjectOp::Write, ObjectOp::Read] {
            let entry = request(op, 0, 512).encode();
            client.submit(cookie, entry).unwrap();
        }
        peer.poll();
        for (ticket, _) in &peer.backend().started {
            assert!(tickets.insert(*ticket), "a ticket is never given twice");
            // The lower half of a ticket is the slot of its request.
            slots.insert(*ticket & u64::from(u32::MAX));
        }
        for _ in 0..2 {
            peer.backend_mut().reply(0);
        }
        peer.poll();
        assert_eq!(
            completions(&mut client),
            [(cookie, Ok(512)), (cookie, Ok(512))]
        );
    }
    assert_eq!(slots.len(), 2, "as many as were ever busy together");
}

#[test]
#[should_panic(expected = "replies once")]
fn a_backend_that_replies_twice_is_our_own_mistake() {
    let mut peer = BlockerPeer::new(Manual::default());
    let (mut client, _) = connect(&mut peer);
    client
        .submit(1, request(ObjectOp::Read, 0, 512).encode())
        .unwrap();
    peer.poll();
    let (ticket, _) = peer.backend().started[0];
    peer.backend_mut().replies.extend([
        (ticket, ObjectReply::done(1)),
        (ticket, ObjectReply::done(1)),
    ]);
    peer.poll();
}
