//! What a session writes before it may write itself, at once or when there is room for it.
//!
//! A volume whose pool has no room is opened all the same: it is read, and what its session has to write first stays *due*.
//! Each request that needs more than to read makes another try; without room it fails with a code that passes, and
//! whoever asked waits and asks again.
//!
//! Invariant: a session with something due changes nothing: no place is given for a write, no record is made. So its log,
//! journal and head are those of the session before, and a recovery finds all that it would have found.

use std::rc::Rc;

use archipelago_protocol::Lineage;
use archipelago_protocol::object::ObjectId;

use super::checkpoint::{PageSync, store_tree, swap_head};
use super::commit::{HomeLocations, sync_and_commit};
use super::owned_again::own_again_if_due;
use crate::failure::{Failure, Outcome};
use crate::head::VolumeHead;
use crate::log::Log;
use crate::parts::Parts;
use crate::volume::{Due, Volume};

pub(super) fn log_failure(lineage: Lineage, failure: &Failure) {
    if failure.code.passes() {
        // Whoever asks goes on asking, and says so once.
        tracing::debug!("{lineage} cannot be written yet: {}", failure.message);
    } else {
        tracing::warn!("{lineage} cannot be written: {}", failure.message);
    }
}

/// As [`begin`], but no room for it is no failure: what is due stays so.
pub(super) async fn begin_if_room(parts: &Rc<Parts>, volume: &Rc<Volume>) -> Outcome<()> {
    match begin(parts, volume).await {
        Err(failure) if failure.code.passes() => {
            log_failure(volume.lineage, &failure);
            Ok(())
        }
        began => began,
    }
}

/// Writes what is due, if anything is. After a failure it still is. The caller holds the lineage's lock.
pub(super) async fn begin(parts: &Rc<Parts>, volume: &Rc<Volume>) -> Outcome<()> {
    volume.check()?;
    let (pool, lineage) = (&parts.pool, volume.lineage);
    match volume.start.due() {
        None => return Ok(()),
        Some(Due::First(head)) => {
            // Before anything is changed: a session that waits for memory tries again and again.
            pool.journals.prepare(lineage)?;
            let log = ObjectId::log(lineage, head.log_number);
            Log::create(&pool.disk, log, head.log_len).await?;
            swap_in(parts, volume, head).await?;
        }
        Some(Due::Next(next)) => {
            pool.journals.prepare(lineage)?;
            let tree = volume.map.borrow().tree().clone();
            let root = store_tree(parts, volume, &tree, PageSync::Pool).await?;
            drop(tree);
            let next = VolumeHead {
                root,
                log_start: volume.log.position(),
                frozen: volume.map.borrow().frozen(),
                ..next
            };
            let recovered = !volume.head.get().clean;
            swap_in(parts, volume, next).await?;
            pool.count(|counters| counters.recoveries += u64::from(recovered));
        }
        Some(Due::Left) => {
            // What the client had written may be in doubt; what it reported is not. New writes keep off both.
            sync_and_commit(parts, volume, HomeLocations::Synced).await?;
            volume.map.borrow_mut().raise_epoch();
            volume.lineages.borrow_mut().restart();
        }
    }
    volume.start.done();
    own_again_if_due(parts, volume).await;
    parts.catalogue.retry_collection();
    Ok(())
}

/// Makes `head` the volume's: what is written from now on is of its generation.
async fn swap_in(parts: &Parts, volume: &Volume, head: VolumeHead) -> Outcome<()> {
    let (pool, lineage) = (&parts.pool, volume.lineage);
    swap_head(pool, volume, head).await?;
    // What a failed sync could have dropped since the recovery's own is none of this volume's.
    pool.journals.drop_unreported(lineage);
    let mut journal = pool.journals.open(lineage, head.generation)?;
    journal.mark(head.log_start);
    volume.log.restart(head.log_start, head.generation);
    volume.map.borrow_mut().begin_session(&head, journal);
    pool.forget_unreadable(lineage);
    Ok(())
}
