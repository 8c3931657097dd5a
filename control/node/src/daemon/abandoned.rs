//! Imports whose command was killed: nobody is left who would delete them.
//!
//! Each import is watched until it is published or deleted. The endpoint says whether its channel is still there: it ends with the
//! command's process, whatever ends that.

use std::sync::{Arc, Weak};
use std::time::Duration;

use archipelago_protocol::catalogue::{CatalogueRequest, Entry, Kind};
use archipelago_protocol::control::{ControlReply, ControlRequest, Role};
use archipelago_protocol::{Error, ErrorCode, Lineage, Name};

use super::pool::Pool;
use super::pool_requests::unexpected_reply;

/// Between two looks.
const STEP: Duration = Duration::from_secs(1);
/// Looks that find no channel before an import is abandoned: a command that goes on publishes milliseconds after it has closed its
/// channel, or closes it and begins again.
const IDLE_MAX: u32 = 10;

/// What a look has found.
enum ImportState {
    /// Published, or deleted.
    Ended,
    Open,
    Idle,
}

/// Deletes the import `lineage` of `pool` when its command is not there any more.
pub(crate) fn watch_import(pool: &Arc<Pool>, name: Name, lineage: Lineage) {
    let pool = Arc::downgrade(pool);
    tokio::spawn(async move {
        let mut idle = 0;
        loop {
            tokio::time::sleep(STEP).await;
            let Some(pool) = Weak::upgrade(&pool) else {
                return;
            };
            match pool.import_state(&name, lineage).await {
                Ok(ImportState::Ended) => return,
                Ok(ImportState::Open) => idle = 0,
                Ok(ImportState::Idle) => idle += 1,
                // A process of the pool is away: nothing is known.
                Err(_) => {}
            }
            if idle >= IDLE_MAX {
                // What is still being closed is looked at again.
                pool.delete_abandoned(&name, lineage).await;
            }
        }
    });
}

impl Pool {
    async fn import_state(&self, name: &Name, lineage: Lineage) -> Result<ImportState, Error> {
        match self.lookup(name).await {
            Ok(entry) if is_import(&entry, lineage) => {}
            Ok(_) => return Ok(ImportState::Ended),
            Err(error) if error.code == ErrorCode::NotFound => return Ok(ImportState::Ended),
            Err(error) => return Err(error),
        }
        match self.ask(Role::Endpoint, &ControlRequest::Status).await? {
            ControlReply::Status(status) if status.channels_to.contains(&lineage) => {
                Ok(ImportState::Open)
            }
            ControlReply::Status(_) => Ok(ImportState::Idle),
            other => Err(unexpected_reply(&other)),
        }
    }

    async fn delete_abandoned(&self, name: &Name, lineage: Lineage) {
        let Ok(_one_at_a_time) = self.lock_changes().await else {
            return;
        };
        // Under the lock: the name may have gone to another import meanwhile.
        match self.lookup(name).await {
            Ok(entry) if is_import(&entry, lineage) => {}
            Ok(_) | Err(_) => return,
        }
        let remove = CatalogueRequest::Remove { name: name.clone() };
        match self.catalogue(remove).await {
            Ok(_removed) => {
                self.withdraw(lineage).await;
                tracing::info!("the import `{name}` was given up by its command, and is deleted");
            }
            Err(error) => tracing::debug!("deleting the abandoned import `{name}`: {error}"),
        }
    }
}

fn is_import(entry: &Entry, lineage: Lineage) -> bool {
    entry.kind == Kind::Importing && entry.lineage == lineage
}
