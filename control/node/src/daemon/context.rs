//! What all pools of a node share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use archipelago_api::config::Config;
use archipelago_api::layout::Layout;
use archipelago_blocker_file::Stored;
use archipelago_host::Identity;
use archipelago_protocol::Error;
use tokio::sync::watch;

use super::attachments::Attachments;
use super::looks::Looks;

/// Where the node is, how it is configured, and what is attached.
#[derive(Debug)]
pub(crate) struct NodeContext {
    pub(crate) layout: Layout,
    /// The configuration at the start of the daemon, without the pools that were added or removed since.
    pub(crate) config: Config,
    /// The user of the endpoints' processes, if they have one of their own.
    pub(crate) endpoint: Option<Identity>,
    attachments: Mutex<Attachments>,
    /// Looks at what this host itself uses.
    pub(crate) looks: Looks,
    /// Counts of what pools of files store.
    pub(crate) counts: Looks<Option<Stored>>,
    /// Counts changes of the states of pools.
    pub(crate) pools_changed: watch::Sender<u64>,
}

impl NodeContext {
    /// The context of the node at `layout`; what was attached before is read.
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

    /// What is attached. Held for no longer than a look or a change.
    pub(crate) fn attachments(&self) -> MutexGuard<'_, Attachments> {
        // A panic while it was held has left the old or the new content: both are whole.
        self.attachments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
