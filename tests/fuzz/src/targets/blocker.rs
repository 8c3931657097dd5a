//! A blocker whose client asks for anything.

use std::collections::BTreeSet;

use archipelago_blocker::{BlockerPeer, Rights};
use archipelago_doubles::MemoryBackend;
use archipelago_protocol::handle::{HandleAccess, HandleRequest, OpenObject};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{Epoch, Lineage};
use archipelago_runtime::Peer;
use xseg::{Client, ClientPort, Region, RegionId, Server, Submission, local};

use crate::input::Input;

fn is_open(entry: &Submission) -> bool {
    matches!(
        HandleRequest::decode(entry),
        Some(Ok(HandleRequest::Open { .. }))
    )
}

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
            let lineage = Lineage(u128::from(input.u8() & 3));
            let number = u64::from(input.u8() & 3);
            let op = input.u8() % 20;
            let kinds = [
                ObjectId::data(lineage, Epoch(number)),
                ObjectId::head(lineage),
                ObjectId::log(lineage, number),
                ObjectId::pack(lineage, number),
            ];
            let handle = u32::from(input.u8() % 6);
            let id = kinds[handle as usize % kinds.len()];
            let request = ObjectRequest::new(ObjectOp::List, id);
            if op >= 18 {
                let object = OpenObject::of(&request, HandleAccess::Metadata);
                let open = HandleRequest::Open {
                    handle,
                    object,
                    again: op == 19,
                };
                entry = open.encode();
            } else {
                entry = request.encode(handle);
                entry.op = op;
                entry.handle = handle;
                let about_pool = matches!(op, 4 | 8 | 11 | 12 | 17);
                if !about_pool {
                    entry.args = [0; 3];
                }
            }
        }
        if kind & 4 != 0 && !is_open(&entry) {
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
