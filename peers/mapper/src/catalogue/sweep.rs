//! Background: entries that nobody needs any more go, then their objects.
//!
//! A lineage is doomed by a durable record first; then its objects are deleted, durably; then it is forgotten. A crash
//! anywhere goes on at the next start. Deletes are durable after a sync of the pool: without it a power cut could bring
//! objects back that nobody knows of any more.

use std::rc::Rc;

use archipelago_protocol::Lineage;

use super::record::Change;
use crate::core::Core;
use crate::failure::Outcome;

/// Most entries doomed, or forgotten, by one batch.
const DOOMED_AT_ONCE: usize = 64;

/// Starts the sweep unless it runs; it looks again at its end.
pub(crate) fn start(core: &Rc<Core>) {
    if core.catalogue.sweeping.replace(true) {
        return;
    }
    let core = Rc::clone(core);
    core.scheduler.clone().spawn(async move {
        if let Err(failure) = sweep(&core).await {
            tracing::warn!("removed volumes still take space: {}", failure.message);
        }
        core.catalogue.sweeping.set(false);
    });
}

async fn sweep(core: &Rc<Core>) -> Outcome<()> {
    loop {
        let guard = core.catalogue.locked(core).await?;
        let orphans = core.catalogue.names.borrow().orphans();
        if !orphans.is_empty() {
            let changes = orphans
                .into_iter()
                .take(DOOMED_AT_ONCE)
                .map(Change::Doom)
                .collect();
            core.catalogue.change(core, &guard, changes).await?;
            continue;
        }
        let doomed: Vec<Lineage> = {
            let names = core.catalogue.names.borrow();
            names.doomed().take(DOOMED_AT_ONCE).collect()
        };
        drop(guard);
        if doomed.is_empty() {
            return Ok(());
        }
        for lineage in &doomed {
            core.disk.delete_lineage(*lineage).await?;
        }
        core.sync_pool().await?;
        let guard = core.catalogue.locked(core).await?;
        let changes = doomed.iter().copied().map(Change::Forget).collect();
        core.catalogue.change(core, &guard, changes).await?;
        core.count(|counters| counters.lineages_deleted += doomed.len() as u64);
    }
}
