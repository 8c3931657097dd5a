//! Requests of the node daemon to the peer processes that it started: one JSON object a line, over a UNIX socket.
//!
//! A peer process serves the requests of the roles that it hosts and answers [`ErrorCode::Unsupported`] to the others.
//!
//! [`ErrorCode::Unsupported`]: crate::error::ErrorCode::Unsupported

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::catalogue::{CatalogueReply, CatalogueRequest};
use crate::endpoint::{AttachmentId, EndpointSpec, ServedVolume};
use crate::error::Error;
use crate::grants::Grants;
use crate::ids::Lineage;
use crate::on_full::OnFull;

/// A role that a process hosts.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Drivers and the volume peer.
    Endpoint,
    /// The mapper.
    Mapper,
    /// The blocker of the pool.
    Blocker,
}

impl Role {
    /// Each role once.
    pub const ALL: [Role; 3] = [Role::Endpoint, Role::Mapper, Role::Blocker];

    /// The role's name in file names and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Endpoint => "endpoint",
            Role::Mapper => "mapper",
            Role::Blocker => "blocker",
        }
    }
}

/// Longest request or reply, in bytes: a page of 1000 entries has less than 8 KiB each, labels of quotation marks included.
pub const LINE_LEN_MAX: u64 = 16 << 20;

/// A request to a peer process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum ControlRequest {
    /// Mapper: a request of the catalogue.
    Catalogue(CatalogueRequest),
    /// Endpoint: serve a volume. A repetition is not an error.
    Attach {
        /// The attachment's number.
        attachment: AttachmentId,
        /// The volume. A repetition with another policy for a full pool is like [`ControlRequest::OnFull`].
        volume: ServedVolume,
        /// The endpoint.
        endpoint: EndpointSpec,
    },
    /// Endpoint: stop serving; refused with in-use while a client is connected, unless `force`.
    Detach {
        /// The attachment's number.
        attachment: AttachmentId,
        /// Disconnect its clients.
        force: bool,
    },
    /// Endpoint: snapshot an open volume, with the mapper's token.
    Snapshot {
        /// The volume.
        lineage: Lineage,
        /// From [`CatalogueReply::Token`].
        token: u64,
    },
    /// Endpoint: the catalogue has a new size for a volume.
    Resized {
        /// The volume.
        lineage: Lineage,
        /// Bytes.
        size: u64,
    },
    /// Endpoint: the catalogue has another policy for a full pool for a volume. Ignored if the volume is not attached.
    OnFull {
        /// The volume.
        lineage: Lineage,
        /// The policy from now on, also for writes that wait.
        policy: OnFull,
    },
    /// Endpoint: serve a volume to one local client over a segment channel.
    OpenBulk {
        /// The volume.
        lineage: Lineage,
        /// Whether the client will write.
        write: bool,
        /// What its writes do without space in the pool.
        on_full: OnFull,
        /// Where the client will connect.
        socket: PathBuf,
    },
    /// Mapper: report the damage of a volume, if any was found. The answer is an error that names it.
    Damage {
        /// The volume.
        lineage: Lineage,
    },
    /// Mapper and blocker: all volumes that an endpoint with a user of its own may open from now on.
    Grants {
        /// The volumes.
        grants: Grants,
    },
    /// Any role: report its status.
    Status,
    /// Any role: finish requests in flight, release ownership, exit.
    Stop,
}

/// The answer to a [`ControlRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum ControlReply {
    /// From the mapper.
    Catalogue(CatalogueReply),
    /// The status.
    Status(ProcessStatus),
    /// Done.
    Done,
    /// It failed.
    Failed(Error),
}

/// The status of a peer process.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its process id.
    pub pid: u32,
    /// The peers in it.
    pub peers: Vec<PeerStatus>,
    /// The channels that its peers are clients of.
    pub channels: Vec<ChannelStatus>,
    /// Calls on the pool's storage that have not returned for a second or longer: the oldest ones.
    #[serde(default)]
    pub waits: Vec<Wait>,
    /// Guests that are not served, although nothing has failed.
    #[serde(default)]
    pub problems: Vec<DeviceProblem>,
    /// Blocker: its report about the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolReport>,
    /// Mapper: volumes whose presence journal is in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub journals: Vec<Lineage>,
    /// Endpoint: volumes that are open over segment channels, or about to be; once for each channel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels_to: Vec<Lineage>,
    /// Endpoint: the attachments that it serves; null: unknown for the moment, since one is being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Vec<ServedAttachment>>,
}

/// An attachment that a process serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedAttachment {
    /// Its number.
    pub attachment: AttachmentId,
    /// Number of connected clients; null: its kind does not know it.
    pub clients: Option<u64>,
}

/// The report about a pool of the process that serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// How its files are accessed.
    pub access: PoolAccess,
    /// The space that is reserved for metadata.
    pub reserve: PoolReserve,
    /// A description of the owner record, which other hosts find; null: there was no space for one.
    pub owner: Option<String>,
}

/// Space in a pool that is reserved for metadata.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReserve {
    /// Bytes reserved now.
    pub held: u64,
    /// Bytes that should be reserved; 0: the file system does not support a reserve.
    pub wanted: u64,
}

/// How the files of a pool are accessed.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PoolAccess {
    /// Past the page cache.
    Direct {
        /// Offsets, lengths and addresses are multiples of this, in bytes.
        alignment: u32,
    },
    /// Through the page cache.
    Buffered {
        /// Why the page cache is used.
        why: String,
    },
    /// There are no files: the pool is in a cluster.
    Cluster {
        /// The cluster's id.
        fsid: String,
    },
}

impl fmt::Display for PoolAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolAccess::Direct { alignment } => {
                write!(f, "direct, in units of {alignment} bytes")
            }
            PoolAccess::Buffered { why } => write!(f, "page cache: {why}"),
            PoolAccess::Cluster { fsid } => write!(f, "objects of the cluster {fsid}"),
        }
    }
}

/// Why the guest of a volume is not served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProblem {
    /// The volume.
    pub lineage: Lineage,
    /// The problem, and what to check.
    pub what: String,
}

/// A call on storage that has not returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The volume of the call; the catalogue's lineage, if the call concerns the pool.
    pub lineage: Lineage,
    /// The call, and its object.
    pub what: String,
    /// How long it has lasted.
    pub seconds: u64,
}

/// A peer's figures.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PeerStatus {
    /// `endpoint`, `volume`, `mapper`, `blocker-file`.
    pub name: String,
    /// Counters by name, in the order in which they are shown.
    pub counters: Vec<(String, u64)>,
}

/// A channel's figures, from its client's side.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// The peer that sends requests.
    pub client: String,
    /// The peer that answers them.
    pub server: String,
    /// `local` (one thread) or `shared` (a segment).
    pub transport: String,
    /// Requests submitted so far.
    pub requests: u64,
    /// In flight now.
    pub in_flight: u64,
    /// Connections so far: more than one after a restart of the server.
    pub incarnation: u64,
}
