//! A small volume peer that follows the protocol, to drive the mapper: locate, write, written, flush, snapshot, zero.
//!
//! Invariants
//! - Requests in flight together never touch the same block: the plan sees to it.
//! - A snapshot waits for the writes that were under way when its epoch was raised, and for no others.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{BLOCK_SIZE, Epoch, Lineage, ObjectSize, SECTOR_SIZE};
use archipelago_protocol::map::{MapOp, MapReply, MapRequest, Placement};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectRequest};

use crate::machine::Link;
use crate::oracle::Value;
use crate::trouble::Trouble;

const SECTOR: usize = 512;

/// An open volume, or frozen thing.
#[derive(Debug)]
pub struct Volume {
    link: Link,
    handle: u32,
    lineage: Lineage,
    object_size: ObjectSize,
    /// Containers that completed writes have touched since they were last synced.
    dirty: RefCell<BTreeSet<ObjectId>>,
    /// Writes under way.
    active: RefCell<BTreeSet<u64>>,
    next_write: Cell<u64>,
    /// One flush or snapshot at a time.
    flushing: Cell<bool>,
    lineages: RefCell<BTreeMap<u64, Lineage>>,
}

/// A run of blocks and where it lives.
struct Run {
    len: u64,
    placement: Placement,
    id: ObjectId,
}

impl Volume {
    /// Opens `lineage`.
    ///
    /// # Errors
    /// What the mapper says.
    pub async fn open(
        link: &Link,
        lineage: Lineage,
        for_writing: bool,
    ) -> Result<(Volume, u64), Trouble> {
        let reply = link.map(MapRequest::open(lineage, for_writing)).await;
        let handle = reply.result?;
        let object_size = reply
            .object_size()
            .ok_or_else(|| Trouble::Wrong("no object size".to_owned()))?;
        if for_writing {
            link.with(|shared| shared.writing.insert(lineage));
        }
        let volume = Volume {
            link: link.clone(),
            handle,
            lineage,
            object_size,
            dirty: RefCell::default(),
            active: RefCell::default(),
            next_write: Cell::new(0),
            flushing: Cell::new(false),
            lineages: RefCell::default(),
        };
        Ok((volume, reply.values[0]))
    }

    fn request(&self, op: MapOp) -> MapRequest {
        MapRequest::new(op, self.handle)
    }

    async fn locate(&self, offset: u64, len: u64, flags: u8) -> Result<Run, Trouble> {
        let request = MapRequest {
            flags,
            offset,
            len,
            ..self.request(MapOp::Locate)
        };
        let reply = self.link.map(request).await;
        let run = u64::from(reply.result?);
        let placement = reply
            .placement()
            .ok_or_else(|| Trouble::Wrong("no placement".to_owned()))?;
        if run == 0 || run > len || !run.is_multiple_of(BLOCK_SIZE) {
            return Err(Trouble::Wrong(format!(
                "a run of {run} for {len} at {offset}"
            )));
        }
        let lineage = match placement {
            Placement::Stored => self.lineage_of(reply.values[1]).await?,
            _ => self.lineage,
        };
        Ok(Run {
            len: run,
            placement,
            id: ObjectId::data(lineage, Epoch(reply.values[0])),
        })
    }

    async fn lineage_of(&self, index: u64) -> Result<Lineage, Trouble> {
        if let Some(lineage) = self.lineages.borrow().get(&index) {
            return Ok(*lineage);
        }
        let MapReply { result, values, .. } = self
            .link
            .map(MapRequest {
                operand: [index, 0],
                ..self.request(MapOp::Lineage)
            })
            .await;
        result?;
        let lineage = Lineage::from_words(values[0], values[1]);
        self.lineages.borrow_mut().insert(index, lineage);
        Ok(lineage)
    }

    /// Bytes from `offset` to the end of its object, at most `len`.
    fn in_object(&self, offset: u64, len: u64) -> u64 {
        len.min(self.object_size.bytes() - offset % self.object_size.bytes())
    }

    fn object_request(&self, op: ObjectOp, id: ObjectId, offset: u64, len: usize) -> ObjectRequest {
        let len = u32::try_from(len).expect("pieces are small");
        ObjectRequest {
            object_size: self.object_size,
            offset,
            len,
            ..ObjectRequest::new(op, id)
        }
    }

