//! Attachments: which volume is served, and at what kind of endpoint.
//!
//! One design decision: what every kind has stands in [`ServedVolume`], what only one kind has in its variant of
//! [`EndpointSpec`]. Another driver is another variant; nothing that is not about it names it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{Lineage, ObjectSize};
use crate::on_full::OnFull;

/// Number of an attachment in its node. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttachmentId(pub u64);

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A volume as an endpoint of any kind serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedVolume {
    /// The volume.
    pub lineage: Lineage,
    /// Bytes, as the catalogue has them: a multiple of 512.
    pub size: u64,
    /// Bytes of its objects: the best size of a transfer.
    pub object_size: ObjectSize,
    /// Refuse writes.
    pub read_only: bool,
    /// What names the disk to a guest: at most 20 bytes.
    pub serial: String,
    /// What writes do for which the pool has no room, as long as no other policy is set.
    #[serde(default)]
    pub on_full: OnFull,
}

/// A kind of endpoint, and what only that kind has.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EndpointSpec {
    /// A vhost-user-blk device.
    VhostUser {
        /// Where virtual machine monitors connect.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        socket: PathBuf,
        /// Request queues offered.
        queues: u16,
    },
    /// An NBD export.
    Nbd {
        /// Where clients connect.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        socket: PathBuf,
        /// Name of the export: that of the volume when it was attached. The empty name means it as well.
        export: String,
    },
    /// A block device of this host.
    Ublk {
        /// Its number.
        device: u32,
        /// Where it is: `/dev/ublkb` and the number.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        path: PathBuf,
    },
    /// A block device of this host, by the kernel's NBD client, which is connected to an export.
    NbdDevice {
        /// Its number.
        device: u32,
        /// Where it is: `/dev/nbd` and the number.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        path: PathBuf,
        /// Where the daemon connects it.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        socket: PathBuf,
    },
    /// A file of this host. Served by the daemon, not by a data process.
    Fuse {
        /// Where it is.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        file: PathBuf,
    },
    /// A block device of this host, by the kernel's loop driver over such a file. Served by the daemon.
    Loop {
        /// The file below it.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        file: PathBuf,
        /// Where the device is: a link to `/dev/loopN`.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        device: PathBuf,
    },
}

/// Connections of an NBD export that a process sets its resources aside for: those of clients in their usual way. More of them come out
/// of what is left.
pub const NBD_CONNECTIONS: u16 = 4;

impl EndpointSpec {
    /// The kind's name, for people and in figures.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            EndpointSpec::VhostUser { .. } => "vhost-user",
            EndpointSpec::Nbd { .. } => "nbd",
            EndpointSpec::Ublk { .. } => "ublk",
            EndpointSpec::NbdDevice { .. } => "nbd-device",
            EndpointSpec::Fuse { .. } => "fuse",
            EndpointSpec::Loop { .. } => "loop",
        }
    }

    /// Name of the endpoint in figures: its kind, and what tells it from others of this kind: its number or, for people, its volume.
    #[must_use]
    pub fn peer_name(&self, which: &impl fmt::Display) -> String {
        format!("{}:{which}", self.kind())
    }

    /// Queues of requests that it offers; for NBD, connections, each of which is one.
    #[must_use]
    pub fn queues(&self) -> u16 {
        match self {
            EndpointSpec::VhostUser { queues, .. } => *queues,
            EndpointSpec::Nbd { .. } => NBD_CONNECTIONS,
            EndpointSpec::Ublk { .. } | EndpointSpec::NbdDevice { .. } => 1,
            EndpointSpec::Fuse { .. } | EndpointSpec::Loop { .. } => 0,
        }
    }

    /// Where it is found.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            EndpointSpec::VhostUser { socket, .. } | EndpointSpec::Nbd { socket, .. } => socket,
            EndpointSpec::Ublk { path, .. } | EndpointSpec::NbdDevice { path, .. } => path,
            EndpointSpec::Fuse { file } => file,
            EndpointSpec::Loop { device, .. } => device,
        }
    }
}
