//! The pool of a data process: its backend.

use std::time::Duration;

use archipelago_blocker_file::{FileBackend, Options};
use archipelago_protocol::Error;
use archipelago_runtime::Context;

use super::PeerSettings;
use crate::config::Pool;

/// How long a dead predecessor's last writes may hold the pool's lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// Opens the pool for this process alone.
pub(crate) fn open(settings: &PeerSettings, context: &Context<'_>) -> Result<FileBackend, Error> {
    let Pool::File { directory } = &settings.pool;
    let options = Options {
        directory: directory.clone(),
        lock_patience: LOCK_PATIENCE,
    };
    FileBackend::open(&options, context.source(), context.clock().as_ref())
}
