//! What a volume, snapshot or image takes of its pool, in bytes.

use serde::{Deserialize, Serialize};

use crate::ids::Name;

/// What one thing takes. `unique` and `shared` together are `mapped`.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Its size, as a guest sees it.
    pub provisioned: u64,
    /// Blocks that it has data for, its own and those that it shares.
    pub mapped: u64,
    /// Of these, what its removal gives back: nothing else has it.
    pub unique: u64,
    /// Of these, what stays when it is removed: others have it, or were cloned from it.
    pub shared: u64,
    /// What the pool stores for a volume or an image: the blocks of its own that it and its snapshots have, each once. What it shares with
    /// the snapshot or image that it was cloned from is stored for that one. A snapshot has no blocks of its own: the figure is absent,
    /// or what is stored for all snapshots of its volume if that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<u64>,
    /// The snapshots of a volume, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotUsage>,
}

/// What a snapshot takes: as [`Usage`] says.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotUsage {
    /// Its name.
    pub name: Name,
    /// Blocks that it has data for.
    pub mapped: u64,
    /// Of these, what its removal gives back.
    pub unique: u64,
}
