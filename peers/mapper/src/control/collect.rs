//! Background: entries that nobody needs any more are removed, then their objects.
//!
//! A durable record marks a lineage as pending delete first; then its objects are deleted, durably; then it is forgotten. A
//! crash anywhere goes on at the next start. Deletes are durable after a sync of the pool: without it a power cut could bring
//! objects back that nobody knows of any more.

use std::rc::Rc;

use archipelago_protocol::Lineage;

use crate::catalogue::Change;
use crate::failure::Outcome;
use crate::parts::Parts;

/// Most entries marked, or forgotten, by one batch.
const LINEAGES_AT_ONCE: usize = 64;

/// Starts a collection if the catalogue wants one and none runs; it looks again at its end.
/// Whether it did.
pub(crate) fn start_if_due(parts: &Rc<Parts>) -> bool {
    if !parts.catalogue.take_collection() {
        return false;
    }
    parts.spawn(|parts| async move {
        if let Err(failure) = collect(&parts).await {
            tracing::warn!("removed volumes still take space: {}", failure.message);
        }
        parts.catalogue.collection_ended();
    });
    true
}

async fn collect(parts: &Rc<Parts>) -> Outcome<()> {
    loop {
        let guard = parts.catalogue.locked().await?;
        let orphans = parts.catalogue.names().orphans();
        if !orphans.is_empty() {
            let changes = orphans
                .into_iter()
                .take(LINEAGES_AT_ONCE)
                .map(Change::Delete)
                .collect();
            parts.catalogue.change(&guard, changes).await?;
            continue;
        }
        let deleted: Vec<Lineage> = {
            let names = parts.catalogue.names();
            names.pending_delete().take(LINEAGES_AT_ONCE).collect()
        };
        drop(guard);
        if deleted.is_empty() {
            return Ok(());
        }
        for lineage in &deleted {
            parts.pool.disk.delete_lineage(*lineage).await?;
        }
        parts.sync_pool().await?;
        let guard = parts.catalogue.locked().await?;
        let changes = deleted.iter().copied().map(Change::Forget).collect();
        parts.catalogue.change(&guard, changes).await?;
        let count = deleted.len() as u64;
        parts
            .pool
            .count(|counters| counters.lineages_deleted += count);
    }
}