    /// Reads whole blocks.
    ///
    /// # Errors
    /// What the mapper or the blocker says.
    pub async fn read_blocks(&self, offset: u64, len: u64) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let at = offset + bytes.len() as u64;
            let run = self
                .locate(at, self.in_object(at, len - bytes.len() as u64), 0)
                .await?;
            let count = usize::try_from(run.len).expect("a run is small");
            match run.placement {
                Placement::Zero => bytes.resize(bytes.len() + count, 0),
                Placement::Stored => {
                    let (reply, data) = self
                        .link
                        .object(self.object_request(ObjectOp::Read, run.id, at, count), &[])
                        .await;
                    if reply.result == Err(ErrorCode::NotFound) {
                        return Err(Trouble::Wrong(format!(
                            "nothing where the map says {:?} at {at}",
                            run.id
                        )));
                    }
                    reply.result?;
                    bytes.extend(data);
                }
                Placement::First => {
                    return Err(Trouble::Wrong(
                        "a first write in answer to a read".to_owned(),
                    ));
                }
            }
        }
        Ok(bytes)
    }

    /// The stamps of `count` sectors from the beginning.
    ///
    /// # Errors
    /// What the mapper or the blocker says, and sectors that are no stamp of theirs.
    pub async fn read_all(&self, count: usize) -> Result<Vec<Value>, Trouble> {
        let len = (count as u64 * SECTOR_SIZE).next_multiple_of(BLOCK_SIZE);
        let bytes = self.read_blocks(0, len).await?;
        bytes
            .chunks_exact(SECTOR)
            .take(count)
            .enumerate()
            .map(|(index, sector)| unstamp(sector, index))
            .collect()
    }

    /// Writes `value` to `count` sectors at `first`.
    ///
    /// # Errors
    /// What the mapper or the blocker says.
    pub async fn write(&self, first: usize, count: usize, value: Value) -> Result<(), Trouble> {
        let number = self.next_write.get();
        self.next_write.set(number + 1);
        self.active.borrow_mut().insert(number);
        let result = self.write_active(first, count, value).await;
        self.active.borrow_mut().remove(&number);
        result
    }

    async fn write_active(&self, first: usize, count: usize, value: Value) -> Result<(), Trouble> {
        let bytes: Vec<u8> = (first..first + count)
            .flat_map(|index| stamp(value, index))
            .collect();
        let start = first as u64 * SECTOR_SIZE;
        let end = start + bytes.len() as u64;
        let mut at = start / BLOCK_SIZE * BLOCK_SIZE;
        while at < end {
            let len = self.in_object(at, (end - at).next_multiple_of(BLOCK_SIZE));
            let run = self
                .locate(at, len, archipelago_protocol::map::FLAG_WRITE)
                .await?;
            let (from, to) = (start.max(at), end.min(at + run.len));
            let piece = &bytes[index(from - start)..index(to - start)];
            match run.placement {
                Placement::Stored => {
                    self.put(run.id, from, piece).await?;
                }
                Placement::First => {
                    let mut blocks = if from == at && to == at + run.len {
                        vec![0; piece.len()]
                    } else {
                        self.read_blocks(at, run.len).await?
                    };
                    blocks[index(from - at)..][..piece.len()].copy_from_slice(piece);
                    self.check_fresh(run.id, at, run.len)?;
                    self.put(run.id, at, &blocks).await?;
                    let written = MapRequest {
                        offset: at,
                        len: run.len,
                        operand: [run.id.number, 0],
                        ..self.request(MapOp::Written)
                    };
                    self.link.map(written).await.result?;
                }
                Placement::Zero => {
                    return Err(Trouble::Wrong("zeros in answer to a write".to_owned()));
                }
            }
            at += run.len;
        }
        Ok(())
    }

    async fn put(&self, id: ObjectId, offset: u64, bytes: &[u8]) -> Result<(), Trouble> {
        // Dirty also when it fails: what it left must not be taken for synced.
        let (reply, _) = self
            .link
            .object(
                self.object_request(ObjectOp::Write, id, offset, bytes.len()),
                bytes,
            )
            .await;
        self.dirty.borrow_mut().insert(id);
        reply.result?;
        Ok(())
    }

    /// What a crash left behind is never written into again: a first write goes where nothing ever was, but for what was
    /// written first since the last crash (and zeroed meanwhile).
    fn check_fresh(&self, id: ObjectId, offset: u64, len: u64) -> Result<(), Trouble> {
        for block in offset / BLOCK_SIZE..(offset + len) / BLOCK_SIZE {
            let ours = !self.link.with(|shared| shared.firsts.insert((id, block)));
            let used = self.link.with(|shared| {
                shared
                    .backend
                    .has_data(id, block * BLOCK_SIZE, index(BLOCK_SIZE))
            });
            if used && !ours {
                return Err(Trouble::Wrong(format!(
                    "block {block} of {id:?} is given out as fresh, but holds data"
                )));
            }
        }
        Ok(())
    }

    /// `count` blocks at `first` read as zeros from now on.
    ///
    /// # Errors
    /// What the mapper says.
    pub async fn zero(&self, first: u64, count: u64) -> Result<(), Trouble> {
        let request = MapRequest {
            offset: first * BLOCK_SIZE,
            len: count * BLOCK_SIZE,
            ..self.request(MapOp::Zero)
        };
        self.link.map(request).await.result?;
        Ok(())
    }

    async fn take_turn(&self) {
        self.link.until(|| !self.flushing.get()).await;
        self.flushing.set(true);
    }

    /// Makes durable what was completed before.
    ///
    /// # Errors
    /// What the mapper or the blocker says. The volume has to be abandoned then.
    pub async fn flush(&self) -> Result<(), Trouble> {
        self.take_turn().await;
        let result = self.flush_in_turn().await;
        self.flushing.set(false);
        result
    }

    async fn flush_in_turn(&self) -> Result<(), Trouble> {
        let begun = self.link.map(self.request(MapOp::FlushBegin)).await;
        let anything = begun.result? > 0;
        self.sync_dirty().await?;
        if anything {
            let commit = MapRequest {
                operand: [begun.values[0], 0],
                ..self.request(MapOp::FlushCommit)
            };
            self.link.map(commit).await.result?;
        }
        Ok(())
    }

    async fn sync_dirty(&self) -> Result<(), Trouble> {
        let dirty = self.dirty.take();
        let many = dirty.len() > 8;
        for id in dirty.iter().take(if many { 1 } else { dirty.len() }) {
            let op = if many {
                ObjectOp::SyncPool
            } else {
                ObjectOp::Sync
            };
            let (reply, _) = self
                .link
                .object(self.object_request(op, *id, 0, 0), &[])
                .await;
            reply.result?;
        }
        Ok(())
    }

    /// Makes the snapshot that `token` stands for; `begun` is called when its epoch has been raised.
    ///
    /// # Errors
    /// What the mapper or the blocker says.
    pub async fn snapshot(&self, token: u64, begun: impl FnOnce()) -> Result<(), Trouble> {
        self.take_turn().await;
        let result = self.snapshot_in_turn(token, begun).await;
        self.flushing.set(false);
        result
    }

    async fn snapshot_in_turn(&self, token: u64, begun: impl FnOnce()) -> Result<(), Trouble> {
        let request = |op| MapRequest {
            operand: [token, 0],
            ..self.request(op)
        };
        self.link.map(request(MapOp::SnapshotBegin)).await.result?;
        begun();
        let before = self.active.borrow().clone();
        self.link
            .until(|| self.active.borrow().is_disjoint(&before))
            .await;
        self.sync_dirty().await?;
        self.link.map(request(MapOp::SnapshotCommit)).await.result?;
        Ok(())
    }

    /// Flushes and gives ownership back.
    ///
    /// # Errors
    /// What the mapper or the blocker says.
    pub async fn close(&self, for_writing: bool) -> Result<(), Trouble> {
        if for_writing {
            self.flush().await?;
        }
        self.link
            .with(|shared| shared.writing.remove(&self.lineage));
        self.link.map(self.request(MapOp::Close)).await.result?;
        Ok(())
    }

    /// Ends the session after a failure.
    pub async fn abandon(&self) {
        self.link.map(self.request(MapOp::Abandon)).await;
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("volumes here are small")
}

/// The bytes of sector `index` that a write of `value` leaves: they tell both, eight bytes at a time.
fn stamp(value: Value, index: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if value != 0 {
        let word = u64::from(value) << 32 | index as u64;
        bytes
            .chunks_exact_mut(8)
            .for_each(|chunk| chunk.copy_from_slice(&word.to_le_bytes()));
    }
    bytes
}

fn unstamp(sector: &[u8], index: usize) -> Result<Value, Trouble> {
    let first: [u8; 8] = sector[..8].try_into().expect("eight bytes");
    let word = u64::from_le_bytes(first);
    let whole = sector.chunks_exact(8).all(|chunk| chunk == first);
    let here = word == 0 || word & 0xffff_ffff == index as u64;
    if !whole || !here {
        return Err(Trouble::Wrong(format!(
            "sector {index} holds no stamp of its own: {word:#x}, whole: {whole}"
        )));
    }
    Ok(Value::try_from(word >> 32).expect("32 bits are left"))
}
