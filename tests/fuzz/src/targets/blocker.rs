//! A blocker whose client asks for anything.

use std::collections::BTreeSet;

use archipelago_blocker::{BlockerPeer, Rights};
use archipelago_doubles::MemoryBackend;
use archipelago_protocol::Lineage;
use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_runtime::Peer;
use xseg::{Client, ClientPort, Region, RegionId, Server, Submission, local};

use crate::input::Input;

/// Requests of any form on a channel to a blocker: each is answered once.
pub(crate) fn blocker(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (client, server) = local::channel(16, 16 << 10).expect("memory");
    let mut client = Client::from(client);
    let mut peer: BlockerPeer<MemoryBackend> = BlockerPeer::new(MemoryBackend::new());
    peer.add_channel(Server::from(server), Rights::All);
    let region = Region::anonymous(4096).expect("memory");
    client
        .add_region(RegionId(1), region)
        .expect("a live channel");
    let mut asked = BTreeSet::new();
    let mut cookie = 0;
    let mut turn = |client: &mut Client, asked: &mut BTreeSet<u64>| {
        client.publish();
        peer.poll();
        while let Some((cookie, completion)) = client.complete() {
            assert!(asked.remove(&cookie), "answered twice");
            let _reply = ObjectReply::decode(&completion);
        }
    };
    while !input.is_empty() {
        let kind = input.u8();
        if kind & 3 == 0 {
            let at = u64::from(input.u16());
            let len = usize::from(input.u8());
            let bytes = input.take(len);
            // What would not fit is not written.
            let _outside = client.arena().write(at, bytes);
            continue;
        }
        let mut words: [u64; 8] = std::array::from_fn(|_| 0);
        if kind & 4 == 0 {
            words = std::array::from_fn(|_| input.u64());
        }
        let mut entry = Submission::from_words(words);
        if kind & 4 != 0 {
            let id = ObjectId {
                lineage: Lineage(u128::from(input.u8() & 3)),
                kind: ObjectKind::Data,
                number: u64::from(input.u8() & 3),
            };
            entry = ObjectRequest::new(ObjectOp::Read, id).encode();
            entry.op = input.u8() % 16;
            entry.handle = u32::from(input.u8() % 6) | 22 << 8;
            entry.flags = input.u8() & 1;
            entry.offset = u64::from(input.u16());
            entry.len = u32::from(input.u16());
            entry.count = u16::from(input.u8() & 7);
            entry.region = u32::from(input.u8() & 1);
            entry.region_offset = u64::from(input.u16());
        }
        cookie += 1;
        if client.submit(cookie, entry).is_ok() {
            asked.insert(cookie);
        }
        turn(&mut client, &mut asked);
    }
    for _ in 0..64 {
        turn(&mut client, &mut asked);
    }
    assert!(
        asked.is_empty(),
        "{} requests were never answered",
        asked.len()
    );
}
