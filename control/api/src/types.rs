//! Bodies of requests and answers.

use std::path::PathBuf;

use archipelago_protocol::catalogue::Entry;
use archipelago_protocol::check::Report;
use archipelago_protocol::control::{ChannelStatus, PeerStatus, Role};
use archipelago_protocol::{
    AttachmentId, EndpointSpec, Error, LabelChanges, Labels, Lineage, Name, ObjectSize, OnFull,
};
use serde::{Deserialize, Serialize};

use crate::config::Placement;
use crate::pools::PoolStatus;

/// Most request queues of an attached volume.
pub const QUEUES_MAX: u16 = 256;

/// Body of every failure.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub error: Error,
}

/// Makes a volume.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: Name,
    /// Bytes.
    pub size: u64,
    /// The pool; left out: the only one, or the one named `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// Bytes of its objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_size: Option<ObjectSize>,
    /// Its policy for a full pool; left out: wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Makes a snapshot of the volume in the path.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotVolume {
    /// Name of the snapshot.
    pub name: Name,
    /// Its labels: those of the volume are not inherited.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Makes a volume that begins as the snapshot or image in the path.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneVolume {
    /// Name of the clone.
    pub name: Name,
    /// Bytes, at least the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Its policy for a full pool; left out: the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// Its labels: those of the source are not inherited.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Gives what is in the path other attributes: all that is given, or nothing.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetVolume {
    /// Its policy for a full pool, of a volume only; left out: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// Labels to set, and to remove.
    #[serde(default, skip_serializing_if = "LabelChanges::is_empty")]
    pub labels: LabelChanges,
}

/// Gives the volume in the path another size.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// Bytes.
    pub size: u64,
    /// Allow to lose what lies beyond.
    #[serde(default)]
    pub force: bool,
}

/// Gives what is in the path another name.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameVolume {
    /// The new name.
    pub to: Name,
    /// The pool, if things in two pools have the old name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
}

/// Makes the volume in the path what one of its snapshots is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackVolume {
    /// The snapshot.
    pub snapshot: Name,
}

/// A kind of endpoint.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointKind {
    /// A vhost-user-blk device, for virtual machines.
    VhostUser,
    /// An NBD export, for whatever speaks NBD.
    Nbd,
    /// A block device of this host, by its kernel's ublk driver.
    Ublk,
    /// A file of the host.
    Fuse,
    /// A block device of the host, by the best means that it has.
    Block,
}

impl EndpointKind {
    /// Whether `endpoint` is what this kind asks for.
    #[must_use]
    pub fn includes(self, endpoint: &EndpointSpec) -> bool {
        let of_endpoint = EndpointKind::of(endpoint);
        let is_block_device = matches!(of_endpoint, EndpointKind::Block | EndpointKind::Ublk);
        self == of_endpoint || (self == EndpointKind::Block && is_block_device)
    }

    /// The kind of `endpoint`.
    #[must_use]
    pub fn of(endpoint: &EndpointSpec) -> EndpointKind {
        match endpoint {
            EndpointSpec::VhostUser { .. } => EndpointKind::VhostUser,
            EndpointSpec::Nbd { .. } => EndpointKind::Nbd,
            EndpointSpec::Ublk { .. } => EndpointKind::Ublk,
            EndpointSpec::Fuse { .. } => EndpointKind::Fuse,
            EndpointSpec::NbdDevice { .. } | EndpointSpec::Loop { .. } => EndpointKind::Block,
        }
    }
}

/// Serves the volume in the path at a socket. What is left out matches any attachment that is there. What is read-only may be attached
/// any number of times; a volume that is written, once.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachVolume {
    /// What is served there; left out: vhost-user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<EndpointKind>,
    /// Request queues offered, of vhost-user alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Refuse writes; left out: of a snapshot or an image only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// One more attachment, though one that matches is there: for another virtual machine. Never the same again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub another: bool,
}

/// Serves the volume in the path no longer. Of several attachments, what is given says which; what is left out matches each.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachVolume {
    /// Its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<AttachmentId>,
    /// Its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<EndpointKind>,
    /// Where it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub path: Option<PathBuf>,
}

impl DetachVolume {
    /// Whether `attachment` is one that is meant.
    #[must_use]
    pub fn means(&self, attachment: &Attachment) -> bool {
        let endpoint = &attachment.endpoint;
        self.id.is_none_or(|id| id == attachment.id)
            && self.kind.is_none_or(|kind| kind.includes(endpoint))
            && self
                .path
                .as_ref()
                .is_none_or(|path| path == endpoint.path())
    }
}

/// Something attached.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its number in the node.
    pub id: AttachmentId,
    /// The pool of the volume; null in what a node with one pool has noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// The volume.
    pub name: Name,
    /// Its id.
    pub lineage: Lineage,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Its kind, and what only that kind has.
    #[serde(flatten)]
    pub endpoint: EndpointSpec,
}

/// How an attachment is now.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentState {
    /// Somebody is connected.
    Connected,
    /// Served, and nobody is connected.
    Idle,
    /// Served; its kind does not know who uses it.
    Served,
    /// Not served: its process has not come so far, or could not; the log says why. It is tried again.
    NotServed,
    /// Its process does not say.
    Unknown,
}

impl AttachmentState {
    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            AttachmentState::Connected => "connected",
            AttachmentState::Idle => "idle",
            AttachmentState::Served => "served",
            AttachmentState::NotServed => "not served",
            AttachmentState::Unknown => "unknown",
        }
    }
}

