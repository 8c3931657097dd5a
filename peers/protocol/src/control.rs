//! What the node daemon asks of the peer processes that it started: one JSON object a line, over a UNIX socket.
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

/// What a process hosts.
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

    /// The role as it stands in file names and options.
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
    /// Mapper: names.
    Catalogue(CatalogueRequest),
    /// Endpoint: serve a volume. The same again is not an error.
    Attach {
        /// The attachment's number.
        attachment: AttachmentId,
        /// What is served. The same attachment again with another policy for a full pool is as [`ControlRequest::OnFull`].
        volume: ServedVolume,
        /// Where and how.
        endpoint: EndpointSpec,
    },
    /// Endpoint: stop serving; refused with in-use while somebody is connected, unless `force`.
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
    /// Endpoint: the catalogue has another policy for a full pool for a volume. Of one that is not attached: nothing to do.
    OnFull {
        /// The volume.
        lineage: Lineage,
        /// From now on, and for writes that wait.
        policy: OnFull,
    },
    /// Endpoint: serve a volume to one local client over a segment channel.
    OpenBulk {
        /// The volume.
        lineage: Lineage,
        /// Whether the client will write.
        write: bool,
        /// What its writes do for which the pool has no room.
        on_full: OnFull,
        /// Where the client will connect.
        socket: PathBuf,
    },
    /// Mapper: what is damaged of a volume, if anything was found. Answers a failure that names it.
    Damage {
        /// The volume.
        lineage: Lineage,
    },
    /// Mapper and blocker: all that an endpoint with a user of its own may open from now on.
    Grants {
        /// The volumes.
        grants: Grants,
    },
    /// Any role: what it is and what went through it.
    Status,
    /// Any role: finish what is in flight, give ownership back, exit.
    Stop,
}

/// The answer to a [`ControlRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum ControlReply {
    /// From the mapper.
    Catalogue(CatalogueReply),
    /// Figures.
    Status(ProcessStatus),
    /// Done.
    Done,
    /// It failed.
    Failed(Error),
}

/// A peer process and what went through it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its process id.
    pub pid: u32,
    /// The peers in it.
    pub peers: Vec<PeerStatus>,
    /// The channels that its peers are clients of.
    pub channels: Vec<ChannelStatus>,
    /// Calls on the pool's storage that have not returned for a second or longer: the oldest, at most some.
    #[serde(default)]
    pub waits: Vec<Wait>,
    /// Guests that are not served, though nothing has failed.
    #[serde(default)]
    pub problems: Vec<DeviceProblem>,
    /// Blocker: what it knows of the pool.
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
    /// Which.
    pub attachment: AttachmentId,
    /// Who is connected to it now; null: its kind does not know.
    pub clients: Option<u64>,
}

/// What the process that serves a pool knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// How its files are accessed.
    pub access: PoolAccess,
    /// The room that is set aside for metadata.
    pub reserve: PoolReserve,
    /// The owner record, which other hosts find, for people; null: there was no room for one.
    pub owner: Option<String>,
}

/// Room in a pool that only metadata takes, when there is no other.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReserve {
    /// Bytes that are set aside.
    pub held: u64,
    /// Bytes that should be; 0: the file system cannot set room aside.
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
        /// Why not past it.
        why: String,
    },
    /// There are none: it is objects of a cluster.
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
    /// What is wrong, and what to look at.
    pub what: String,
}

/// A call on storage that has not returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The volume that it is for; the catalogue's, if it is for the pool.
    pub lineage: Lineage,
    /// What was called, and on what.
    pub what: String,
    /// For how long.
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
    /// The peer that asks.
    pub client: String,
    /// The peer that answers.
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
