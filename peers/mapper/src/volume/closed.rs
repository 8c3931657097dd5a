//! Work on volumes that nobody has open. The caller holds the lineage's lock.

use std::rc::Rc;

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Lineage};

use super::begin::begin;
use super::commit::Home;
use super::open::{open_writer, read_head};
use super::session::sync_and_commit;
use super::{Volume, with_pages};
use crate::catalogue::Item;
use crate::core::Core;
use crate::failure::{Failure, Outcome};
use crate::head::{StoredHead, VolumeHead};
use crate::tree::{Range, Root};

/// The catalogue's item of a lineage.
pub(super) fn item(core: &Core, lineage: Lineage) -> Outcome<Item> {
    let names = core.catalogue.names.borrow();
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
pub(super) async fn close_clean(core: &Rc<Core>, volume: &Rc<Volume>) -> Outcome<()> {
    begin(core, volume).await?;
    volume.checkpoint_clean(core).await?;
    core.forget(volume.lineage);
    Ok(())
}

/// Ends a session for which there is no room to end for good: everything durable, in the log, which has its own. The next
/// open recovers. Without room in the log all stays as it is, in memory and in the journal.
pub(super) async fn leave_in_log(core: &Rc<Core>, volume: &Rc<Volume>) -> Outcome<()> {
    sync_and_commit(core, volume, Home::Synced).await?;
    core.volumes.borrow_mut().remove(&volume.lineage);
    Ok(())
}

/// Makes sure that the last session has ended cleanly; the head then. `None`: there was no session.
pub(super) async fn settle(
    core: &Rc<Core>,
    item: &Item,
) -> Outcome<Option<StoredHead<VolumeHead>>> {
    // Left by a client that went: what it wrote is in memory only.
    if let Some(volume) = core.volume(item.lineage) {
        if volume.check().is_ok() {
            let closed = close_clean(core, &volume).await;
            if volume.check().is_err() {
                core.forget(item.lineage);
            }
            closed?;
        } else {
            core.forget(item.lineage);
        }
    }
    match read_head(core, item).await? {
        Some(head) if !head.get().clean => {
            let volume = open_writer(core, item).await?;
            close_clean(core, &volume).await?;
            read_head(core, item).await
        }
        found => Ok(found),
    }
}

/// Freezes a volume as it is: durably, nothing of it is owned any more. Its root.
pub(crate) async fn freeze_closed(core: &Rc<Core>, lineage: Lineage) -> Outcome<Root> {
    let result = freeze(core, lineage).await;
    result.inspect_err(|failure| core.note(lineage, failure))
}

async fn freeze(core: &Rc<Core>, lineage: Lineage) -> Outcome<Root> {
    let item = item(core, lineage)?;
    let Some(stored) = settle(core, &item).await? else {
        return Ok(item.root);
    };
    let head = stored.get();
    let frozen = VolumeHead {
        frozen: head.epoch,
        epoch: Epoch(head.epoch.0 + 1),
        ..head
    };
    stored.swap(&core.disk, frozen).await?;
    Ok(head.root)
}

/// Drops what lies beyond `size` from the map, durably: should the volume grow again, zeros are there.
pub(crate) async fn shrink(core: &Rc<Core>, lineage: Lineage, size: u64) -> Outcome<()> {
    let result = cut(core, lineage, size).await;
    result.inspect_err(|failure| core.note(lineage, failure))
}

async fn cut(core: &Rc<Core>, lineage: Lineage, size: u64) -> Outcome<()> {
    let item = item(core, lineage)?;
    settle(core, &item).await?;
    let volume = open_writer(core, &item).await?;
    let (kept, end) = (size.div_ceil(BLOCK_SIZE), item.size.div_ceil(BLOCK_SIZE));
    let beyond = Range { start: kept, end };
    with_pages(core, &volume, || {
        let cache = core.cache.borrow();
        let mut live = volume.live.borrow_mut();
        live.tree
            .missing(&cache, beyond, None)
            .map_or(Ok(()), Err)?;
        live.tree.set(&cache, beyond, None);
        Ok(())
    })
    .await?;
    if !size.is_multiple_of(BLOCK_SIZE) {
        clear_tail(core, &volume, size).await?;
    }
    close_clean(core, &volume).await
}

/// Zeros behind `size` in its last block: the block is written anew.
async fn clear_tail(core: &Rc<Core>, volume: &Rc<Volume>, size: u64) -> Outcome<()> {
    let block = size / BLOCK_SIZE;
    let offset = block * BLOCK_SIZE;
    let (layer, _) = with_pages(core, volume, || {
        volume
            .live
            .borrow()
            .tree
            .lookup(&core.cache.borrow(), block)
    })
    .await?;
    let Some(layer) = layer else {
        return Ok(());
    };
    let (own, object_size) = (volume.lineage, volume.object_size);
    let old = ObjectId::data(layer.lineage, layer.epoch);
    let mut bytes = core.disk.read_data(old, object_size, offset, 4096).await?;
    bytes[usize::try_from(size % BLOCK_SIZE).expect("below a block")..].fill(0);
    // Into a fresh epoch: nothing durable refers to it before the head does.
    let epoch = {
        let mut live = volume.live.borrow_mut();
        live.epoch = Epoch(live.epoch.0 + 1);
        live.epoch
    };
    let new = ObjectId::data(own, epoch);
    core.disk
        .write_data(new, object_size, offset, &bytes)
        .await?;
    core.disk.sync_data(new, object_size, offset).await?;
    let range = Range {
        start: block,
        end: block + 1,
    };
    let layer = crate::tree::Layer {
        lineage: own,
        epoch,
    };
    with_pages(core, volume, || {
        let cache = core.cache.borrow();
        let mut live = volume.live.borrow_mut();
        live.tree
            .missing(&cache, range, Some(layer))
            .map_or(Ok(()), Err)?;
        live.tree.set(&cache, range, Some(layer));
        Ok(())
    })
    .await
}
