//! What the daemon remembers of what it has made for this host itself.

use std::collections::BTreeMap;

use archipelago_protocol::AttachmentId;

/// The parts of a pool's local attachments.
#[derive(Debug, Default)]
pub(crate) struct LocalParts {
    /// The incarnation of the endpoint at which a device was made: what it has open died with that, whatever it looks like.
    pub(crate) devices: BTreeMap<AttachmentId, u64>,
}
