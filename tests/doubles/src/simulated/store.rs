//! The pool: objects, the graves of deleted ones, and what a power cut makes of them.
//!
//! Invariants
//! - A delete can be undone by a power cut until the pool was synced, unless the name has become durable anew. The rest
//!   of a lineage never outlives its head.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use archipelago_blocker::logs::Landing;
use archipelago_blocker::slots::{self, Current, SLOTS_LEN, Swap};
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::Lineage;
use archipelago_protocol::log_sector::is_batch;
use archipelago_protocol::object::{
    FLAG_DURABLE, OBJECT_ID_LEN, ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest,
    SWAP_LEN_MAX,
};

use super::choose::Chooser;
use super::file::{File, Keep, Moment};

/// Bytes that the pool reports as the whole: a limit that is not kept.
const POOL_BYTES: u64 = 1 << 40;

/// A container: data is synced and named in pieces of 64 GiB.
type Key = (ObjectId, u64);

const CHUNK_LOG2: u32 = 36;

fn key(id: ObjectId, offset: u64) -> Key {
    (
        id,
        if id.kind == ObjectKind::Data {
            offset >> CHUNK_LOG2
        } else {
            0
        },
    )
}

/// A request and the bytes that it carried when it was started.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) request: ObjectRequest,
    pub(super) data: Arc<[u8]>,
    /// When it was started.
    pub(super) moment: Moment,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    files: BTreeMap<Key, Arc<File>>,
    /// Deleted, but not durably.
    graves: BTreeMap<Key, Arc<File>>,
    /// Raised by every call that completes.
    pub(super) now: Moment,
    /// Each completed write and deletion is durable.
    pub(super) durable: bool,
}

/// The refusal that says what is there.
fn stale(there: u64) -> ObjectReply {
    ObjectReply {
        values: [there, 0],
        ..ObjectReply::failed(ErrorCode::Stale)
    }
}

impl Store {
    /// Does what `call` asks for, and returns the bytes that it reads.
    pub(super) fn execute(&mut self, call: &Call) -> Result<(ObjectReply, Vec<u8>), ErrorCode> {
        self.now += 1;
        let Call {
            request,
            data,
            moment,
        } = call;
        let id = request.id;
        let done = |count| Ok((ObjectReply::done(count), Vec::new()));
        match request.op {
            ObjectOp::Read => {
                let file = self
                    .files
                    .get(&key(id, request.offset))
                    .ok_or(ErrorCode::NotFound)?;
                let mut bytes = vec![0; request.len as usize];
                file.read(request.offset, &mut bytes);
                Ok((ObjectReply::done(request.len), bytes))
            }
            ObjectOp::Write => {
                let keep = match request.flags & FLAG_DURABLE {
                    0 => self.keep(),
                    _ => Keep::Durable,
                };
                let file = self.file_mut(key(id, request.offset));
                let end = file.log_state(id.lineage).end;
                if end > 0 {
                    return Ok((stale(end), Vec::new()));
                }
                file.write_all(request.offset, data, keep);
                file.named |= keep == Keep::Durable;
                done(request.len)
            }
            ObjectOp::Sync => {
                let mut lost = false;
                for file in self.files_of(id) {
                    lost |= std::mem::take(&mut file.lost);
                }
                if lost {
                    return Err(ErrorCode::SyncFailed);
                }
                self.files_of(id).for_each(|file| file.sync(*moment));
                done(0)
            }
            ObjectOp::SyncPool => {
                for file in self.files.values_mut().filter(|file| !file.is_settled()) {
                    Arc::make_mut(file).sync(*moment);
                }
                self.graves.clear();
                done(0)
            }
            ObjectOp::CompareAndSwap => self.swap(call).map(|reply| (reply, Vec::new())),
            ObjectOp::ReadSwapped => {
                let Current { version, content } = self.current(id)?.ok_or(ErrorCode::NotFound)?;
                let len = u32::try_from(content.len()).expect("at most SWAP_LEN_MAX");
                if len > request.len {
                    return Err(ErrorCode::Invalid);
                }
                Ok((
                    ObjectReply {
                        values: [version, 0],
                        ..ObjectReply::done(len)
                    },
                    content,
                ))
            }
            ObjectOp::Delete => {
                self.bury(|(known, _)| *known == id);
                done(0)
            }
            ObjectOp::DeleteLineage => {
                self.bury(|(known, _)| known.lineage == id.lineage);
                done(0)
            }
            ObjectOp::Append | ObjectOp::Seal if id.kind != ObjectKind::Log => {
                Err(ErrorCode::Invalid)
            }
            ObjectOp::Append => self.append(call).map(|reply| (reply, Vec::new())),
            ObjectOp::Seal => {
                let file = self.files.get_mut(&key(id, 0)).ok_or(ErrorCode::NotFound)?;
                let log = &mut Arc::make_mut(file).log;
                if request.token < log.token {
                    return Ok((stale(log.token.0), Vec::new()));
                }
                log.token = request.token;
                done(0)
            }
            ObjectOp::Create if matches!(id.kind, ObjectKind::Head | ObjectKind::Data) => {
                Err(ErrorCode::Invalid)
            }
            ObjectOp::Create if self.files.contains_key(&key(id, 0)) => Err(ErrorCode::Exists),
            ObjectOp::Create => {
                self.file_mut(key(id, 0)).named = true;
                done(0)
            }
            ObjectOp::Capabilities => Err(ErrorCode::Internal),
            ObjectOp::Punch => {
                let keep = self.keep();
                if let Some(file) = self.files.get_mut(&key(id, request.offset)) {
                    Arc::make_mut(file).punch(request.offset, request.len as usize, keep);
                }
                done(0)
            }
            ObjectOp::Stat => self.stat(id).map(|reply| (reply, Vec::new())),
            ObjectOp::StatPool => {
                let used: u64 = self.files.values().map(|file| file.occupied()).sum();
                let values = [POOL_BYTES.saturating_sub(used), POOL_BYTES];
                Ok((
                    ObjectReply {
                        values,
                        ..ObjectReply::done(0)
                    },
                    Vec::new(),
                ))
            }
            ObjectOp::List => self.list(request),
        }
    }

