//! The blocker peer as its clients see it, over backends that the test holds in its hand.

#![cfg(test)]

use std::collections::{BTreeSet, VecDeque};

use archipelago_blocker::{Backend, BlockerPeer, ChannelId, ENTRIES_PER_TURN, Rights};
use archipelago_doubles::MemoryBackend;
use archipelago_protocol::handle::{
    FencingToken, HANDLES_MAX, HandleAccess, HandleRequest, OpenObject,
};
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
    /// The incarnation that was fenced.
    fenced: Option<u128>,
    written_before: Vec<ObjectId>,
}

impl Backend for Manual {
    fn name(&self) -> &str {
        "manual"
    }

    fn is_fenced(&self, token: &FencingToken) -> bool {
        self.fenced == Some(token.incarnation)
    }

    fn written_before(&mut self, id: ObjectId) {
        self.written_before.push(id);
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
    let (mut client, id) = connect_with(peer, Rights::All);
    let open = open(HANDLE, object(), HandleAccess::Metadata);
    assert_eq!(change(peer, &mut client, open), Ok(0));
    (client, id)
}

fn connect_with<B: Backend>(peer: &mut BlockerPeer<B>, rights: Rights) -> (LocalClient, ChannelId) {
    let (client, server) = channel(256, 1 << 20).unwrap();
    let id = peer.add_channel(Server::from(server), rights);
    (client, id)
}

/// The cookie of opens and closes.
const HANDLES: u64 = u64::MAX;
/// The handle of [`object`] in most tests.
const HANDLE: u32 = 1;

/// Asks for `request`; its answer, and those of other requests about handles.
fn change<B: Backend>(
    peer: &mut BlockerPeer<B>,
    client: &mut LocalClient,
    request: HandleRequest,
) -> Result<u32, ErrorCode> {
    client.submit(HANDLES, request.encode()).unwrap();
    peer.poll();
    let (cookie, completion) = client.complete().expect("answered in the same turn");
    assert_eq!(cookie, HANDLES);
    ObjectReply::decode(&completion).result
}

fn open(handle: u32, id: ObjectId, access: HandleAccess) -> HandleRequest {
    HandleRequest::Open {
        handle,
        object: OpenObject::of(&ObjectRequest::new(ObjectOp::Read, id), access),
        again: false,
    }
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
fn what_a_channel_may_not_open_is_denied_and_reaches_no_backend() {
    let mut peer = BlockerPeer::new(Manual::default());
    let (mut volume, _) = connect_with(&mut peer, Rights::Granted);
    let (mut mapper, _) = connect(&mut peer);
    let head = open(2, ObjectId::head(Lineage(1)), HandleAccess::Metadata);
    let log = open(3, ObjectId::log(Lineage(1), 1), HandleAccess::Write);
    let data = open(4, object(), HandleAccess::Write);
    for request in [head, log, data] {
        let answer = change(&mut peer, &mut volume, request);
        assert_eq!(answer, Err(ErrorCode::Denied), "{request:?}");
    }
    // A request travels with its open, and finds it denied.
    let write = request(ObjectOp::Write, 0, 512);
    volume.submit(HANDLES, data.encode()).unwrap();
    volume.submit(2, write.encode(4)).unwrap();
    let list = ObjectRequest::new(ObjectOp::List, object());
    volume.submit(3, list.encode(0)).unwrap();
    let swap = ObjectRequest::new(ObjectOp::CompareAndSwap, ObjectId::head(Lineage(1)));
    assert_eq!(change(&mut peer, &mut mapper, head), Ok(0));
    mapper.submit(3, swap.encode(2)).unwrap();
    peer.poll();
    let answers = [
        (HANDLES, Err(ErrorCode::Denied)),
        (2, Err(ErrorCode::NotOpen)),
        (3, Err(ErrorCode::Denied)),
    ];
    assert_eq!(completions(&mut volume), answers);
    let mut grants = Grants::default();
    grants.allow(write.id.lineage, Access::Write);
    peer.set_grants(grants);
    volume.submit(HANDLES, data.encode()).unwrap();
    volume.submit(4, write.encode(4)).unwrap();
    // More than it was opened for.
    let punch = request(ObjectOp::Punch, 0, 512);
    volume.submit(5, punch.encode(4)).unwrap();
    peer.poll();
    let started = |peer: &BlockerPeer<Manual>| -> Vec<ObjectOp> {
        let started = peer.backend().started.iter();
        started.map(|(_, request)| request.op).collect()
    };
    let expected = [ObjectOp::CompareAndSwap, ObjectOp::Write];
    assert_eq!(started(&peer), expected);
    let answers = [(HANDLES, Ok(0)), (5, Err(ErrorCode::Denied))];
    assert_eq!(completions(&mut volume), answers);
    let counters = peer.counters();
    assert_eq!((counters.denied, counters.failed), (6, 7));
    // A handle dies with its grant, those of others do not; what was started finishes.
    peer.set_grants(Grants::default());
    volume.submit(6, write.encode(4)).unwrap();
    mapper.submit(7, write.encode(HANDLE)).unwrap();
    peer.backend_mut().reply(1);
    peer.poll();
    let answers = [(6, Err(ErrorCode::NotOpen)), (4, Ok(512))];
    assert_eq!(completions(&mut volume), answers);
    assert_eq!(started(&peer), expected);
}

#[test]
fn a_bad_handle_hurts_its_request_only() {
    let mut peer = BlockerPeer::new(MemoryBackend::new());
    let (mut client, _) = connect(&mut peer);
    let other = ObjectId::data(Lineage(2), Epoch(1));
    let mut check = |request: HandleRequest, expected: Result<u32, ErrorCode>| {
        let answer = change(&mut peer, &mut client, request);
        assert_eq!(answer, expected, "{request:?}");
    };
    let metadata = HandleAccess::Metadata;
    check(open(HANDLE, object(), metadata), Ok(0));
    check(open(HANDLE, other, metadata), Err(ErrorCode::InUse));
    check(
        open(HANDLE, object(), HandleAccess::Read),
        Err(ErrorCode::InUse),
    );
    check(open(HANDLES_MAX - 1, other, metadata), Ok(0));
    check(open(HANDLES_MAX, other, metadata), Err(ErrorCode::Invalid));
    check(
        HandleRequest::Close {
            handle: HANDLES_MAX,
        },
        Err(ErrorCode::Invalid),
    );
    check(HandleRequest::Close { handle: 7 }, Ok(0));
    check(
        HandleRequest::Close {
            handle: HANDLES_MAX - 1,
        },
        Ok(0),
    );
    let write = request(ObjectOp::Write, 0, 512);
    for (cookie, handle) in [(1, HANDLES_MAX - 1), (2, 7), (3, u32::MAX), (4, HANDLE)] {
        client.submit(cookie, write.encode(handle)).unwrap();
    }
    peer.poll();
    let answers = completions(&mut client);
    let lost = Err(ErrorCode::NotOpen);
    assert_eq!(answers, [(1, lost), (2, lost), (3, lost), (4, Ok(512))]);
}

#[test]
fn who_was_fenced_opens_nothing() {
    let mut peer = BlockerPeer::new(Manual {
        fenced: Some(5),
        ..Manual::default()
    });
    let (mut client, _) = connect(&mut peer);
    for (incarnation, expected) in [(4, Ok(0)), (5, Err(ErrorCode::Stale)), (6, Ok(0))] {
        let object = OpenObject {
            token: FencingToken {
                incarnation,
                generation: 1,
            },
            ..OpenObject::of(&request(ObjectOp::Read, 0, 0), HandleAccess::Write)
        };
        let handle = 10 + u32::try_from(incarnation).unwrap();
        let open = HandleRequest::Open {
            handle,
            object,
            again: incarnation == 6,
        };
        assert_eq!(change(&mut peer, &mut client, open), expected);
    }
    // What was written through a handle of before may not be durable.
    assert_eq!(peer.backend().written_before, [object()]);
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
    writer.submit(1, write.encode(HANDLE)).unwrap();
    assert_eq!(peer.poll(), Progress::Busy);
    assert_eq!(completions(&mut writer), [(1, Ok(512))]);
    reader
        .submit(2, request(ObjectOp::Read, 0, 512).encode(HANDLE))
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
            counters.handle_requests,
            counters.requests,
            counters.read_bytes,
            counters.written_bytes
        ),
        (2, 2, 512, 512)
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
    client.submit(1, write.encode(HANDLE)).unwrap();
    client
        .submit(2, request(ObjectOp::Read, 0, 1024).encode(HANDLE))
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
    let write = request(ObjectOp::Write, 0, 512).encode(HANDLE);
    let bad = [
        (Submission { op: 99, ..write }, ErrorCode::Unsupported),
        (
            Submission {
                handle: 77,
                ..write
            },
            ErrorCode::NotOpen,
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
        busy.submit(cookie, request(ObjectOp::Read, 0, 512).encode(HANDLE))
            .unwrap();
    }
    quiet
        .submit(0, request(ObjectOp::Read, 4096, 512).encode(HANDLE))
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
            .submit(cookie, request(ObjectOp::Write, 0, 512).encode(HANDLE))
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
        .submit(1, request(ObjectOp::Write, 0, 512).encode(HANDLE))
        .unwrap();
    peer.poll();
    peer.remove_channel(id);
    client
        .submit(2, request(ObjectOp::Write, 0, 512).encode(HANDLE))
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
            let entry = request(op, 0, 512).encode(HANDLE);
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
        .submit(1, request(ObjectOp::Read, 0, 512).encode(HANDLE))
        .unwrap();
    peer.poll();
    let (ticket, _) = peer.backend().started[0];
    peer.backend_mut().replies.extend([
        (ticket, ObjectReply::done(1)),
        (ticket, ObjectReply::done(1)),
    ]);
    peer.poll();
}
