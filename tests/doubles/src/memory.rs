//! Objects in memory: sparse 4 KiB pages, gone with the process.
//!
//! Invariants
//! - A reply is ready when the request was started; syncs have nothing to do.
//! - A page that was never written is not there.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use archipelago_blocker::Backend;
use archipelago_blocker::logs::{Landing, LogState};
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::log_sector::is_batch;
use archipelago_protocol::object::{
    OBJECT_ID_LEN, ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest, SWAP_LEN_MAX,
};
use xseg::Span;

use crate::pages::{PAGE, for_pages, gather, scatter};

/// Bytes that [`ObjectOp::StatPool`] reports as the whole: a limit that is not kept.
const POOL_BYTES: u64 = 1 << 40;

#[derive(Debug, Default)]
struct Object {
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// End of the last byte written.
    len: u64,
    /// Of a log.
    log: LogState,
}

#[derive(Debug)]
struct Swapped {
    version: u64,
    content: Vec<u8>,
}

/// Objects in memory.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    objects: BTreeMap<ObjectId, Object>,
    swapped: BTreeMap<ObjectId, Swapped>,
    replies: VecDeque<(u64, ObjectReply)>,
    /// Between spans and pages, reused.
    bounce: Vec<u8>,
}

impl MemoryBackend {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn serve(
        &mut self,
        request: &ObjectRequest,
        memory: &[Span],
    ) -> Result<ObjectReply, ErrorCode> {
        let id = request.id;
        Ok(match request.op {
            ObjectOp::Read => {
                let object = self.objects.get(&id).ok_or(ErrorCode::NotFound)?;
                let mut bytes = std::mem::take(&mut self.bounce);
                bytes.clear();
                bytes.resize(request.len as usize, 0);
                object.read(request.offset, &mut bytes);
                scatter(&bytes, memory);
                self.bounce = bytes;
                ObjectReply::done(request.len)
            }
            ObjectOp::Write => {
                let mut bytes = std::mem::take(&mut self.bounce);
                gather(&mut bytes, memory);
                let object = self.objects.entry(id).or_default();
                if object.log.end > 0 {
                    return Ok(stale(object.log.end));
                }
                object.write(request.offset, &bytes);
                self.bounce = bytes;
                ObjectReply::done(request.len)
            }
            ObjectOp::Append | ObjectOp::Seal if id.kind != ObjectKind::Log => {
                return Err(ErrorCode::Invalid);
            }
            ObjectOp::Append => self.append(request, memory)?,
            ObjectOp::Seal => {
                let object = self.objects.get_mut(&id).ok_or(ErrorCode::NotFound)?;
                if request.token < object.log.token {
                    return Ok(stale(object.log.token.0));
                }
                object.log.token = request.token;
                ObjectReply::done(0)
            }
            ObjectOp::Create if matches!(id.kind, ObjectKind::Head | ObjectKind::Data) => {
                return Err(ErrorCode::Invalid);
            }
            ObjectOp::Create if self.objects.contains_key(&id) => return Err(ErrorCode::Exists),
            ObjectOp::Create => {
                self.objects.insert(id, Object::default());
                ObjectReply::done(0)
            }
            ObjectOp::Capabilities => return Err(ErrorCode::Internal),
            ObjectOp::Sync | ObjectOp::SyncPool => ObjectReply::done(0),
            ObjectOp::CompareAndSwap => self.swap(request, memory)?,
            ObjectOp::ReadSwapped => {
                let swapped = self.swapped.get(&id).ok_or(ErrorCode::NotFound)?;
                let len = u32::try_from(swapped.content.len()).expect("at most SWAP_LEN_MAX");
                if len > request.len {
                    return Err(ErrorCode::Invalid);
                }
                scatter(&swapped.content, memory);
                ObjectReply {
                    values: [swapped.version, 0],
                    ..ObjectReply::done(len)
                }
            }
            ObjectOp::Delete => {
                self.objects.remove(&id);
                self.swapped.remove(&id);
                ObjectReply::done(0)
            }
            ObjectOp::DeleteLineage => {
                self.objects.retain(|known, _| known.lineage != id.lineage);
                self.swapped.retain(|known, _| known.lineage != id.lineage);
                ObjectReply::done(0)
            }
            ObjectOp::Punch => {
                if let Some(object) = self.objects.get_mut(&id) {
                    object.punch(request.offset, u64::from(request.len));
                }
                ObjectReply::done(0)
            }
            ObjectOp::Stat => {
                let (bytes, len) = match (self.objects.get(&id), self.swapped.get(&id)) {
                    (Some(object), _) => ((object.pages.len() * PAGE) as u64, object.len),
                    (None, Some(swapped)) => (PAGE as u64, swapped.content.len() as u64),
                    (None, None) => return Err(ErrorCode::NotFound),
                };
                ObjectReply {
                    values: [bytes, len],
                    ..ObjectReply::done(0)
                }
            }
            ObjectOp::StatPool => {
                let pages: usize = self.objects.values().map(|object| object.pages.len()).sum();
                let used = ((pages + self.swapped.len()) * PAGE) as u64;
                ObjectReply {
                    values: [POOL_BYTES.saturating_sub(used), POOL_BYTES],
                    ..ObjectReply::done(0)
                }
            }
            ObjectOp::List => self.list(request, memory)?,
        })
    }