    /// How what is written now is kept.
    fn keep(&self) -> Keep {
        match self.durable {
            true => Keep::Durable,
            false => Keep::Written(self.now),
        }
    }

    /// What a call that fails leaves behind.
    pub(super) fn execute_failing(&mut self, call: &Call, chooser: &mut dyn Chooser) {
        self.now += 1;
        let request = &call.request;
        match request.op {
            ObjectOp::Write if chooser.choose(2) == 1 => {
                let keep = self.keep();
                let file = self.file_mut(key(request.id, request.offset));
                file.write(request.offset, &call.data, keep, || chooser.choose(2) == 1);
            }
            ObjectOp::Append if chooser.choose(2) == 1 => {
                let keep = self.keep();
                self.begin_append(call, keep, || chooser.choose(2) == 1);
            }
            ObjectOp::CompareAndSwap
            | ObjectOp::Append
            | ObjectOp::Seal
            | ObjectOp::Create
            | ObjectOp::Delete
            | ObjectOp::DeleteLineage
                if chooser.choose(2) == 1 =>
            {
                // It has happened, but the answer says otherwise.
                let _ = self.execute(call);
            }
            ObjectOp::Sync => {
                self.files_of(request.id).for_each(File::drop_written);
            }
            ObjectOp::SyncPool => {
                self.files
                    .values_mut()
                    .for_each(|file| Arc::make_mut(file).lose_written());
            }
            _ => {}
        }
    }

    /// What was lost before is not reported to whoever opens objects from now on.
    pub(super) fn forget_losses(&mut self) {
        for file in self.files.values_mut().filter(|file| file.lost) {
            Arc::make_mut(file).lost = false;
        }
    }

    /// Finds out what appends that were not acknowledged have left: before others are begun.
    pub(super) fn settle_logs(&mut self) {
        for ((id, _), file) in &mut self.files {
            if file.in_doubt.is_some() {
                Arc::make_mut(file).log_state(id.lineage);
            }
        }
    }

    fn is_in_doubt(&self, log: ObjectId) -> bool {
        let file = self.files.get(&key(log, 0));
        file.is_some_and(|file| file.in_doubt.is_some())
    }

