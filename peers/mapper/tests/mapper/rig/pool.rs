//! A pool in memory, and everything that a crash, a failure or damage can do to it.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use archipelago_blocker::logs::{Landing, LogState, find_end};
use archipelago_protocol::object::{
    FLAG_DURABLE, ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest,
};
use archipelago_protocol::{ErrorCode, Generation, Lineage};

/// What a medium writes whole or not at all.
pub(crate) const SECTOR: usize = 512;

type Sectors = BTreeMap<usize, [u8; SECTOR]>;

/// An object as reads see it, and as the medium has it.
#[derive(Debug, Clone, Default)]
struct Object {
    now: Sectors,
    durable: Sectors,
    dirty: BTreeSet<usize>,
}

/// What a durable write that failed has left, where everybody reads it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Left {
    /// All of it.
    Durable,
    /// What a sync makes durable.
    Unsynced,
    /// What no sync makes durable any more, though it succeeds.
    Lost,
}

/// What a pool has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Room {
    #[default]
    Enough,
    /// For writes over what is there.
    InPlace,
    /// Of volumes for no write at all, as in a file system that copies what is written over.
    None,
}

/// Objects in memory: written and durable kept apart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    objects: BTreeMap<ObjectId, Object>,
    pub(crate) swapped: BTreeMap<ObjectId, (u64, Vec<u8>)>,
    /// Requests so far.
    pub(crate) log: Vec<(ObjectOp, ObjectId, u8)>,
    /// The request with this number fails so.
    pub(crate) fail: Option<(usize, ErrorCode)>,
    fail_done: Option<Left>,
    /// Of sealed logs.
    tokens: BTreeMap<ObjectId, Generation>,
    /// Where logs end, as far as that is known; otherwise what is stored says it.
    ends: BTreeMap<ObjectId, u64>,
    pub(crate) room: Room,
    /// Completed writes are durable: there is nothing to sync.
    pub(crate) durable: bool,
}

impl Pool {
    /// An empty pool whose completed writes are durable.
    pub(crate) fn durable() -> Self {
        Pool {
            durable: true,
            ..Pool::default()
        }
    }

    /// Whether there is room for `request`.
    fn has_room(&self, request: &ObjectRequest, len: usize) -> bool {
        let is_there = match request.op {
            ObjectOp::CompareAndSwap => self.swapped.contains_key(&request.id),
            // It lands on what was written before.
            ObjectOp::Append => true,
            ObjectOp::Write => self.objects.get(&request.id).is_some_and(|object| {
                let mut whole = true;
                for_sectors(request.offset as usize, len, |sector, _, _| {
                    whole &= object.now.contains_key(&sector);
                });
                whole
            }),
            _ => return true,
        };
        match self.room {
            Room::Enough => true,
            Room::InPlace => is_there,
            Room::None => request.id.lineage == Lineage::CATALOGUE && is_there,
        }
    }

    /// What an append comes to, and the write that it is.
    fn landing(&mut self, request: &ObjectRequest) -> (LogState, Landing, ObjectRequest) {
        let (id, object) = (request.id, &self.objects[&request.id]);
        let last = object.now.last_key_value().map_or(0, |(sector, _)| *sector);
        let len = (last + 1) * SECTOR;
        let stored = || {
            let sector = |index: usize| object.now.get(&index).copied().unwrap_or([0; SECTOR]);
            let bytes: Vec<u8> = (0..=last).flat_map(sector).collect();
            let mut read = |places: std::ops::Range<u64>| {
                Ok::<_, Infallible>(bytes[places.start as usize..places.end as usize].to_vec())
            };
            let Ok(end) = find_end(id.lineage, len as u64, u64::MAX, &mut read);
            end
        };
        let state = LogState {
            token: self.tokens.get(&id).copied().unwrap_or_default(),
            end: *self.ends.entry(id).or_insert_with(stored),
        };
        let landing = state.append(len as u64, request.offset, request.len, request.token);
        let write = ObjectRequest {
            op: ObjectOp::Write,
            flags: FLAG_DURABLE,
            offset: request.offset % len as u64,
            ..*request
        };
        (state, landing, write)
    }

