//! Background: entries that nobody needs any more go, then their objects.
//!
//! A lineage is doomed by a durable record first; then its objects are deleted; then it is forgotten. A crash anywhere
//! goes on at the next start.

use std::rc::Rc;

use super::record::Change;
use crate::core::Core;
use crate::failure::Outcome;

/// Most entries doomed by one batch.
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
        let doomed = core.catalogue.names.borrow().doomed();
        drop(guard);
        let Some(lineage) = doomed else {
            return Ok(());
        };
        core.disk.delete_lineage(lineage).await?;
        let guard = core.catalogue.locked(core).await?;
        core.catalogue
            .change(core, &guard, vec![Change::Forget(lineage)])
            .await?;
        core.count(|counters| counters.lineages_deleted += 1);
    }
}
