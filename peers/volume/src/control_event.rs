//! What the volume peer reports to control.

use archipelago_protocol::{Error, Lineage, OnFull};

/// What a volume waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// Room for its writes, in the pool.
    Writes,
    /// Room for its open, in the pool.
    Session,
    /// Nothing any more: what finds no room fails at once, since the limit of the policy is over.
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
    /// A snapshot that was asked for is there, or is not.
    SnapshotDone {
        /// As given to [`VolumePeer::snapshot`](crate::VolumePeer::snapshot).
        id: u64,
        /// Its token.
        token: u64,
        /// Success, or why not. [`ErrorCode::Unavailable`](archipelago_protocol::ErrorCode::Unavailable): the mapper died,
        /// look whether the name is there.
        result: Result<(), Error>,
    },
    /// This volume waits: there is no space. Or it has waited for as long as its policy allows.
    NoSpace {
        /// Which volume.
        lineage: Lineage,
        /// For what.
        waits_for: WaitsFor,
        /// For how long, by its policy.
        policy: OnFull,
    },
    /// It has another size than before its session began anew: [`VolumeEvent::Resized`] waits for its driver.
    ///
    /// [`VolumeEvent::Resized`]: archipelago_protocol::volume::VolumeEvent::Resized
    Resized {
        /// Which volume.
        lineage: Lineage,
    },
    /// There is room again for what it asks.
    SpaceFound {
        /// Which volume.
        lineage: Lineage,
    },
}
