//! Work on volumes that nobody has open, whose last session is settled first. The caller holds the lineage's lock.

use std::rc::Rc;

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Generation, Lineage};

use super::begin::begin;
use super::checkpoint::checkpoint_clean;
use super::commit::{HomeLocations, sync_and_commit};
use super::head::read_head;
use super::load::open_writer;
use super::ownership::{lost_race, unless_removed};
use super::pages::with_pages;
use crate::catalogue::{FrozenRoot, Item};
use crate::failure::{Failure, Outcome};
use crate::head::{StoredHead, VolumeHead};
use crate::parts::Parts;
use crate::tree::Range;
use crate::volume::Volume;

/// The catalogue's item of a lineage.
pub(super) fn item(parts: &Parts, lineage: Lineage) -> Outcome<Item> {
    let names = parts.catalogue.names();
    names
        .get(lineage)
        .filter(|item| item.name.is_some())
        .cloned()
        .ok_or_else(|| {
            Failure::new(
                ErrorCode::NotFound,
                format!("there is no volume with lineage {lineage}"),
            )
        })
}

/// Ends a session for good: everything durable, the head clean, nothing in memory.
pub(super) async fn close_clean(parts: &Rc<Parts>, volume: &Rc<Volume>) -> Outcome<()> {
    begin(parts, volume).await?;
    // Another node that opens it reads the catalogue after the head: each snapshot has to be in it.
    let _no_birth = parts.volumes.lock_births(volume.lineage).await;
    checkpoint_clean(parts, volume).await?;
    parts.forget(volume.lineage);
    Ok(())
}

/// Ends a session for which there is no room to end for good: everything durable, in the log, which has its own. The next
/// open recovers. Without room in the log all stays as it is, in memory and in the journal.
pub(super) async fn leave_in_log(parts: &Rc<Parts>, volume: &Rc<Volume>) -> Outcome<()> {
    sync_and_commit(parts, volume, HomeLocations::Synced).await?;
    parts.volumes.remove(volume.lineage);
    Ok(())
}

/// A volume that was left in memory and has failed leaves it. What a failed sync has lost of it is for the next writer to know.
fn forget_lost(parts: &Parts, volume: &Volume) {
    parts.forget(volume.lineage);
    if volume.access.poisoned() == Some(ErrorCode::SyncFailed) {
        parts.pool.journals.note_lost(volume.lineage);
    }
}

/// Makes sure that the last session has ended cleanly; the head then. `None`: there was no session.
pub(super) async fn settle(
    parts: &Rc<Parts>,
    item: &Item,
) -> Outcome<Option<StoredHead<VolumeHead>>> {
    // Left by a client that disconnected: what it wrote is in memory only.
    if let Some(volume) = parts.volumes.get(item.lineage) {
        if volume.check().is_ok() {
            let closed = close_clean(parts, &volume).await;
            if volume.check().is_err() {
                forget_lost(parts, &volume);
                // By the failure below.
                parts.pool.journals.see_lost(item.lineage);
            }
            closed?;
        } else {
            forget_lost(parts, &volume);
        }
    }
    match read_head(parts, item).await? {
        Some(head) if !head.get().clean => {
            let volume = open_writer(parts, item).await?;
            close_clean(parts, &volume).await?;
            read_head(parts, item).await
        }
        found => Ok(found),
    }
}

/// A volume that was frozen, and which nobody opens until [`Frozen::release`]: what was frozen has to enter the catalogue before
/// another node looks there for what it may write over.
#[derive(Debug)]
#[must_use]
pub(crate) struct Frozen {
    pub(crate) root: FrozenRoot,
    /// `None`: no other node can come in between, or there is nothing to write over.
    owned: Option<StoredHead<VolumeHead>>,
}

impl Frozen {
    /// What was frozen is in the catalogue, or never will be.
    pub(crate) async fn release(self, parts: &Parts) {
        let Some(stored) = self.owned else {
            return;
        };
        let clean = VolumeHead {
            clean: true,
            ..stored.get()
        };
        if let Err(failure) = stored.swap(&parts.pool.disk, clean).await {
            // As after a crash: the next open recovers.
            tracing::warn!("a volume stays with this node: {}", failure.message);
        }
    }
}

