//! Opening for writing: the head, and recovery after an unclean end. What a session writes before it may write is in `begin`.
//!
//! Recovery, in this order: sync the pool (what a dead process had acknowledged is durable afterwards), replay the log,
//! then the presence journal of the same generation and boot, or else write home what the log carried. The volume can be
//! read then. `begin` stores the tree that results, and only then swaps the head: new generation, new epoch, new root, log
//! from its end on. A crash before the swap leaves everything as it was.
//!
//! Epochs: a session after an unclean end begins with epoch `generation << 32`. Generations are durable before they are
//! used and epochs count up within them, so no epoch is ever used twice, logged or not.

use std::collections::VecDeque;
use std::rc::Rc;

use archipelago_protocol::object::{ObjectId, ObjectKind};
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Generation, Lineage};

use super::begin::{Due, begin};
use super::carried::CarriedBlocks;
use super::lineages::LineageNumbers;
use super::{Live, Volume, with_pages};
use crate::catalogue::Item;
use crate::core::Core;
use crate::disk::name_of;
use crate::failure::{Failure, Outcome};
use crate::head::{StoredHead, VolumeHead};
use crate::log::{Log, Reach, Record, RecordKind};
use crate::tree::{Layer, Missing, Range, Root, Tree};

/// A volume's head as it is stored; `None`: it was never opened for writing.
pub(crate) async fn read_head(
    core: &Rc<Core>,
    item: &Item,
) -> Outcome<Option<StoredHead<VolumeHead>>> {
    let id = ObjectId::head(item.lineage);
    let Some((version, bytes)) = core.disk.read_swapped(id).await? else {
        if was_opened(core, item.lineage).await? {
            let why = format!(
                "{} is missing, but there are data or pages that it led to",
                name_of(id)
            );
            return Err(Failure::damaged(why));
        }
        return Ok(None);
    };
    let head = VolumeHead::decode(item.lineage, &bytes)?;
    if head.object_size != item.object_size {
        let why = format!(
            "{} is damaged: its object size is not the catalogue's",
            name_of(id)
        );
        return Err(Failure::damaged(why));
    }
    Ok(Some(StoredHead::new(item.lineage, head, version)))
}

/// Whether a volume without a head must have had one: only its log is written before its head is.
async fn was_opened(core: &Core, lineage: Lineage) -> Outcome<bool> {
    // A volume that was never opened has no log either, which is cheap to see.
    if core
        .disk
        .occupied(ObjectId::log(lineage, 1))
        .await?
        .is_none()
    {
        return Ok(false);
    }
    let first = ObjectId::data(lineage, Epoch(0));
    let objects = core.disk.list_above(first).await?;
    Ok(objects.iter().any(|object| {
        object.lineage == lineage && matches!(object.kind, ObjectKind::Data | ObjectKind::Pack)
    }))
}

/// Opens for writing, all of it: a session without room to begin is a failure. Otherwise as [`load_writer`].
pub(super) async fn open_writer(core: &Rc<Core>, item: &Item) -> Outcome<Rc<Volume>> {
    let volume = load_writer(core, item).await?;
    begin(core, &volume).await?;
    Ok(volume)
}

/// A volume as it is, for a session that is to begin: it can be read. A sync of the pool that failed since the last session
/// is told once, as [`ErrorCode::SyncFailed`]; the next open has what is durable. The caller holds the lineage's lock and
/// knows that nobody has it open.
pub(super) async fn load_writer(core: &Rc<Core>, item: &Item) -> Outcome<Rc<Volume>> {
    let (volume, due) = match read_head(core, item).await? {
        None => {
            let head = first_head(core, item);
            let stored = StoredHead::new(item.lineage, head, 0);
            (volume_of(core, item, stored), Due::First(head))
        }
        Some(stored) => {
            let head = stored.get();
            let generation = Generation(head.generation.0 + 1);
            let mut next = VolumeHead {
                generation,
                owner: core.config.owner,
                clean: false,
                ..head
            };
            let volume = volume_of(core, item, stored);
            if !head.clean {
                next = recover(core, &volume, next).await?;
            }
            (volume, Due::Next(next))
        }
    };
    volume.live.borrow_mut().due = Some(due);
    Ok(volume)
}

fn first_head(core: &Core, item: &Item) -> VolumeHead {
    VolumeHead {
        generation: Generation(1),
        owner: core.config.owner,
        clean: false,
        object_size: item.object_size,
        epoch: Epoch(1 << 32),
        frozen: Epoch(0),
        root: item.root,
        log_number: 1,
        log_len: core.config.log_len,
        log_start: 0,
    }
}

