//! Background: entries that nobody needs any more are removed, then their objects.
//!
//! What a snapshot had alone is given back first ([`reclaim_all`]), and is durably so. A durable record marks a lineage as pending
//! delete; then its objects are deleted, durably; then it is forgotten. A
//! crash anywhere goes on at the next start. The record names the incarnation that deletes: another one does so only when that
//! incarnation has ended. Deletes are durable after a sync of the pool: without it a power cut could bring
//! objects back that nobody knows of any more.

use std::collections::BTreeSet;
use std::rc::Rc;

use archipelago_protocol::{ErrorCode, Lineage};

use super::reclaim::{empty_removed_volumes, reclaim_all};
use crate::catalogue::{Change, Item, Names};
use crate::failure::Outcome;
use crate::parts::Parts;
use crate::session::check_owner;

/// Most entries marked, or forgotten, by one batch.
const LINEAGES_AT_ONCE: usize = 64;

/// Starts a collection if the catalogue wants one and none runs; it looks again at its end.
/// Whether it did.
pub(crate) fn start_if_due(parts: &Rc<Parts>) -> bool {
    if parts.is_stopping() || !parts.catalogue.take_collection() {
        return false;
    }
    parts.spawn(|parts| async move {
        if let Err(failure) = collect(&parts).await
            && !parts.is_stopping()
        {
            tracing::warn!("removed volumes still take space: {}", failure.message);
        }
        parts.catalogue.collection_ended();
    });
    true
}

async fn collect(parts: &Rc<Parts>) -> Outcome<()> {
    let own = parts.pool.config.owner;
    // Removed here while another node was opening them: that node closes them, and its collection has them. Or not known to be free,
    // or snapshots of a volume whose map is not known now: the next collection looks again.
    let mut kept: BTreeSet<Lineage> = BTreeSet::new();
    while !parts.is_stopping() {
        parts.catalogue.ready().await?;
        empty_removed_volumes(parts).await?;
        let orphans: Vec<Item> = {
            let names = parts.catalogue.names();
            let orphans = names.orphans();
            let free = orphans.filter(|item| !kept.contains(&item.lineage));
            free.take(LINEAGES_AT_ONCE).cloned().collect()
        };
        let mut unneeded = Vec::new();
        let looked_at: BTreeSet<Lineage> = orphans.iter().map(|item| item.lineage).collect();
        for item in orphans {
            match check_owner(parts, &item).await {
                Ok(()) => unneeded.push(item),
                // What is damaged cannot be opened.
                Err(failure) if failure.code == ErrorCode::Damaged => unneeded.push(item),
                Err(failure) => {
                    if failure.code != ErrorCode::InUse {
                        tracing::warn!("a removed volume still takes space: {}", failure.message);
                    }
                }
            }
        }
        let unneeded = reclaim_all(parts, unneeded).await?;
        let left = looked_at
            .iter()
            .filter(|lineage| !unneeded.contains(lineage));
        kept.extend(left);
        let guard = parts.catalogue.locked().await?;
        let mark = |names: &Names| {
            let deletes = unneeded
                .iter()
                .filter(|lineage| names.is_orphan(**lineage))
                .map(|lineage| Change::Delete {
                    lineage: *lineage,
                    by: own,
                });
            Ok((deletes.collect(), ()))
        };
        parts.catalogue.change(&guard, mark).await?;
        let deleted: Vec<Lineage> = {
            let names = parts.catalogue.names();
            let pending = names.pending_delete_of(own);
            pending.take(LINEAGES_AT_ONCE).collect()
        };
        drop(guard);
        if deleted.is_empty() {
            return Ok(());
        }
        for lineage in &deleted {
            parts.pool.journals.remove(*lineage);
            parts.pool.disk.delete_lineage(*lineage).await?;
        }
        parts.sync_pool().await?;
        let guard = parts.catalogue.locked().await?;
        let forget = |names: &Names| {
            let pending = deleted
                .iter()
                .filter(|lineage| names.is_pending_delete(**lineage));
            let count = pending.clone().count() as u64;
            Ok((pending.copied().map(Change::Forget).collect(), count))
        };
        let count = parts.catalogue.change(&guard, forget).await?;
        parts
            .pool
            .count(|counters| counters.lineages_deleted += count);
    }
    Ok(())
}
