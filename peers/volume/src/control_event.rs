//! What the volume peer reports to control.

use archipelago_protocol::{Error, Lineage, OnFull};

/// What a volume waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// Room for its writes, in the pool.
    Writes,
    /// Room for its open, in the pool.
    Session,
    /// Nothing any more: the limit of the policy has passed, so requests that find no room fail at once.
    Nothing,
    /// A file descriptor.
    Descriptor,
    /// Memory.
    Memory,
    /// Room in the run directory, for its presence journal.
    RunDirectory,
}

/// A report of the volume peer to control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// The requested snapshot was made, or failed.
    SnapshotDone {
        /// As given to [`VolumePeer::snapshot`](crate::VolumePeer::snapshot).
        id: u64,
        /// Its token.
        token: u64,
        /// Success, or the error. [`ErrorCode::Unavailable`](archipelago_protocol::ErrorCode::Unavailable): the mapper died; check whether
        /// the name exists.
        result: Result<(), Error>,
    },
    /// This volume waits because there is no space, or has waited as long as its policy allows.
    NoSpace {
        /// Which volume.
        lineage: Lineage,
        /// What it waits for.
        waits_for: WaitsFor,
        /// How long it waits.
        policy: OnFull,
    },
    /// The size has changed since the volume's previous session: [`VolumeEvent::Resized`] waits for its driver.
    ///
    /// [`VolumeEvent::Resized`]: archipelago_protocol::volume::VolumeEvent::Resized
    Resized {
        /// Which volume.
        lineage: Lineage,
    },
    /// There is room again for its requests.
    SpaceFound {
        /// Which volume.
        lineage: Lineage,
    },
}
