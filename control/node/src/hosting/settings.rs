//! What a data process needs to know, given by the daemon on its command line.
//!
//! It does not read the configuration file: a life that begins after an edit must fit the others.

use std::path::PathBuf;

use archipelago_blocker_file::Claim;
use archipelago_protocol::{Error, ErrorCode, Grants};
use serde::{Deserialize, Serialize};

use super::Identity;
use crate::config::{Config, DataPath, Placement, Pool};
use crate::layout::Layout;

/// Most request queues of an attached volume.
pub const QUEUES_MAX: u16 = archipelago_vhost_user::config::QUEUES_MAX;

/// Settings of a data process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSettings {
    /// Directory of sockets.
    pub run: PathBuf,
    /// Directory of the sockets of volumes.
    pub volumes: PathBuf,
    /// Directory of presence journals.
    pub journals: PathBuf,
    /// File of what an endpoint with a user of its own may open.
    pub grants: PathBuf,
    /// Where the peers run.
    pub placement: Placement,
    /// Knobs.
    pub data: DataPath,
    /// The user of the endpoint's process, if it has one of its own.
    pub endpoint: Option<Identity>,
    /// The pool that the blocker serves.
    pub pool: Pool,
    /// With what right it opens the pool.
    #[serde(default)]
    pub claim: Claim,
}

impl PeerSettings {
    /// The settings of every process of the node at `layout`, whose endpoint runs as `endpoint`.
    #[must_use]
    pub fn new(layout: &Layout, config: &Config, endpoint: Option<Identity>) -> PeerSettings {
        PeerSettings {
            run: layout.run().to_owned(),
            volumes: layout.volumes(),
            journals: layout.journals(),
            grants: layout.grants(),
            placement: config.placement,
            data: config.data,
            endpoint,
            pool: config.pool().1.clone(),
            claim: Claim::Start,
        }
    }

    /// What an endpoint with a user of its own may open, as the daemon has written it down; for a process that is no
    /// endpoint's. `None`: it has no such user.
    ///
    /// # Errors
    /// [`ErrorCode::Io`] naming the file, which the daemon has made before it started anybody.
    pub(crate) fn read_grants(&self) -> Result<Option<Grants>, Error> {
        if self.endpoint.is_none() {
            return Ok(None);
        }
        let failed =
            |why: String| Error::new(ErrorCode::Io, format!("{}: {why}", self.grants.display()));
        let bytes = std::fs::read(&self.grants).map_err(|error| failed(error.to_string()))?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| failed(error.to_string()))
    }
}
