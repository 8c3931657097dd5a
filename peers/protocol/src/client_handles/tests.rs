use xseg::ServerPort;
use xseg::local::{LocalClient, LocalServer, channel};

use super::*;
use crate::handle::{FencingToken, HandleAccess};
use crate::ids::{Epoch, ObjectSize};
use crate::object::ObjectId;

/// A table of `capacity` handles on a channel of `credits`.
struct Rig {
    handles: ClientHandles,
    client: LocalClient,
    server: LocalServer,
}

fn object(epoch: u64) -> OpenObject {
    OpenObject {
        id: ObjectId::data(Lineage(1), Epoch(epoch)),
        object_size: ObjectSize::DEFAULT,
        access: HandleAccess::Write,
        token: FencingToken::default(),
    }
}

impl Rig {
    fn new(capacity: u32, credits: usize) -> Self {
        let (client, server) = channel(credits, 4096).unwrap();
        let handles = ClientHandles::new(capacity);
        Rig {
            handles,
            client,
            server,
        }
    }

    fn find(&mut self, epoch: u64) -> Option<u32> {
        self.handles.find(&mut self.client, &object(epoch))
    }

    /// What the server gets, answered with `code`, and the answers taken.
    fn serve(&mut self, code: Result<(), ErrorCode>) -> Vec<HandleRequest> {
        let mut seen = Vec::new();
        while let Some(entry) = self.server.accept() {
            seen.push(HandleRequest::decode(&entry).unwrap().unwrap());
            self.server.complete(Reply::from(code).encode(entry.tag));
        }
        while let Some((cookie, completion)) = self.client.complete() {
            let reply = Reply::decode(&completion);
            assert!(self.handles.take(&mut self.client, cookie, &reply));
        }
        seen
    }

    fn answer(&mut self, used: HandleUse, result: Result<(), ErrorCode>) -> Result<u32, ErrorCode> {
        let mut reply = Reply::from(result);
        self.handles.answered(&mut self.client, used, &mut reply);
        reply.result
    }
}

fn open(handle: u32, epoch: u64) -> HandleRequest {
    HandleRequest::Open {
        handle,
        object: object(epoch),
        again: false,
    }
}

#[test]
fn the_least_recently_used_handle_is_closed_for_another() {
    let mut rig = Rig::new(2, 16);
    assert_eq!(
        [1, 2, 1, 3].map(|epoch| rig.find(epoch)),
        [0, 1, 0, 1].map(Some)
    );
    let close = HandleRequest::Close { handle: 1 };
    let expected = [open(0, 1), open(1, 2), close, open(1, 3)];
    assert_eq!(rig.serve(Ok(())), expected);
    assert_eq!((rig.find(1), rig.find(3)), (Some(0), Some(1)));
    assert_eq!(rig.serve(Ok(())), []);
}

#[test]
fn a_handle_in_use_or_with_unsynced_writes_is_not_closed() {
    let mut rig = Rig::new(2, 16);
    let (first, second) = (rig.find(1).unwrap(), rig.find(2).unwrap());
    let read = HandleUse::new(first, Effect::None);
    let write = HandleUse::new(second, Effect::Writes);
    rig.handles.sent(read);
    rig.handles.sent(write);
    assert_eq!(rig.find(3), None);
    let _ = rig.answer(write, Ok(()));
    assert_eq!(rig.find(3), None, "in flight, and not synced");
    // A sync that was sent before a write does not cover it.
    let sync = HandleUse::new(second, Effect::Syncs);
    rig.handles.sent(sync);
    rig.handles.sent(write);
    let _ = rig.answer(write, Ok(()));
    let _ = rig.answer(sync, Ok(()));
    assert_eq!(rig.find(3), None);
    rig.handles.sent(sync);
    let _ = rig.answer(sync, Err(ErrorCode::SyncFailed));
    assert_eq!(rig.find(3), None, "a sync that failed covers nothing");
    rig.handles.sent(sync);
    let _ = rig.answer(sync, Ok(()));
    assert_eq!(rig.find(3), Some(second));
    rig.handles.sent(HandleUse::new(second, Effect::Writes));
    let _ = rig.answer(write, Ok(()));
    rig.handles.pool_sync_sent();
    rig.handles.pool_sync_answered(true);
    assert_eq!(rig.find(4), Some(second), "a sync of the pool covers all");
}

#[test]
fn a_refused_open_says_why_its_requests_failed_and_is_tried_again() {
    let mut rig = Rig::new(4, 16);
    let handle = rig.find(1).unwrap();
    let used = HandleUse::new(handle, Effect::Writes);
    rig.handles.sent(used);
    assert_eq!(rig.serve(Err(ErrorCode::Denied)).len(), 1);
    assert!(rig.handles.is_empty());
    let other = rig.find(1).unwrap();
    assert_ne!(other, handle, "something is in flight on the refused one");
    let failed = rig.answer(used, Err(ErrorCode::NotOpen));
    assert_eq!(failed, Err(ErrorCode::Denied));
    // A handle that the server closed is opened again.
    let used = HandleUse::new(other, Effect::None);
    rig.handles.sent(used);
    assert_eq!(
        rig.answer(used, Err(ErrorCode::NotOpen)),
        Err(ErrorCode::NotOpen)
    );
    assert_eq!(rig.handles.len(), 0);
    assert!(rig.find(1).is_some());
}

#[test]
fn one_credit_is_enough_to_open_and_what_is_forgotten_is_opened_again() {
    let mut rig = Rig::new(4, 1);
    assert_eq!(rig.find(1), Some(0));
    assert_eq!(rig.find(2), None, "no credit");
    assert_eq!(rig.serve(Ok(())), [open(0, 1)]);
    rig.handles.forget(&mut rig.client, Lineage(2));
    assert_eq!(rig.find(1), Some(0));
    rig.handles.forget(&mut rig.client, Lineage(1));
    assert!(rig.find(1).is_some());
    assert_eq!(rig.serve(Ok(())).len(), 1);
}

#[test]
fn numbers_are_used_again_before_others_are() {
    let mut rig = Rig::new(8, 16);
    for epoch in 0..20 {
        let handle = rig.find(epoch).unwrap();
        assert_eq!(handle, 0);
        let close = HandleRequest::Close { handle };
        let expected = [close, open(handle, epoch)];
        let skipped = usize::from(epoch == 0);
        assert_eq!(rig.serve(Ok(())), expected[skipped..]);
        rig.handles.forget(&mut rig.client, Lineage(1));
    }
}

#[test]
fn uses_survive_a_cookie() {
    for effect in [Effect::None, Effect::Writes, Effect::Syncs, Effect::Deletes] {
        let used = HandleUse::new(HANDLES_MAX - 1, effect);
        assert!(used.to_bits() < 1 << 18);
        assert_eq!(HandleUse::from_bits(used.to_bits()), Some(used));
    }
    assert_eq!(HandleUse::from_bits(0), None);
    let durable = Effect::of(ObjectOp::Write, FLAG_DURABLE);
    assert_eq!(durable, Effect::None, "no sync has to cover it");
}