/// Something attached, and how it is now.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentView {
    /// What is attached.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Whether it is served, and in use.
    pub state: AttachmentState,
}

/// A named thing with what the node knows of it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// What the catalogue says.
    #[serde(flatten)]
    pub entry: Entry,
    /// Its pool.
    pub pool: Name,
    /// How it is attached on this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// What was found damaged of it since the mapper started; told of single volumes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// What was found of it since then in a format that the node's program does not know; likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
}

/// A page of a listing.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePage {
    /// In order of their names.
    pub volumes: Vec<VolumeView>,
    /// The name to list after for the next page; null: this was the last. A page may have fewer entries than its limit, or none, though
    /// others follow.
    pub next: Option<Name>,
    /// Pools that are not served: what they hold is not listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlisted: Vec<PoolAbsence>,
}

/// A pool that is not served.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAbsence {
    /// The pool.
    pub pool: Name,
    /// Why it is not served.
    pub reason: String,
}

/// Begins an import.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginImport {
    /// Name of the image.
    pub name: Name,
    /// Bytes: a multiple of 512.
    pub size: u64,
    /// The pool; left out: the only one, or the one named `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// Bytes of its objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_size: Option<ObjectSize>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Opens what is in the path for one process.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenVolume {
    /// Refuse writes. Snapshots and images are opened so only, and by any number of processes; a volume, as long as nobody writes it.
    #[serde(default)]
    pub read_only: bool,
    /// Nobody else gets it while the processes of the node are away: answered with a reservation.
    #[serde(default)]
    pub keep: bool,
    /// Name of the reservation that this process holds: it had the volume open, and opens it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<String>,
}

/// Something that is open, and where its one client connects within 30 s.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bulk {
    /// What is open.
    pub lineage: Lineage,
    /// Bytes of it.
    pub size: u64,
    /// Socket of the segment channel, see the crate `archipelago-segment`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub socket: PathBuf,
    /// User of the process behind it, if it is not the daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// A file that this process locks (flock) once it has connected, for as long as it keeps the volume: then nobody else gets that while
    /// the node's processes are away. One that has no name left once it is locked is void. Absent: not asked for, or an endpoint of the
    /// node may open the volume, so it is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub reservation: Option<PathBuf>,
}

/// What a check of a pool found.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCheck {
    /// The pool.
    pub pool: Name,
    /// Whether it was served meanwhile.
    pub online: bool,
    /// What was found.
    #[serde(flatten)]
    pub report: Report,
}

/// File descriptors that a process has and may have.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptors {
    /// Open now.
    pub used: u64,
    /// Allowed.
    pub allowed: u64,
}

/// A data process of the node.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessView {
    /// The pool that it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// What it hosts.
    pub roles: Vec<Role>,
    /// Its process id; 0: between two lives.
    pub pid: u32,
    /// How often it was started again.
    pub restarts: u64,
    /// Whether it answers.
    pub serving: bool,
    /// Its file descriptors; null: it does not run, or the kernel does not show them to the daemon.
    #[serde(default)]
    pub descriptors: Option<Descriptors>,
    /// Why it does not; null: it does.
    #[serde(default)]
    pub reason: Option<String>,
    /// How it ended last without being told to; null: it did not since the daemon started.
    #[serde(default)]
    pub last_end: Option<ProcessEnd>,
    /// The peers in it.
    pub peers: Vec<PeerStatus>,
    /// The channels that its peers are clients of.
    pub channels: Vec<ChannelStatus>,
}

/// The end of a process that should have gone on.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEnd {
    /// Why it ended, in its own words if it had any, or why it could not be started.
    pub reason: String,
    /// How long ago.
    pub seconds: u64,
}

/// A node.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// File descriptors of the daemon.
    #[serde(default)]
    pub descriptors: Option<Descriptors>,
    /// Where its peers run.
    pub placement: Placement,
    /// Its data processes.
    pub processes: Vec<ProcessView>,
    /// What is attached.
    pub attachments: Vec<AttachmentView>,
    /// Calls on storage that have not returned for a second or longer: the oldest, at most some.
    pub waits: Vec<WaitView>,
    /// The pools: how each is accessed, what is free of it, and who has it open.
    #[serde(default)]
    pub pools: Vec<PoolStatus>,
    /// Attached volumes whose presence journal is in use: those that a guest may write to now.
    #[serde(default)]
    pub journals: Vec<Name>,
    /// Guests that are not served, though nothing has failed, and pools that soon cannot serve.
    #[serde(default)]
    pub problems: Vec<ProblemView>,
}

/// Why the guest of a volume is not served, or what is wrong with a pool.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemView {
    /// The volume; null: it is not attached any more, or the pool has the problem.
    pub volume: Option<Name>,
    /// The pool, if it has the problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// What is wrong, and what to look at.
    pub what: String,
}

/// A call on storage that has not returned.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitView {
    /// The attached volume that it is for; null: the pool, or a volume that is not attached.
    pub volume: Option<Name>,
    /// What was called, and on what.
    pub what: String,
    /// For how long.
    pub seconds: u64,
}

/// The node has stopped.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stopped {
    /// What was ended by force, and why; empty: all was finished.
    pub unfinished: Vec<String>,
}

/// The daemon has ended, and its pools are closed.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ended {
    /// What was found on the way, for people.
    pub notes: Vec<String>,
}

/// Done, nothing to say.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {}
