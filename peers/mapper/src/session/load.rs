//! Volumes from the pool into memory: the head, and recovery after an unclean end. What a session writes before it may
//! write is in `begin`.
//!
//! Epochs: a session after an unclean end begins with epoch `generation << 32`. Generations are durable before they are
//! used and epochs count up within them, so no epoch is ever used twice, logged or not.

use std::rc::Rc;

use archipelago_protocol::{Epoch, Generation};

use super::begin::begin;
use super::head::read_head;
use super::ownership::{lost_race, take_over};
use super::recovery::recover;
use crate::catalogue::Item;
use crate::failure::Outcome;
use crate::head::{StoredHead, VolumeHead};
use crate::parts::Parts;
use crate::tree::Root;
use crate::volume::{AccessMode, Due, Volume};

/// Opens for writing, all of it: a session without room to begin is a failure. Otherwise as [`load_writer`].
pub(super) async fn open_writer(parts: &Rc<Parts>, item: &Item) -> Outcome<Rc<Volume>> {
    let volume = load_writer(parts, item).await?;
    let begun = begin(parts, &volume).await;
    lost_race(parts, item, begun).await?;
    Ok(volume)
}

/// A volume as it is, for a session that is to begin: it can be read. A sync of the pool that failed since the last session
/// is reported once, as [`ErrorCode::SyncFailed`]; the next open has what is durable. The caller holds the lineage's lock and
/// knows that nobody has it open.
pub(super) async fn load_writer(parts: &Rc<Parts>, item: &Item) -> Outcome<Rc<Volume>> {
    // It owns the volume from the head on that it swaps.
    parts.catalogue.join().await?;
    let (volume, due) = match read_head(parts, item).await? {
        None => {
            let head = first_head(parts, item);
            let stored = StoredHead::new(item.lineage, head, 0);
            (
                volume_of(parts, item, stored, AccessMode::ReadWrite),
                Due::First(head),
            )
        }
        Some(stored) => {
            take_over(parts, item, &stored).await?;
            let head = stored.get();
            let generation = Generation(head.generation.0 + 1);
            let mut next = VolumeHead {
                generation,
                owner: parts.pool.config.owner,
                takeovers: 0,
                clean: false,
                ..head
            };
            let volume = volume_of(parts, item, stored, AccessMode::ReadWrite);
            if !head.clean {
                next = recover(parts, &volume, next).await?;
            }
            (volume, Due::Next(next))
        }
    };
    volume.start.set_due(due);
    Ok(volume)
}

fn first_head(parts: &Parts, item: &Item) -> VolumeHead {
    VolumeHead {
        generation: Generation(1),
        owner: parts.pool.config.owner,
        takeovers: 0,
        clean: false,
        object_size: item.object_size,
        epoch: Epoch(1 << 32),
        frozen: Epoch(0),
        root: item.root,
        log_number: 1,
        log_len: parts.pool.config.log_len,
        log_start: 0,
        compatible: 0,
    }
}

/// A snapshot, an image or a closed volume, for reading only.
pub(super) fn read_only(parts: &Parts, item: &Item, root: Root) -> Rc<Volume> {
    let head = VolumeHead {
        root,
        ..first_head(parts, item)
    };
    let stored = StoredHead::new(item.lineage, head, 0);
    volume_of(parts, item, stored, AccessMode::ReadOnly)
}

fn volume_of(
    parts: &Parts,
    item: &Item,
    stored: StoredHead<VolumeHead>,
    mode: AccessMode,
) -> Rc<Volume> {
    let scheduler = &parts.pool.scheduler;
    let (lineage, object_size) = (item.lineage, item.object_size);
    let pack_len_max = parts.pool.config.pack_len_max;
    Volume::new(
        scheduler,
        lineage,
        object_size,
        item.size,
        stored,
        mode,
        pack_len_max,
    )
}
