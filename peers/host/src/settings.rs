//! What a data process needs to know, given by the daemon on its command line.
//!
//! The process does not read the configuration file: an incarnation that begins after an edit must fit the others.

use std::path::PathBuf;

use archipelago_protocol::{Error, ErrorCode, Grants};
use serde::{Deserialize, Serialize};

use crate::Identity;

/// Most request queues of an attached volume.
pub const QUEUES_MAX: u16 = archipelago_vhost_user::config::QUEUES_MAX;

/// Knobs of a data thread and its channels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPathSettings {
    /// Data threads of a process that hosts all roles; any other has one.
    pub threads: u32,
    /// CPUs that data threads are bound to, in turn; none: to no CPU.
    pub cpus: Vec<u32>,
    /// Microseconds that an idle data thread polls before it sleeps, at most.
    pub poll_us: u32,
    /// Requests handed to the kernel at once.
    pub submission_chunk: u32,
    /// Requests in flight on a channel between two peers: a power of two.
    pub channel_requests: u32,
    /// MiB of a channel's own memory.
    pub channel_memory_mib: u32,
}

/// Settings of a data process, whose pool is of the kind `P`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSettings<P> {
    /// The node's run directory, which names the node for people and for its command.
    pub node: PathBuf,
    /// Directory of the sockets of the pool's processes.
    pub run: PathBuf,
    /// Directory of the sockets of volumes.
    pub volumes: PathBuf,
    /// Directory of presence journals.
    pub journals: PathBuf,
    /// File of what an endpoint with a user of its own may open.
    pub grants: PathBuf,
    /// Knobs.
    pub data: DataPathSettings,
    /// The user of the endpoint's process, if it has one of its own.
    pub endpoint: Option<Identity>,
    /// The pool that the blocker serves.
    pub pool: P,
}

impl<P> PeerSettings<P> {
    /// What an endpoint with a user of its own may open, as the daemon has written it down; for a process without an
    /// endpoint. `None`: the endpoint has no such user.
    ///
    /// # Errors
    /// [`ErrorCode::Io`] naming the file, which the daemon makes before it starts a process.
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
