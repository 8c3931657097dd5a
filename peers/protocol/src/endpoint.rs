//! Attachments: which volume is served, and at what kind of endpoint.
//!
//! One design decision: the settings of every kind are in [`ServedVolume`], those of one kind in its variant of [`EndpointSpec`]. A new
//! driver is a new variant; other code does not name it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{Lineage, ObjectSize};
use crate::on_full::OnFull;

/// Number of an attachment in its node. Never used twice.
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
    /// Size in bytes, from the catalogue: a multiple of 512.
    pub size: u64,
    /// Size of its objects in bytes: the preferred size of a transfer.
    pub object_size: ObjectSize,
    /// Refuse writes.
    pub read_only: bool,
    /// The serial number of the disk that a guest sees: at most 20 bytes.
    pub serial: String,
    /// What writes do without space in the pool, until another policy is set.
    #[serde(default)]
    pub on_full: OnFull,
}

/// A kind of endpoint, and the settings of that kind.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EndpointSpec {
    /// A vhost-user-blk device.
    VhostUser {
        /// The socket for virtual machine monitors.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        socket: PathBuf,
        /// Request queues offered.
        queues: u16,
    },
    /// An NBD export.
    Nbd {
        /// The socket for clients.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        socket: PathBuf,
        /// Name of the export: the volume's name when it was attached. It is also the default export.
        export: String,
    },
    /// A block device of this host.
    Ublk {
        /// Its number.
        device: u32,
        /// Its path: `/dev/ublkb` and the number.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        path: PathBuf,
    },
    /// A block device of this host, by the kernel's NBD client, which is connected to an export.
    NbdDevice {
        /// Its number.
        device: u32,
        /// Its path: `/dev/nbd` and the number.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        path: PathBuf,
        /// The socket to which the daemon connects it.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        socket: PathBuf,
    },
    /// A file of this host. Served by the daemon, not by a data process.
    Fuse {
        /// Its path.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        file: PathBuf,
    },
    /// A block device of this host, by the kernel's loop driver on such a file. Served by the daemon.
    Loop {
        /// The file below it.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        file: PathBuf,
        /// Path of the device: a link to `/dev/loopN`.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        device: PathBuf,
    },
}

/// Connections of an NBD export for which a process reserves resources: those that clients usually open. Further ones use the unreserved
/// rest.
pub const NBD_CONNECTIONS: u16 = 4;

impl EndpointSpec {
    /// The kind's name, in messages and figures.
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

    /// Name of the endpoint in figures: its kind, and its number or, for users, its volume.
    #[must_use]
    pub fn peer_name(&self, which: &impl fmt::Display) -> String {
        format!("{}:{which}", self.kind())
    }

    /// Number of its request queues; for NBD, of connections, each of which is one.
    #[must_use]
    pub fn queues(&self) -> u16 {
        match self {
            EndpointSpec::VhostUser { queues, .. } => *queues,
            EndpointSpec::Nbd { .. } => NBD_CONNECTIONS,
            EndpointSpec::Ublk { .. } | EndpointSpec::NbdDevice { .. } => 1,
            EndpointSpec::Fuse { .. } | EndpointSpec::Loop { .. } => 0,
        }
    }

    /// Its path.
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