    fn append(
        &mut self,
        request: &ObjectRequest,
        memory: &[Span],
    ) -> Result<ObjectReply, ErrorCode> {
        let ObjectRequest {
            id,
            len,
            offset,
            token,
            ..
        } = *request;
        let object = self.objects.get_mut(&id).ok_or(ErrorCode::NotFound)?;
        let mut bytes = Vec::new();
        gather(&mut bytes, memory);
        if !is_batch(&bytes, len, id.lineage, offset, token) {
            return Err(ErrorCode::Invalid);
        }
        match object.log.append(object.len, offset, len, token) {
            Landing::At(place) => {
                object.write(place, &bytes);
                object.log.end = offset + u64::from(len);
            }
            Landing::IfRepeated(place) => {
                let mut there = vec![0; bytes.len()];
                object.read(place, &mut there);
                if there != bytes {
                    return Ok(stale(object.log.end));
                }
            }
            Landing::Stale => return Ok(stale(object.log.end)),
            Landing::Invalid => return Err(ErrorCode::Invalid),
        }
        Ok(ObjectReply::done(len))
    }

    fn swap(&mut self, request: &ObjectRequest, memory: &[Span]) -> Result<ObjectReply, ErrorCode> {
        if request.len > SWAP_LEN_MAX {
            return Err(ErrorCode::Invalid);
        }
        let mut content = Vec::new();
        gather(&mut content, memory);
        let now = self
            .swapped
            .get(&request.id)
            .map_or(0, |swapped| swapped.version);
        let repeated = now == request.offset.wrapping_add(1)
            && self
                .swapped
                .get(&request.id)
                .is_some_and(|swapped| swapped.content == content);
        if repeated {
            return Ok(ObjectReply {
                values: [now, 0],
                ..ObjectReply::done(0)
            });
        }
        if now != request.offset {
            return Ok(ObjectReply {
                values: [now, 0],
                ..ObjectReply::failed(ErrorCode::Stale)
            });
        }
        self.swapped.insert(
            request.id,
            Swapped {
                version: now + 1,
                content,
            },
        );
        Ok(ObjectReply {
            values: [now + 1, 0],
            ..ObjectReply::done(0)
        })
    }

    fn list(&self, request: &ObjectRequest, memory: &[Span]) -> Result<ObjectReply, ErrorCode> {
        let room = request.len as usize / OBJECT_ID_LEN;
        if room == 0 {
            return Err(ErrorCode::Invalid);
        }
        let above = (Bound::Excluded(request.id), Bound::Unbounded);
        let mut ids: Vec<ObjectId> = self
            .objects
            .range(above)
            .take(room)
            .map(|(id, _)| *id)
            .collect();
        ids.extend(self.swapped.range(above).take(room).map(|(id, _)| *id));
        ids.sort_unstable();
        ids.dedup();
        ids.truncate(room);
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_bytes()).collect();
        scatter(&bytes, memory);
        Ok(ObjectReply::done(
            u32::try_from(bytes.len()).expect("not more than the request's len"),
        ))
    }
}

/// The refusal that says what is there.
fn stale(there: u64) -> ObjectReply {
    ObjectReply {
        values: [there, 0],
        ..ObjectReply::failed(ErrorCode::Stale)
    }
}

impl Object {
    fn read(&self, offset: u64, into: &mut [u8]) {
        for_pages(offset, into.len(), |page, within, range| {
            if let Some(bytes) = self.pages.get(&page) {
                let len = range.len();
                into[range].copy_from_slice(&bytes[within..within + len]);
            }
        });
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        for_pages(offset, from.len(), |page, within, range| {
            let len = range.len();
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Box::new([0; PAGE]));
            bytes[within..within + len].copy_from_slice(&from[range]);
        });
        self.len = self.len.max(offset + from.len() as u64);
    }

    fn punch(&mut self, offset: u64, len: u64) {
        let len = usize::try_from(len).expect("at most IO_LEN_MAX");
        for_pages(offset, len, |page, within, range| {
            if range.len() == PAGE {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[within..within + range.len()].fill(0);
            }
        });
    }
}

impl Backend for MemoryBackend {
    fn name(&self) -> &str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::DURABLE
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        let reply = self
            .serve(request, memory)
            .unwrap_or_else(ObjectReply::failed);
        self.replies.push_back((ticket, reply));
    }

    fn poll(&mut self) -> Option<(u64, ObjectReply)> {
        self.replies.pop_front()
    }
}