    /// Adds what a call in flight may have done already to what the power cut then chooses from.
    pub(super) fn begin(&mut self, call: &Call, chooser: &mut dyn Chooser) {
        self.now += 1;
        let request = &call.request;
        let keep = Keep::Written(self.now);
        match request.op {
            ObjectOp::Write => {
                self.file_mut(key(request.id, request.offset)).write_all(
                    request.offset,
                    &call.data,
                    keep,
                );
            }
            // All of its sectors: the power cut chooses among them. Another append to the log waits for it, and is not begun.
            ObjectOp::Append if !self.is_in_doubt(request.id) => {
                self.begin_append(call, keep, || true);
            }
            ObjectOp::CompareAndSwap if request.len <= SWAP_LEN_MAX => {
                let Ok(current) = self.current(request.id) else {
                    return;
                };
                if let Swap::Write { offset, slot, .. } =
                    slots::swap(current.as_ref(), request.offset, &call.data)
                {
                    self.file_mut(key(request.id, 0))
                        .write_all(offset, &slot[..], keep);
                }
            }
            ObjectOp::Seal
            | ObjectOp::Create
            | ObjectOp::Punch
            | ObjectOp::Delete
            | ObjectOp::DeleteLineage
                if chooser.choose(2) == 1 =>
            {
                let _ = self.execute(call);
            }
            _ => {}
        }
    }

    /// Writes the sectors of an append that `wanted` says yes to. Whether it has landed, what is left of it says.
    fn begin_append(&mut self, call: &Call, keep: Keep, wanted: impl FnMut() -> bool) {
        let ObjectRequest {
            id,
            offset,
            len,
            token,
            ..
        } = call.request;
        let Some(file) = self.files.get_mut(&key(id, 0)) else {
            return;
        };
        let file = Arc::make_mut(file);
        let state = file.log_state(id.lineage);
        if let Landing::At(place) = state.append(file.len(), offset, len, token) {
            file.write(place, &call.data, keep, wanted);
            file.in_doubt = Some(offset..offset + u64::from(len));
        }
    }

    fn append(&mut self, call: &Call) -> Result<ObjectReply, ErrorCode> {
        let ObjectRequest {
            id,
            offset,
            len,
            token,
            ..
        } = call.request;
        let file = self.files.get_mut(&key(id, 0)).ok_or(ErrorCode::NotFound)?;
        if !is_batch(&call.data, len, id.lineage, offset, token) {
            return Err(ErrorCode::Invalid);
        }
        let file = Arc::make_mut(file);
        let state = file.log_state(id.lineage);
        match state.append(file.len(), offset, len, token) {
            Landing::At(place) => {
                file.write_all(place, &call.data, Keep::Durable);
                file.log.end = offset + u64::from(len);
            }
            Landing::IfRepeated(place) => {
                let mut there = vec![0; call.data.len()];
                file.read(place, &mut there);
                if there != *call.data {
                    return Ok(stale(state.end));
                }
                // It may have been in flight when something else failed: it is durable when this is answered.
                file.write_all(place, &call.data, Keep::Durable);
            }
            Landing::Stale => return Ok(stale(state.end)),
            Landing::Invalid => return Err(ErrorCode::Invalid),
        }
        Ok(ObjectReply::done(len))
    }

    /// Leaves what a power cut may leave.
    pub(super) fn power_cut(&mut self, chooser: &mut dyn Chooser) {
        let (heads, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.graves)
            .into_iter()
            .partition(|((id, _), _)| id.kind == ObjectKind::Head);
        let mut needed = BTreeSet::new();
        for (key, grave) in others {
            if !self.files.contains_key(&key) && chooser.choose(2) == 0 {
                needed.insert(key.0.lineage);
                self.files.insert(key, grave);
            }
        }
        for (key, grave) in heads {
            let comes_back = needed.contains(&key.0.lineage) || chooser.choose(2) == 0;
            if comes_back && !self.files.contains_key(&key) {
                self.files.insert(key, grave);
            }
        }
        self.files.retain(|(id, _), file| {
            if !file.named && chooser.choose(2) == 0 {
                return false;
            }
            if !file.is_settled() {
                let file = Arc::make_mut(file);
                file.power_cut(chooser);
                file.find_end_again(id.lineage);
            }
            true
        });
    }

    /// The objects that are there, in order.
    pub(super) fn objects(&self) -> Vec<ObjectId> {
        let mut ids: Vec<ObjectId> = self.files.keys().map(|(id, _)| *id).collect();
        ids.dedup();
        ids
    }