    pub(crate) fn serve(&mut self, request: &ObjectRequest, data: &[u8]) -> (ObjectReply, Vec<u8>) {
        self.log.push((request.op, request.id, request.flags));
        if let Some((at, code)) = self.fail
            && at == self.log.len()
        {
            return (ObjectReply::failed(code), Vec::new());
        }
        if self.durable {
            let is_sync = matches!(request.op, ObjectOp::Sync | ObjectOp::SyncPool);
            assert!(!is_sync, "there is nothing to sync: {request:?}");
            let is_write = request.op == ObjectOp::Write;
            assert!(!is_write || request.flags == FLAG_DURABLE, "{request:?}");
        }
        if !self.has_room(request, data.len()) {
            return (ObjectReply::failed(ErrorCode::NoSpace), Vec::new());
        }
        if matches!(request.op, ObjectOp::Write | ObjectOp::Append)
            && let Some(left) = self.fail_done.take()
        {
            let mut done = *request;
            if request.op == ObjectOp::Append {
                (_, _, done) = self.landing(request);
            }
            if !matches!(left, Left::Durable) {
                done.flags &= !FLAG_DURABLE;
            }
            self.serve(&done, data).0.result.unwrap();
            if matches!(left, Left::Lost) {
                self.objects.get_mut(&request.id).unwrap().dirty.clear();
            }
            return (ObjectReply::failed(ErrorCode::Io), Vec::new());
        }
        let id = request.id;
        let offset = request.offset as usize;
        match request.op {
            ObjectOp::Read => {
                let whole = request.offset.is_multiple_of(4096) && request.len.is_multiple_of(4096);
                assert!(
                    whole || id.kind != ObjectKind::Pack,
                    "a backend would copy: {request:?}"
                );
                let Some(object) = self.objects.get(&id) else {
                    return (ObjectReply::failed(ErrorCode::NotFound), Vec::new());
                };
                let mut bytes = vec![0; request.len as usize];
                for_sectors(offset, bytes.len(), |sector, within, range| {
                    if let Some(known) = object.now.get(&sector) {
                        let len = range.len();
                        bytes[range].copy_from_slice(&known[within..within + len]);
                    }
                });
                (ObjectReply::done(request.len), bytes)
            }
            ObjectOp::Write => {
                self.ends.remove(&id);
                let object = self.objects.entry(id).or_default();
                let end = offset + data.len();
                for_sectors(offset, data.len(), |sector, within, range| {
                    let known = object.now.entry(sector).or_insert([0; SECTOR]);
                    known[within..within + range.len()].copy_from_slice(&data[range]);
                    object.dirty.insert(sector);
                });
                if request.flags & FLAG_DURABLE != 0 {
                    object.sync_sectors(offset / SECTOR, end.div_ceil(SECTOR));
                }
                (ObjectReply::done(request.len), Vec::new())
            }
            ObjectOp::Append => {
                let (state, landing, write) = self.landing(request);
                if !matches!(landing, Landing::At(_)) {
                    let stale = ObjectReply {
                        values: [state.end, 0],
                        ..ObjectReply::failed(ErrorCode::Stale)
                    };
                    return (stale, Vec::new());
                }
                let served = self.serve(&write, data);
                self.log.pop();
                if served.0.result.is_ok() {
                    self.ends.insert(id, request.offset + data.len() as u64);
                }
                served
            }
            ObjectOp::Seal if !self.objects.contains_key(&id) => {
                (ObjectReply::failed(ErrorCode::NotFound), Vec::new())
            }
            ObjectOp::Seal => {
                let token = self.tokens.entry(id).or_default();
                if request.token < *token {
                    return (ObjectReply::failed(ErrorCode::Stale), Vec::new());
                }
                *token = request.token;
                (ObjectReply::done(0), Vec::new())
            }
            ObjectOp::Sync => {
                if let Some(object) = self.objects.get_mut(&id) {
                    object.sync();
                }
                (ObjectReply::done(0), Vec::new())
            }
            ObjectOp::SyncPool => {
                self.objects.values_mut().for_each(Object::sync);
                (ObjectReply::done(0), Vec::new())
            }
            ObjectOp::CompareAndSwap => {
                let version = self.swapped.get(&id).map_or(0, |(version, _)| *version);
                if version != request.offset {
                    return (ObjectReply::failed(ErrorCode::Stale), Vec::new());
                }
                self.swapped.insert(id, (version + 1, data.to_vec()));
                (
                    ObjectReply {
                        values: [version + 1, 0],
                        ..ObjectReply::done(0)
                    },
                    Vec::new(),
                )
            }
            ObjectOp::ReadSwapped => match self.swapped.get(&id) {
                Some((version, bytes)) => {
                    let reply = ObjectReply {
                        values: [*version, 0],
                        ..ObjectReply::done(bytes.len() as u32)
                    };
                    (reply, bytes.clone())
                }
                None => (ObjectReply::failed(ErrorCode::NotFound), Vec::new()),
            },
            ObjectOp::Punch => {
                if let Some(object) = self.objects.get_mut(&id) {
                    for_sectors(offset, request.len as usize, |sector, _, _| {
                        if object.now.remove(&sector).is_some() {
                            object.dirty.insert(sector);
                        }
                    });
                }
                (ObjectReply::done(0), Vec::new())
            }
            ObjectOp::Delete => {
                self.objects.remove(&id);
                self.swapped.remove(&id);
                (ObjectReply::done(0), Vec::new())
            }
            ObjectOp::DeleteLineage => {
                self.objects.retain(|known, _| known.lineage != id.lineage);
                self.swapped.retain(|known, _| known.lineage != id.lineage);
                (ObjectReply::done(0), Vec::new())
            }
            ObjectOp::Stat => match self.objects.get(&id) {
                Some(object) => {
                    let last = object.now.last_key_value();
                    let len = last.map_or(0, |(sector, _)| (*sector as u64 + 1) * 512);
                    let reply = ObjectReply {
                        values: [len, len],
                        ..ObjectReply::done(0)
                    };
                    (reply, Vec::new())
                }
                None => (ObjectReply::failed(ErrorCode::NotFound), Vec::new()),
            },
            ObjectOp::StatPool => (
                ObjectReply {
                    values: [5, 10],
                    ..ObjectReply::done(0)
                },
                Vec::new(),
            ),
            ObjectOp::List => {
                let all = self.objects.keys().chain(self.swapped.keys());
                let above: BTreeSet<ObjectId> = all.filter(|known| **known > id).copied().collect();
                let room = request.len as usize / 32;
                let ids: Vec<u8> = above
                    .into_iter()
                    .take(room)
                    .flat_map(ObjectId::to_bytes)
                    .collect();
                (ObjectReply::done(ids.len() as u32), ids)
            }
            _ => (ObjectReply::done(0), Vec::new()),
        }
    }

