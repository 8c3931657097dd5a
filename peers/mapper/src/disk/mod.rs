//! Object requests as awaitable calls.
//!
//! Invariants
//! - A short count is a failure; a reply for nothing is ignored.
//! - Requests larger than the limit are cut; each piece waits for the one before.

mod failed;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::object::{
    FLAG_DURABLE, IO_LEN_MAX, OBJECT_ID_LEN, ObjectId, ObjectKind, ObjectOp, ObjectReply,
    ObjectRequest, SWAP_LEN_MAX,
};
use archipelago_protocol::{ErrorCode, Generation, Lineage, ObjectSize};
use rustc_hash::FxHashMap;

use crate::effect::{Effect, EffectId};
use crate::failure::{Failure, Outcome};
use crate::task::Scheduler;
use failed::failed;

pub(crate) use failed::{final_sync, name_of};

/// Bytes of a page of a listing: 512 ids.
const LISTED_AT_ONCE: u32 = 16 << 10;
const _: () = assert!((LISTED_AT_ONCE as usize).is_multiple_of(OBJECT_ID_LEN));

/// The way to the blocker.
#[derive(Debug)]
pub(crate) struct Disk {
    scheduler: Rc<Scheduler>,
    io_len_max: usize,
    next: Cell<u64>,
    calls: RefCell<FxHashMap<EffectId, Call>>,
    /// What the shell shall do, answers to clients included: one order for all.
    effects: RefCell<VecDeque<Effect>>,
    /// Object requests so far.
    requests: Cell<u64>,
    /// Syncs of the pool that failed so far.
    failed_pool_syncs: Cell<u64>,
    /// What the backend does by itself, as far as that is known.
    capabilities: Cell<Capabilities>,
}

#[derive(Debug)]
enum Call {
    Sent { task: u64 },
    Answered(ObjectReply, Vec<u8>),
}

impl Disk {
    pub(crate) fn new(scheduler: &Rc<Scheduler>, io_len_max: usize) -> Self {
        Disk {
            scheduler: Rc::clone(scheduler),
            io_len_max,
            next: Cell::new(0),
            calls: RefCell::default(),
            effects: RefCell::default(),
            requests: Cell::new(0),
            failed_pool_syncs: Cell::new(0),
            capabilities: Cell::default(),
        }
    }

    /// Adds an answer to a client, behind the requests so far.
    pub(crate) fn push_effect(&self, effect: Effect) {
        self.effects.borrow_mut().push_back(effect);
    }

    /// The next thing that the shell shall do.
    pub(crate) fn next_effect(&self) -> Option<Effect> {
        self.effects.borrow_mut().pop_front()
    }

    pub(crate) fn has_effects(&self) -> bool {
        !self.effects.borrow().is_empty()
    }

    /// Object requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Takes the reply to a request.
    pub(crate) fn done(&self, id: EffectId, reply: ObjectReply, data: Vec<u8>) {
        let mut calls = self.calls.borrow_mut();
        if let Some(call) = calls.get_mut(&id)
            && let Call::Sent { task } = *call
        {
            *call = Call::Answered(reply, data);
            self.scheduler.wake(task);
        }
    }

    /// Sets what the backend does by itself.
    pub(crate) fn set_capabilities(&self, capabilities: Capabilities) {
        self.capabilities.set(capabilities);
    }

    /// Whether what was written is durable, so that there is nothing to sync.
    pub(crate) fn is_durable(&self) -> bool {
        self.capabilities.get().has(Capabilities::DURABLE)
    }

    async fn call(&self, request: ObjectRequest, data: Vec<u8>) -> (ObjectReply, Vec<u8>) {
        let id = EffectId(self.next.get());
        self.next.set(id.0 + 1);
        self.requests.set(self.requests.get() + 1);
        let task = self.scheduler.current();
        self.calls.borrow_mut().insert(id, Call::Sent { task });
        self.effects
            .borrow_mut()
            .push_back(Effect::Object { id, request, data });
        poll_fn(|_context| {
            let mut calls = self.calls.borrow_mut();
            match calls.remove(&id) {
                Some(Call::Answered(reply, data)) => Poll::Ready((reply, data)),
                Some(sent) => {
                    calls.insert(id, sent);
                    Poll::Pending
                }
                None => Poll::Pending,
            }
        })
        .await
    }