/// A volume as its head says, before any replay. Its pages will go to a pack of the next generation.
fn volume_of(core: &Core, item: &Item, stored: StoredHead<VolumeHead>) -> Rc<Volume> {
    let head = stored.get();
    let log = Log {
        id: ObjectId::log(item.lineage, head.log_number),
        len: head.log_len,
        start: head.log_start,
        position: head.log_start,
        generation: head.generation,
    };
    let pack = if stored.is_first() {
        head.generation.0
    } else {
        head.generation.0 + 1
    };
    Volume::new(
        core,
        item.lineage,
        item.object_size,
        stored,
        log,
        live_of(item, &head, pack),
    )
}

pub(super) fn live_of(item: &Item, head: &VolumeHead, pack: u64) -> Live {
    Live {
        size: item.size,
        writer: None,
        readers: 0,
        poison: None,
        read_only: false,
        tree: Tree::new(head.root, item.object_size),
        epoch: head.epoch,
        frozen: head.frozen,
        sealed: head.frozen,
        pending: VecDeque::new(),
        carried_until: 0,
        next_sequence: 1,
        journal: None,
        due: None,
        beginning: Vec::new(),
        snapshot: None,
        held: VecDeque::new(),
        relieving: false,
        checkpointing: false,
        pack,
        pack_offset: 0,
        lineages: LineageNumbers::new(item.lineage),
    }
}

/// Something frozen, or a closed volume: for reading only.
pub(super) fn read_only(core: &Core, item: &Item, root: Root) -> Rc<Volume> {
    let head = VolumeHead {
        root,
        ..first_head(core, item)
    };
    let volume = volume_of(core, item, StoredHead::new(item.lineage, head, 0));
    volume.live.borrow_mut().read_only = true;
    volume
}

/// Brings the tree in memory to the state that must survive; the head that is to name it. Of the log and the journal it
/// takes nothing away: should the session never begin, another recovery finds both.
async fn recover(
    core: &Rc<Core>,
    volume: &Rc<Volume>,
    mut next: VolumeHead,
) -> Outcome<VolumeHead> {
    // Taken before the sync that makes it true: a failed sync of somebody else voids journals, and this one is right if our
    // own sync succeeds before that.
    let journal = core.journals.borrow_mut().load(volume.lineage);
    let synced = core.sync_pool().await;
    // Told now, whosever sync it was that failed.
    let lost = core.lost.borrow_mut().remove(&volume.lineage);
    synced?;
    if lost {
        let lineage = volume.lineage;
        let why = format!("a sync of the pool failed: what {lineage} had not flushed may be lost");
        return Err(Failure::new(ErrorCode::SyncFailed, why));
    }
    let mut log = volume.log.borrow().clone();
    let journal = journal.filter(|journal| journal.generation == log.generation);
    let logged = journal.as_ref().and_then(|journal| journal.logged);
    let reach = logged.map_or(Reach::Unknown, Reach::AtLeast);
    let mut records = Vec::new();
    let mut carried = CarriedBlocks::default();
    let oldest = log.generation;
    for content in log.replay(&core.disk, oldest, reach).await? {
        let said = Record::decode_all(&content.payload).map_err(|why| log.damaged(&why))?;
        carried
            .replay(&said, content.blocks)
            .map_err(|why| log.damaged(&why))?;
        records.extend(said);
    }
    let (mut pending, carries) = (VecDeque::new(), !carried.is_empty());
    if let Some(journal) = journal {
        // The machine lives: what was carried is where it belongs, or something newer is.
        pending.extend(journal.records.iter().map(|record| Record {
            kind: if record.zero {
                RecordKind::Zero
            } else {
                RecordKind::Present
            },
            blocks: record.blocks,
            start: record.start,
            epoch: record.epoch,
            sequence: record.sequence,
        }));
    } else {
        carried.bring_home(core, volume).await?;
    }
    records.extend(&pending);
    for record in &records {
        replay(core, volume, record).await?;
    }
    next.epoch = Epoch(next.generation.0 << 32);
    let mut live = volume.live.borrow_mut();
    // For a session that ends before it has begun.
    live.next_sequence = pending.back().map_or(1, |record| record.sequence + 1);
    live.carried_until = if carries { log.position } else { 0 };
    live.pending = pending;
    *volume.log.borrow_mut() = log;
    Ok(next)
}

async fn replay(core: &Rc<Core>, volume: &Volume, record: &Record) -> Outcome<()> {
    let lineage: Lineage = volume.lineage;
    let layer = (record.kind == RecordKind::Present).then_some(Layer {
        lineage,
        epoch: record.epoch,
    });
    let range = Range {
        start: record.start,
        end: record.end(),
    };
    with_pages(core, volume, || {
        let cache = core.cache.borrow();
        let mut live = volume.live.borrow_mut();
        // The volume may have been grown since, never shrunk: a record beyond any volume was refused when decoded.
        debug_assert!(record.end() <= archipelago_protocol::ids::VOLUME_SIZE_MAX / BLOCK_SIZE);
        let missing: Option<Missing> = live.tree.missing(&cache, range, layer);
        missing.map_or(Ok(()), Err)?;
        live.replay(&cache, lineage, record);
        Ok(())
    })
    .await
}