    pub(super) fn bytes(&self, id: ObjectId) -> Option<Vec<u8>> {
        let file = self.files.get(&(id, 0))?;
        let len = usize::try_from(file.len()).expect("objects other than data are small");
        let mut bytes = vec![0; len];
        file.read(0, &mut bytes);
        Some(bytes)
    }

    pub(super) fn flip(&mut self, id: ObjectId, offset: u64, mask: u8) {
        let file = self.file_mut(key(id, offset));
        let mut byte = [0];
        file.read(offset, &mut byte);
        file.write_all(offset, &[byte[0] ^ mask], Keep::Durable);
    }

    pub(super) fn has_data(&self, id: ObjectId, offset: u64, len: usize) -> bool {
        self.files
            .get(&key(id, offset))
            .is_some_and(|file| file.has_data(offset, len))
    }

    /// The files of an object of which something is open, or lost.
    fn files_of(&mut self, id: ObjectId) -> impl Iterator<Item = &mut File> {
        let files = self.files.range_mut((id, 0)..=(id, u64::MAX));
        let open = files.filter(|(_, file)| file.lost || !file.is_settled());
        open.map(|(_, file)| Arc::make_mut(file))
    }

    fn file_mut(&mut self, key: Key) -> &mut File {
        Arc::make_mut(self.files.entry(key).or_default())
    }

    fn bury(&mut self, whose: impl Fn(&Key) -> bool) {
        let keys: Vec<Key> = self
            .files
            .keys()
            .filter(|key| whose(key))
            .copied()
            .collect();
        for key in keys {
            let file = self.files.remove(&key).expect("listed just now");
            if self.durable {
                continue;
            }
            // A name that was never durable does not come back for sure, but may: as the file that it was.
            self.graves.insert(key, file);
        }
    }

    fn current(&self, id: ObjectId) -> Result<Option<Current>, ErrorCode> {
        let Some(file) = self.files.get(&key(id, 0)) else {
            return Ok(None);
        };
        let mut bytes = [0; SLOTS_LEN];
        file.read(0, &mut bytes);
        slots::decode(&bytes).map_err(|_damage| ErrorCode::Damaged)
    }

    fn swap(&mut self, call: &Call) -> Result<ObjectReply, ErrorCode> {
        let request = &call.request;
        if request.len > SWAP_LEN_MAX {
            return Err(ErrorCode::Invalid);
        }
        let current = self.current(request.id)?;
        Ok(
            match slots::swap(current.as_ref(), request.offset, &call.data) {
                Swap::Write {
                    offset,
                    slot,
                    version,
                } => {
                    let file = self.file_mut(key(request.id, 0));
                    file.write_all(offset, &slot[..], Keep::Durable);
                    file.named = true;
                    ObjectReply {
                        values: [version, 0],
                        ..ObjectReply::done(0)
                    }
                }
                Swap::Done { version } => ObjectReply {
                    values: [version, 0],
                    ..ObjectReply::done(0)
                },
                Swap::Stale { version } => ObjectReply {
                    values: [version, 0],
                    ..ObjectReply::failed(ErrorCode::Stale)
                },
            },
        )
    }

    fn stat(&self, id: ObjectId) -> Result<ObjectReply, ErrorCode> {
        let mut chunks = self
            .files
            .range((id, 0)..=(id, u64::MAX))
            .map(|(_, file)| file)
            .peekable();
        chunks.peek().ok_or(ErrorCode::NotFound)?;
        let (bytes, len) = chunks.fold((0, 0), |(bytes, len), file| {
            (bytes + file.occupied(), file.len().max(len))
        });
        Ok(ObjectReply {
            values: [bytes, len],
            ..ObjectReply::done(0)
        })
    }

    fn list(&self, request: &ObjectRequest) -> Result<(ObjectReply, Vec<u8>), ErrorCode> {
        let room = request.len as usize / OBJECT_ID_LEN;
        if room == 0 {
            return Err(ErrorCode::Invalid);
        }
        let above = self.objects().into_iter().filter(|id| *id > request.id);
        let bytes: Vec<u8> = above.take(room).flat_map(ObjectId::to_bytes).collect();
        Ok((
            ObjectReply::done(u32::try_from(bytes.len()).expect("not more than len")),
            bytes,
        ))
    }

    /// Whether `lineage` has any object.
    pub(super) fn has_lineage(&self, lineage: Lineage) -> bool {
        self.files.keys().any(|(id, _)| id.lineage == lineage)
    }
}
