//! Checkpoints: the tree as pages, then a head that names them, so that the log can begin anew.
//!
//! The picture is taken while no batch is in flight. What is dirty at that moment is in the picture too: the pool is
//! synced before its pages are written, and so it is if the log holds data: its log space is given up. What is
//! dirty stays so: replaying it over the picture changes nothing.

use std::rc::Rc;

use archipelago_protocol::{Epoch, ErrorCode};

use crate::failure::{Failure, Outcome};
use crate::head::VolumeHead;
use crate::parts::Parts;
use crate::pool::Pool;
use crate::task::Guard;
use crate::tree::{Root, Tree, Written};
use crate::volume::Volume;

/// How pages become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageSync {
    /// By a sync of their packs: the volume's own affair.
    Pack,
    /// By a sync of the pool, one for all volumes that ask meanwhile: a hundred that are opened together after a crash
    /// would sync a new pack and its names each.
    Pool,
}

/// Whether the session goes on after a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// Its log is replayed if it ends uncleanly.
    GoesOn,
    /// The head says that nothing is to be replayed.
    Closed,
}

/// A volume at a moment without a batch in flight.
struct Picture {
    tree: Tree,
    epoch: Epoch,
    frozen: Epoch,
    log_position: u64,
    /// Whether it shows what the log does not, or the log holds data: that data may not be durable.
    unsynced: bool,
}

impl Picture {
    fn of(volume: &Volume) -> Self {
        let map = volume.map.borrow();
        Picture {
            tree: map.tree().clone(),
            epoch: map.epoch(),
            frozen: map.frozen(),
            log_position: volume.log.position(),
            unsynced: volume.is_unsynced(),
        }
    }
}

/// A checkpoint while the caller keeps batches away until it is done.
pub(super) async fn checkpoint_holding(
    parts: &Parts,
    volume: &Volume,
    _commit: &Guard,
) -> Outcome<()> {
    let _alone = volume.hold_checkpoints().await;
    volume.check()?;
    store(parts, volume, Picture::of(volume), After::GoesOn).await
}

/// A checkpoint beside which commits go on, if the log is half full when no batch is in flight.
async fn checkpoint_if_half_full(parts: &Parts, volume: &Volume) -> Outcome<()> {
    let still = volume.stand_still().await;
    match volume.log.is_half_full() {
        true => checkpoint(parts, volume, still).await,
        false => volume.check(),
    }
}

/// A checkpoint beside which commits go on, whatever the log has.
pub(super) async fn checkpoint_now(parts: &Parts, volume: &Volume) -> Outcome<()> {
    let still = volume.stand_still().await;
    checkpoint(parts, volume, still).await
}

/// A checkpoint of a volume that stands still; commits go on once the picture is taken.
async fn checkpoint(parts: &Parts, volume: &Volume, still: [Guard; 2]) -> Outcome<()> {
    let [commit, _alone] = still;
    volume.check()?;
    let picture = Picture::of(volume);
    drop(commit);
    store(parts, volume, picture, After::GoesOn).await
}

/// The last checkpoint of a session.
pub(super) async fn checkpoint_clean(parts: &Parts, volume: &Volume) -> Outcome<()> {
    let _still = volume.stand_still().await;
    volume.check()?;
    store(parts, volume, Picture::of(volume), After::Closed).await?;
    volume.map.borrow_mut().dirty_mut().clear();
    Ok(())
}

async fn store(parts: &Parts, volume: &Volume, picture: Picture, after: After) -> Outcome<()> {
    let pool = &parts.pool;
    if volume.start.is_before_head() {
        let why = format!("the session of {} has not begun", volume.lineage);
        return Err(Failure::new(ErrorCode::NoSpace, why));
    }
    if picture.unsynced {
        let synced = parts.sync_pool().await;
        volume.stop_if_failed(pool, synced)?;
    }
    let root = store_tree(parts, volume, &picture.tree, PageSync::Pack).await?;
    let head = VolumeHead {
        clean: after == After::Closed,
        epoch: picture.epoch,
        frozen: picture.frozen,
        root,
        log_start: picture.log_position,
        ..volume.head.get()
    };
    swap_head(pool, volume, head).await?;
    volume.log.trim(picture.log_position);
    drop(picture);
    volume.map.borrow_mut().release_stored();
    pool.count(|counters| counters.checkpoints += 1);
    Ok(())
}

/// Makes `head` the volume's, durably.
pub(super) async fn swap_head(pool: &Pool, volume: &Volume, head: VolumeHead) -> Outcome<()> {
    let swapped = volume.head.swap(&pool.disk, head).await;
    volume.stop_if_failed(pool, swapped)
}

/// Makes the pages of `tree` that are not stored durable.
pub(super) async fn store_tree(
    parts: &Parts,
    volume: &Volume,
    tree: &Tree,
    sync: PageSync,
) -> Outcome<Root> {
    if tree.is_stored()
        && let Some(root) = tree.stored_root()
    {
        return Ok(root);
    }
    let (pool, pack) = (&parts.pool, &volume.pack);
    let start = pack.next();
    let (written, root, end) = tree.pages(volume.lineage, start);
    let end = pack.take_to(end);
    // Nothing durable refers to these pages yet: a failed write loses nothing, a failed sync is final as any other.
    if let Err(failure) = write_pages(pool, &written).await {
        if failure.code == ErrorCode::NoSpace {
            // Tried again and again: what there is of these pages shall not take ever more room.
            pack.give_back(start, end);
        }
        return Err(failure);
    }
    let synced = match sync {
        PageSync::Pack => sync_packs(pool, &written).await,
        PageSync::Pool => parts.sync_pool().await,
    };
    volume.stop_if_failed(pool, synced)?;
    written.mark_stored(&mut pool.pages.cache_mut());
    pool.count(|counters| counters.pages_written += written.count());
    Ok(root)
}

async fn write_pages(pool: &Pool, written: &Written) -> Outcome<()> {
    for piece in &written.pieces {
        let mut bytes = piece.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        pool.disk.write(piece.pack, piece.offset, &bytes).await?;
    }
    Ok(())
}

async fn sync_packs(pool: &Pool, written: &Written) -> Outcome<()> {
    for piece in &written.pieces {
        pool.disk.sync(piece.pack).await?;
    }
    Ok(())
}

/// Starts a checkpoint if the log is half full and none is under way.
pub(super) fn start_if_due(parts: &Rc<Parts>, volume: &Rc<Volume>) {
    let may_write = volume.access.poisoned().is_none() && volume.start.due().is_none();
    if !volume.log.is_half_full() || !may_write || !volume.begin_checkpointing() {
        return;
    }
    let volume = Rc::clone(volume);
    parts.spawn(|parts| async move {
        let (lineage, done) = (
            volume.lineage,
            checkpoint_if_half_full(&parts, &volume).await,
        );
        match done {
            Ok(()) => {}
            // As often as something is logged; who finds no room says so.
            Err(failure) if failure.code.passes() => {
                tracing::debug!("checkpoint of {lineage} put off: {}", failure.message);
            }
            Err(failure) => {
                tracing::warn!("checkpoint of {lineage} put off: {}", failure.message);
            }
        }
        volume.end_checkpointing();
    });
}