    /// A power cut: of the sectors that were not synced, those stay that `keep` says.
    pub(crate) fn power_cut(&mut self, mut keep: impl FnMut() -> bool) {
        self.ends.clear();
        for object in self.objects.values_mut() {
            for sector in std::mem::take(&mut object.dirty) {
                if keep() {
                    object.keep(sector);
                }
            }
            object.now.clone_from(&object.durable);
        }
        // An object of which nothing reached the medium is not there.
        self.objects.retain(|_, object| !object.now.is_empty());
    }

    pub(crate) fn holds(&self, lineage: Lineage) -> bool {
        self.objects
            .keys()
            .chain(self.swapped.keys())
            .any(|id| id.lineage == lineage)
    }

    /// Blocks of data of `lineage` that take space, with their epochs.
    pub(crate) fn blocks(&self, lineage: Lineage) -> Vec<(u64, u64)> {
        let is_data = |id: &ObjectId| id.lineage == lineage && id.kind == ObjectKind::Data;
        let objects = self.objects.iter().filter(|(id, _)| is_data(id));
        let blocks = objects.flat_map(|(id, object)| {
            let sectors = object.now.keys().map(|sector| *sector as u64 / 8);
            sectors.map(|block| (id.number, block))
        });
        let blocks: BTreeSet<(u64, u64)> = blocks.collect();
        blocks.into_iter().collect()
    }

    /// How many packs there are of `lineage`.
    pub(crate) fn packs(&self, lineage: Lineage) -> usize {
        let pack = |id: &&ObjectId| id.kind == ObjectKind::Pack && id.lineage == lineage;
        self.objects.keys().filter(pack).count()
    }

    /// Where the longest pack of `lineage` ends.
    pub(crate) fn len_of_packs(&self, lineage: Lineage) -> usize {
        let packs = self.objects.iter();
        let packs = packs.filter(|(id, _)| id.kind == ObjectKind::Pack && id.lineage == lineage);
        let ends = packs.filter_map(|(_, object)| object.now.last_key_value());
        ends.map(|(sector, _)| (sector + 1) * SECTOR)
            .max()
            .unwrap_or(0)
    }

    pub(crate) fn count(&self, from: usize, op: ObjectOp, kind: ObjectKind) -> usize {
        self.log[from..]
            .iter()
            .filter(|(known, id, _)| *known == op && id.kind == kind)
            .count()
    }

    /// The log of `lineage` is as it was in `earlier`: what was written since is lost.
    pub(crate) fn lose_appends(&mut self, lineage: Lineage, earlier: &Pool) {
        let mut logs = earlier.objects.iter();
        let log = logs.find(|(id, _)| id.kind == ObjectKind::Log && id.lineage == lineage);
        let (id, object) = log.unwrap();
        self.objects.insert(*id, object.clone());
        self.ends.clear();
    }

