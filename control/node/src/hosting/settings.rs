//! What a data process needs to know, given by the daemon on its command line.
//!
//! It does not read the configuration file: a life that begins after an edit must fit the others.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Config, DataPath, Placement, Pool};
use crate::layout::Layout;

/// Most request queues of an attached volume.
pub const QUEUES_MAX: u16 = archipelago_vhost_user::config::QUEUES_MAX;

/// Settings of a data process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSettings {
    /// Directory of sockets.
    pub run: PathBuf,
    /// Directory of presence journals.
    pub journals: PathBuf,
    /// Where the peers run.
    pub placement: Placement,
    /// Knobs.
    pub data: DataPath,
    /// The pool that the blocker serves.
    pub pool: Pool,
}

impl PeerSettings {
    /// The settings of every process of the node at `layout`.
    #[must_use]
    pub fn new(layout: &Layout, config: &Config) -> PeerSettings {
        PeerSettings {
            run: layout.run().to_owned(),
            journals: layout.journals(),
            placement: config.placement,
            data: config.data,
            pool: config.pool().1.clone(),
        }
    }
}
