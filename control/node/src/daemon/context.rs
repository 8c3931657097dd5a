//! The state that all pools of a node share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use archipelago_api::config::Config;
use archipelago_api::layout::Layout;
use archipelago_blocker_file::Stored;
use archipelago_host::Identity;
use archipelago_protocol::Error;
use tokio::sync::watch;

use super::attachments::Attachments;
use super::looks::Looks;

/// The directories, the configuration and the attachments of the node.
#[derive(Debug)]
pub(crate) struct NodeContext {
    pub(crate) layout: Layout,
    /// The configuration at the start of the daemon, without later additions and removals of pools.
    pub(crate) config: Config,
    /// The user of the endpoints' processes, if it is not this process's user.
    pub(crate) endpoint: Option<Identity>,
    attachments: Mutex<Attachments>,
    /// Finds out which devices and mounts this host uses.
    pub(crate) looks: Looks,
    /// Counts of what pools of files store.
    pub(crate) counts: Looks<Option<Stored>>,
    /// Counts changes of the states of pools.
    pub(crate) pools_changed: watch::Sender<u64>,
}

impl NodeContext {
    /// The context of the node at `layout`. Reads the attachments.
    pub(crate) fn new(
        layout: Layout,
        config: Config,
        endpoint: Option<Identity>,
    ) -> Result<NodeContext, Error> {
        let attachments = Attachments::read(layout.attachments())?;
        Ok(NodeContext {
            layout,
            config,
            endpoint,
            attachments: Mutex::new(attachments),
            looks: Looks::default(),
            counts: Looks::default(),
            pools_changed: watch::Sender::new(0),
        })
    }

    /// The attachments. Hold the lock only for one read or one change.
    pub(crate) fn attachments(&self) -> MutexGuard<'_, Attachments> {
        // After a panic under the lock, the content is the old or the new one, and complete.
        self.attachments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