    /// Leaves of the catalogue what a first start has when it has written so many bytes of its log.
    pub(crate) fn begin_catalogue(&mut self, written: u64) {
        let ours = |id: &ObjectId| id.lineage == Lineage::CATALOGUE;
        self.objects.retain(|id, _| !ours(id));
        self.swapped.retain(|id, _| !ours(id));
        self.ends.clear();
        if written > 0 {
            let blank = archipelago_protocol::log_sector::blank(Lineage::CATALOGUE, 0..written);
            let request = ObjectRequest {
                len: u32::try_from(written).unwrap(),
                flags: FLAG_DURABLE,
                ..ObjectRequest::new(ObjectOp::Write, ObjectId::log(Lineage::CATALOGUE, 1))
            };
            self.serve(&request, &blank).0.result.unwrap();
        }
    }

    /// The next write fails when it is done.
    pub(crate) fn fail_done(&mut self, left: Left) {
        self.fail_done = Some(left);
    }

    /// Flips a bit of an object.
    pub(crate) fn damage(&mut self, kind: ObjectKind, lineage: Lineage, at: usize) {
        if kind == ObjectKind::Head {
            self.swapped.get_mut(&ObjectId::head(lineage)).unwrap().1[at] ^= 1;
            return;
        }
        let (_, object) = self
            .objects
            .iter_mut()
            .find(|(id, _)| id.kind == kind && id.lineage == lineage)
            .unwrap();
        object.now.get_mut(&(at / SECTOR)).unwrap()[at % SECTOR] ^= 1;
        object.durable.clone_from(&object.now);
    }

    /// Puts `value` at byte `at` of the envelope of a head, or of the first structure of a pack or log, as another program would
    /// have written it: with checksums that are right.
    pub(crate) fn reseal(&mut self, kind: ObjectKind, lineage: Lineage, at: usize, value: u8) {
        if kind == ObjectKind::Head {
            let (_, head) = self.swapped.get_mut(&ObjectId::head(lineage)).unwrap();
            head[at] = value;
            seal(head);
            return;
        }
        let (_, object) = self
            .objects
            .iter_mut()
            .find(|(id, _)| id.kind == kind && id.lineage == lineage)
            .unwrap();
        // Sectors of a log have a header of 24 bytes in front of their content.
        let skip = if kind == ObjectKind::Log { 24 } else { 0 };
        let first = &object.now[&0];
        let len = u32::from_le_bytes(first[skip + 12..skip + 16].try_into().unwrap()) as usize;
        let sectors = len.div_ceil(SECTOR - skip);
        let contents = (0..sectors).flat_map(|sector| object.now[&sector][skip..].to_vec());
        let mut contents: Vec<u8> = contents.collect();
        contents[at] = value;
        seal(&mut contents[..len]);
        for (content, index) in contents.chunks(SECTOR - skip).zip(0..) {
            let sector = object.now.get_mut(&index).unwrap();
            sector[skip..].copy_from_slice(content);
            if kind == ObjectKind::Log {
                let words = lineage.to_words().map(u64::to_le_bytes);
                let parts = [words.as_flattened(), &sector[..20], &sector[24..]];
                let crc = parts.into_iter().fold(0, crc32c::crc32c_append);
                sector[20..24].copy_from_slice(&crc.to_le_bytes());
            }
        }
        object.durable.clone_from(&object.now);
    }
}

/// Puts the right checksum into the envelope of the structure that fills `bytes`.
fn seal(bytes: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..16]), &bytes[20..]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
}

impl Object {
    fn sync_sectors(&mut self, from: usize, to: usize) {
        let dirty: Vec<usize> = self.dirty.range(from..to).copied().collect();
        for sector in dirty {
            self.dirty.remove(&sector);
            self.keep(sector);
        }
    }

    /// The medium has the sector as reads see it.
    fn keep(&mut self, sector: usize) {
        match self.now.get(&sector) {
            Some(bytes) => self.durable.insert(sector, *bytes),
            None => self.durable.remove(&sector),
        };
    }

    fn sync(&mut self) {
        self.sync_sectors(0, usize::MAX);
    }
}

/// Calls `each` with (sector, offset in it, range of the buffer).
fn for_sectors(
    offset: usize,
    len: usize,
    mut each: impl FnMut(usize, usize, std::ops::Range<usize>),
) {
    let mut done = 0;
    while done < len {
        let at = offset + done;
        let piece = (SECTOR - at % SECTOR).min(len - done);
        each(at / SECTOR, at % SECTOR, done..done + piece);
        done += piece;
    }
}