    async fn simple(&self, op: ObjectOp, id: ObjectId) -> Outcome<ObjectReply> {
        let (reply, _) = self.call(ObjectRequest::new(op, id), Vec::new()).await;
        match reply.result {
            Ok(_) => Ok(reply),
            Err(code) => Err(failed(op, id, code)),
        }
    }

    /// Reads `len` bytes of an object at `offset`.
    pub(crate) async fn read(&self, id: ObjectId, offset: u64, len: usize) -> Outcome<Vec<u8>> {
        self.read_data(id, ObjectSize::DEFAULT, offset, len).await
    }

    /// The same for a volume's data.
    pub(crate) async fn read_data(
        &self,
        id: ObjectId,
        object_size: ObjectSize,
        offset: u64,
        len: usize,
    ) -> Outcome<Vec<u8>> {
        let mut whole = Vec::with_capacity(len.min(1 << 20));
        while whole.len() < len {
            let piece = (len - whole.len()).min(self.io_len_max);
            let request = ObjectRequest {
                object_size,
                offset: offset + whole.len() as u64,
                len: u32::try_from(piece).expect("at most io_len_max"),
                ..ObjectRequest::new(ObjectOp::Read, id)
            };
            let (reply, data) = self.call(request, Vec::new()).await;
            reply
                .result
                .map_err(|code| failed(ObjectOp::Read, id, code))?;
            if reply.result != Ok(request.len) || data.len() != piece {
                return Err(failed(ObjectOp::Read, id, ErrorCode::Io));
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole)
    }

    /// Writes `data` to an object at `offset`.
    pub(crate) async fn write(&self, id: ObjectId, offset: u64, data: &[u8]) -> Outcome<()> {
        self.write_data(id, ObjectSize::DEFAULT, offset, data).await
    }

    /// Appends a batch to a log at `position`, as the session `token`; it is durable afterwards.
    ///
    /// # Errors
    /// Why it was not done; being refused is none.
    pub(crate) async fn append(
        &self,
        id: ObjectId,
        position: u64,
        token: Generation,
        batch: Vec<u8>,
    ) -> Outcome<Appended> {
        let request = ObjectRequest {
            offset: position,
            token,
            len: u32::try_from(batch.len()).expect("at most io_len_max"),
            ..ObjectRequest::new(ObjectOp::Append, id)
        };
        let (reply, _) = self.call(request, batch).await;
        match reply.result {
            Ok(len) if len == request.len => Ok(Appended::Done),
            Ok(_) => Err(failed(ObjectOp::Append, id, ErrorCode::Io)),
            Err(ErrorCode::Stale) => {
                let end = reply.values[0];
                let why = failed(ObjectOp::Append, id, ErrorCode::Stale);
                Ok(Appended::Refused { end, why })
            }
            Err(code) => Err(failed(ObjectOp::Append, id, code)),
        }
    }

    /// Keeps sessions older than `token` from appending to a log, durably.
    ///
    /// # Errors
    /// [`ErrorCode::Stale`]: a newer session has sealed it.
    pub(crate) async fn seal(&self, id: ObjectId, token: Generation) -> Outcome<()> {
        let request = ObjectRequest {
            token,
            ..ObjectRequest::new(ObjectOp::Seal, id)
        };
        let (reply, _) = self.call(request, Vec::new()).await;
        let sealed = reply.result.map(drop);
        sealed.map_err(|code| failed(ObjectOp::Seal, id, code))
    }

    /// Writes a volume's data.
    pub(crate) async fn write_data(
        &self,
        id: ObjectId,
        object_size: ObjectSize,
        offset: u64,
        data: &[u8],
    ) -> Outcome<()> {
        // No sync follows that would say so: the table of handles keeps what is not durable.
        let flags = if self.is_durable() { FLAG_DURABLE } else { 0 };
        let mut at = offset;
        for piece in data.chunks(self.io_len_max) {
            let request = ObjectRequest {
                flags,
                object_size,
                offset: at,
                len: u32::try_from(piece.len()).expect("at most io_len_max"),
                ..ObjectRequest::new(ObjectOp::Write, id)
            };
            let (reply, _) = self.call(request, piece.to_vec()).await;
            reply
                .result
                .map_err(|code| failed(ObjectOp::Write, id, code))?;
            if reply.result != Ok(request.len) {
                return Err(failed(ObjectOp::Write, id, ErrorCode::Io));
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes an object's completed writes durable.
    pub(crate) async fn sync(&self, id: ObjectId) -> Outcome<()> {
        if self.is_durable() {
            return Ok(());
        }
        let failed_before = self.failed_pool_syncs.get();
        let synced = self.simple(ObjectOp::Sync, id).await;
        synced.map(drop).map_err(final_sync)?;
        self.trust_sync(id, failed_before)
    }

    /// Makes a block of a volume's data durable.
    pub(crate) async fn sync_data(
        &self,
        id: ObjectId,
        object_size: ObjectSize,
        offset: u64,
    ) -> Outcome<()> {
        if self.is_durable() {
            return Ok(());
        }
        let request = ObjectRequest {
            object_size,
            offset,
            ..ObjectRequest::new(ObjectOp::Sync, id)
        };
        let failed_before = self.failed_pool_syncs.get();
        let (reply, _) = self.call(request, Vec::new()).await;
        let synced = reply.result.map(drop);
        synced.map_err(|code| final_sync(failed(ObjectOp::Sync, id, code)))?;
        self.trust_sync(id, failed_before)
    }

    /// Makes all completed writes to the pool durable.
    pub(crate) async fn sync_pool(&self) -> Outcome<()> {
        if self.is_durable() {
            return Ok(());
        }
        let id = ObjectId::head(Lineage::CATALOGUE);
        let failed_before = self.failed_pool_syncs.get();
        let synced = self.simple(ObjectOp::SyncPool, id).await;
        if synced.is_err() {
            self.note_failed_pool_sync();
        }
        synced.map(drop).map_err(final_sync)?;
        self.trust_sync(id, failed_before)
    }

    /// A sync of the pool has failed: those that were begun before are not trusted.
    pub(crate) fn note_failed_pool_sync(&self) {
        self.failed_pool_syncs.set(self.failed_pool_syncs.get() + 1);
    }

    /// Checks a sync of `id` that succeeded: not if a sync of the pool has failed since it was begun, when so many had. That
    /// one may have dropped what this one was to make durable, and then there was nothing left to do.
    fn trust_sync(&self, id: ObjectId, failed_before: u64) -> Outcome<()> {
        if self.failed_pool_syncs.get() == failed_before {
            return Ok(());
        }
        Err(failed(ObjectOp::Sync, id, ErrorCode::SyncFailed))
    }

    /// Content and version of a head; `None`: there is none.
    pub(crate) async fn read_swapped(&self, id: ObjectId) -> Outcome<Option<(u64, Vec<u8>)>> {
        let request = ObjectRequest {
            len: SWAP_LEN_MAX,
            ..ObjectRequest::new(ObjectOp::ReadSwapped, id)
        };
        let (reply, mut data) = self.call(request, Vec::new()).await;
        match reply.result {
            Ok(len) if data.len() >= len as usize => {
                data.truncate(len as usize);
                Ok(Some((reply.values[0], data)))
            }
            Ok(_) => Err(failed(ObjectOp::ReadSwapped, id, ErrorCode::Io)),
            Err(ErrorCode::NotFound) => Ok(None),
            Err(code) => Err(failed(ObjectOp::ReadSwapped, id, code)),
        }
    }

    /// Replaces a head of version `version`; its version afterwards.
    pub(crate) async fn swap(&self, id: ObjectId, version: u64, content: Vec<u8>) -> Outcome<u64> {
        let request = ObjectRequest {
            offset: version,
            len: u32::try_from(content.len()).expect("heads are small"),
            ..ObjectRequest::new(ObjectOp::CompareAndSwap, id)
        };
        let (reply, _) = self.call(request, content).await;
        match reply.result {
            Ok(_) => Ok(reply.values[0]),
            Err(code) => Err(failed(ObjectOp::CompareAndSwap, id, code)),
        }
    }

    /// Gives back the space of `len` bytes of a volume's data; they read as zeros afterwards. Durable after a sync of the pool.
    pub(crate) async fn punch_data(
        &self,
        id: ObjectId,
        object_size: ObjectSize,
        offset: u64,
        len: u64,
    ) -> Outcome<()> {
        let mut at = offset;
        while at < offset + len {
            let piece = (offset + len - at).min(u64::from(IO_LEN_MAX));
            let request = ObjectRequest {
                object_size,
                offset: at,
                len: u32::try_from(piece).expect("at most IO_LEN_MAX"),
                ..ObjectRequest::new(ObjectOp::Punch, id)
            };
            let (reply, _) = self.call(request, Vec::new()).await;
            let punched = reply.result.map(drop);
            punched.map_err(|code| failed(ObjectOp::Punch, id, code))?;
            at += piece;
        }
        Ok(())
    }

    /// Deletes an object that nothing names any more.
    ///
    /// # Panics
    /// If it has pages of maps, which go with their lineage: whoever walks over a map (`control::usage`, `control::reclaim`, `check`) holds
    /// roots across waits, and reads every page below them. What gives back single packs has to wait for these walks.
    pub(crate) async fn delete(&self, id: ObjectId) -> Outcome<()> {
        let has_pages = id.kind == ObjectKind::Pack && id.lineage != Lineage::CATALOGUE;
        assert!(!has_pages, "pages of maps go with their lineage");
        self.delete_leaked(id).await
    }

    /// Deletes an object that no map names, while nothing serves the pool.
    pub(crate) async fn delete_leaked(&self, id: ObjectId) -> Outcome<()> {
        self.simple(ObjectOp::Delete, id).await.map(drop)
    }

    pub(crate) async fn delete_lineage(&self, lineage: Lineage) -> Outcome<()> {
        self.simple(ObjectOp::DeleteLineage, ObjectId::head(lineage))
            .await
            .map(drop)
    }

    /// Objects above `id`, in order; none: that was all.
    pub(crate) async fn list_above(&self, id: ObjectId) -> Outcome<Vec<ObjectId>> {
        let request = ObjectRequest {
            len: LISTED_AT_ONCE,
            ..ObjectRequest::new(ObjectOp::List, id)
        };
        let (reply, data) = self.call(request, Vec::new()).await;
        let len = reply
            .result
            .map_err(|code| failed(ObjectOp::List, id, code))?;
        let (ids, rest) = data.as_chunks::<OBJECT_ID_LEN>();
        if data.len() != len as usize || !rest.is_empty() {
            return Err(failed(ObjectOp::List, id, ErrorCode::Io));
        }
        Ok(ids.iter().filter_map(ObjectId::from_bytes).collect())
    }

    /// Bytes that an object occupies; `None`: it is not there.
    pub(crate) async fn occupied(&self, id: ObjectId) -> Outcome<Option<u64>> {
        match self.simple(ObjectOp::Stat, id).await {
            Ok(reply) => Ok(Some(reply.values[0])),
            Err(failure) if failure.code == ErrorCode::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Length of an object.
    pub(crate) async fn len(&self, id: ObjectId) -> Outcome<u64> {
        Ok(self.simple(ObjectOp::Stat, id).await?.values[1])
    }

    /// Bytes free and bytes in all.
    pub(crate) async fn stat_pool(&self) -> Outcome<[u64; 2]> {
        let id = ObjectId::head(Lineage::CATALOGUE);
        Ok(self.simple(ObjectOp::StatPool, id).await?.values)
    }

    /// A round trip to the blocker that asks for nothing new: what guests have sent meanwhile comes in between.
    pub(crate) async fn give_way(&self) {
        let id = ObjectId::head(Lineage::CATALOGUE);
        let ask = ObjectRequest::new(ObjectOp::Capabilities, id);
        let _known = self.call(ask, Vec::new()).await;
    }

    /// Whether the pool holds any object that is not the catalogue's.
    pub(crate) async fn holds_volumes(&self) -> Outcome<bool> {
        let above = ObjectId {
            lineage: Lineage::CATALOGUE,
            kind: ObjectKind::Content,
            number: u64::MAX,
        };
        let request = ObjectRequest {
            len: 32,
            ..ObjectRequest::new(ObjectOp::List, above)
        };
        let (reply, _) = self.call(request, Vec::new()).await;
        match reply.result {
            Ok(len) => Ok(len > 0),
            Err(code) => Err(failed(ObjectOp::List, above, code)),
        }
    }
}

/// What became of an append.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    Done,
    /// A newer session has sealed the log, or the log does not end at the position.
    Refused {
        /// Where it ends.
        end: u64,
        /// The refusal as a failure, [`ErrorCode::Stale`].
        why: Failure,
    },
}