/// Freezes a volume as it is: durably, nothing of it is owned any more.
pub(crate) async fn freeze_closed(parts: &Rc<Parts>, lineage: Lineage) -> Outcome<Frozen> {
    let result = freeze(parts, lineage).await;
    let result = unless_removed(parts, lineage, result).await;
    result.inspect_err(|failure| parts.pool.note(lineage, failure))
}

async fn freeze(parts: &Rc<Parts>, lineage: Lineage) -> Outcome<Frozen> {
    let item = item(parts, lineage)?;
    let Some(stored) = settle(parts, &item).await? else {
        // It was never written.
        let (root, epoch) = (item.root, Epoch(0));
        let root = FrozenRoot { root, epoch };
        return Ok(Frozen { root, owned: None });
    };
    let head = stored.get();
    let VolumeHead { root, epoch, .. } = head;
    let mut frozen = VolumeHead {
        frozen: epoch,
        epoch: Epoch(epoch.0 + 1),
        ..head
    };
    let is_shared = parts.pool.config.sharing.is_shared();
    if is_shared {
        parts.catalogue.join().await?;
        frozen.generation = Generation(head.generation.0 + 1);
        frozen.owner = parts.pool.config.owner;
        frozen.clean = false;
    }
    let swapped = stored.swap(&parts.pool.disk, frozen).await;
    lost_race(parts, &item, swapped).await?;
    Ok(Frozen {
        root: FrozenRoot { root, epoch },
        owned: is_shared.then_some(stored),
    })
}

/// Drops what lies beyond `size` from the map, durably: should the volume grow again, zeros are there.
pub(crate) async fn shrink(parts: &Rc<Parts>, lineage: Lineage, size: u64) -> Outcome<()> {
    let result = cut(parts, lineage, size).await;
    let result = unless_removed(parts, lineage, result).await;
    result.inspect_err(|failure| parts.pool.note(lineage, failure))
}

async fn cut(parts: &Rc<Parts>, lineage: Lineage, size: u64) -> Outcome<()> {
    let item = item(parts, lineage)?;
    settle(parts, &item).await?;
    let volume = open_writer(parts, &item).await?;
    let (kept, end) = (size.div_ceil(BLOCK_SIZE), item.size.div_ceil(BLOCK_SIZE));
    let beyond = Range { start: kept, end };
    let drop_beyond = || {
        let mut map = volume.map.borrow_mut();
        map.set(&parts.pool.pages.cache(), beyond, None)
    };
    with_pages(parts, &volume, drop_beyond).await?;
    if !size.is_multiple_of(BLOCK_SIZE) {
        clear_tail(parts, &volume, size).await?;
    }
    close_clean(parts, &volume).await
}

/// Zeros behind `size` in its last block: the block is written anew.
async fn clear_tail(parts: &Rc<Parts>, volume: &Rc<Volume>, size: u64) -> Outcome<()> {
    let block = size / BLOCK_SIZE;
    let offset = block * BLOCK_SIZE;
    let look_up = || {
        let map = volume.map.borrow();
        map.lookup(&parts.pool.pages.cache(), block)
    };
    let (layer, _) = with_pages(parts, volume, look_up).await?;
    let Some(layer) = layer else {
        return Ok(());
    };
    let (own, object_size) = (volume.lineage, volume.object_size);
    let old = ObjectId::data(layer.lineage, layer.epoch);
    let mut bytes = parts
        .pool
        .disk
        .read_data(old, object_size, offset, 4096)
        .await?;
    bytes[usize::try_from(size % BLOCK_SIZE).expect("below a block")..].fill(0);
    // Into a fresh epoch: nothing durable refers to it before the head does.
    let epoch = volume.map.borrow_mut().raise_epoch();
    let new = ObjectId::data(own, epoch);
    parts
        .pool
        .disk
        .write_data(new, object_size, offset, &bytes)
        .await?;
    parts.pool.disk.sync_data(new, object_size, offset).await?;
    let range = Range {
        start: block,
        end: block + 1,
    };
    let put = || {
        let mut map = volume.map.borrow_mut();
        map.set(&parts.pool.pages.cache(), range, Some(epoch))
    };
    with_pages(parts, volume, put).await
}
