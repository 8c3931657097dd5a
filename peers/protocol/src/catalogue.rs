//! What control asks of the mapper: names, volumes, snapshots and images. Typed values, off the data path.
//!
//! Whatever is not deterministic comes in with the request: fresh lineages and the time.

use serde::{Deserialize, Serialize};

use crate::check::Report;
use crate::diff::DiffPage;
use crate::error::Error;
use crate::ids::{Lineage, Name, ObjectSize};
use crate::labels::{LabelChanges, LabelFilter, Labels};
use crate::on_full::OnFull;
use crate::usage::Usage;

/// The three kinds of named map, and the one that is not yet visible.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Writable.
    Volume,
    /// Frozen.
    Snapshot,
    /// Frozen and meant to be cloned from.
    Image,
    /// An image that is still being filled: writable by its importer, forgotten when that fails.
    Importing,
}

/// One named thing as people and scripts see it.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: Kind,
    /// Its id.
    pub lineage: Lineage,
    /// Bytes.
    pub size: u64,
    /// Bytes of its objects.
    pub object_size: ObjectSize,
    /// Name of what it was cloned from or is a snapshot of, as long as that exists.
    pub parent: Option<Name>,
    /// Seconds since 1970 when it was made, for people.
    pub created: u64,
    /// What its guest's writes do without room in the pool; of frozen things: what clones of them begin with.
    #[serde(default)]
    pub on_full: OnFull,
    /// What people and programs have noted of it.
    #[serde(default)]
    pub labels: Labels,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// In order of their names.
    pub entries: Vec<Entry>,
    /// The name to list after for the next page; `None`: this was the last. A page of what matches may have fewer entries than its
    /// limit, or none, though others follow.
    pub next: Option<Name>,
}

/// Most entries of a page.
pub const PAGE_MAX: usize = 1000;

/// A request about names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum CatalogueRequest {
    /// A new, empty volume (or an image to be filled).
    Create {
        /// Its name.
        name: Name,
        /// Its id, fresh.
        lineage: Lineage,
        /// [`Kind::Volume`] or [`Kind::Importing`].
        kind: Kind,
        /// Bytes.
        size: u64,
        /// Bytes of its objects.
        object_size: ObjectSize,
        /// Now.
        created: u64,
        /// Its policy for a full pool.
        #[serde(default)]
        on_full: OnFull,
        /// Its labels.
        #[serde(default)]
        labels: Labels,
    },
    /// A writable volume that begins as `source`, a snapshot or an image.
    Clone {
        /// What to clone.
        source: Name,
        /// Name of the clone.
        name: Name,
        /// Its id, fresh.
        lineage: Lineage,
        /// Bytes, at least the source's; `None`: the source's.
        size: Option<u64>,
        /// Now.
        created: u64,
        /// Its policy for a full pool; `None`: the source's.
        #[serde(default)]
        on_full: Option<OnFull>,
        /// Its labels: the source's are not inherited.
        #[serde(default)]
        labels: Labels,
    },
    /// A snapshot of a volume that nobody has open. Of one that is open: [`crate::error::ErrorCode::InUse`]; prepare
    /// it then and let its volume peer do it.
    Snapshot {
        /// The volume.
        volume: Name,
        /// Name of the snapshot.
        name: Name,
        /// Its id, fresh.
        lineage: Lineage,
        /// Now.
        created: u64,
        /// Labels of the snapshot: the volume's are not inherited.
        #[serde(default)]
        labels: Labels,
    },
    /// Reserves name and id of a snapshot; answers [`CatalogueReply::Token`] for the volume peer.
    PrepareSnapshot {
        /// The volume.
        volume: Name,
        /// Name of the snapshot.
        name: Name,
        /// Its id, fresh.
        lineage: Lineage,
        /// Now.
        created: u64,
        /// Labels of the snapshot: the volume's are not inherited.
        #[serde(default)]
        labels: Labels,
    },
    /// Makes a filled import visible as an image. Closed before.
    Publish {
        /// The import.
        name: Name,
    },
    /// One entry.
    Lookup {
        /// Its name.
        name: Name,
    },
    /// Entries by prefix.
    List {
        /// What the names begin with.
        prefix: String,
        /// Only names after this one.
        after: Option<Name>,
        /// Most entries, up to [`PAGE_MAX`].
        limit: usize,
        /// Only what has such a label.
        #[serde(default)]
        label: Option<LabelFilter>,
    },
    /// Another size. Growing works at any time; shrinking only when nobody has it open, and with `force`.
    Resize {
        /// The volume.
        name: Name,
        /// Bytes.
        size: u64,
        /// Allow to lose what lies beyond.
        force: bool,
    },
    /// Other attributes, of something open or not: all that is given, or nothing.
    Set {
        /// What gets them.
        name: Name,
        /// The policy for a full pool, of a volume only. Whoever serves the volume is told by the caller.
        on_full: Option<OnFull>,
        /// Changes of labels.
        labels: LabelChanges,
    },
    /// Another name.
    Rename {
        /// The old name.
        from: Name,
        /// The new name.
        to: Name,
    },
    /// The volume begins again as a snapshot of its own, with the size of that. Nobody has the volume open. The snapshots stay, and so do
    /// name, labels and policy; the rest of what the volume was is removed.
    Rollback {
        /// The volume.
        name: Name,
        /// One of its snapshots, those from before an earlier rollback included.
        snapshot: Name,
        /// The volume's new id, fresh.
        lineage: Lineage,
    },
    /// Forgets the name; what clones still need stays.
    Remove {
        /// The name.
        name: Name,
    },
    /// Declares an incarnation of a node dead: what it owns may be taken over. Whoever asks knows that nothing which it still sends
    /// reaches the pool's data.
    Fence {
        /// The id of the incarnation, written as a lineage.
        incarnation: Lineage,
    },
    /// What something takes of the pool: its maps are compared, so the answer takes a time that grows with them.
    Usage {
        /// Its name.
        name: Name,
    },
    /// Where something differs from a snapshot or an image. Its maps are compared, so the answer takes a time that grows with what differs.
    Diff {
        /// Its name.
        name: Name,
        /// The snapshot or image; left out: zeros, so that everything counts that has data.
        from: Option<Name>,
        /// The byte from which on.
        start: u64,
        /// Most ranges, at most [`crate::diff::RANGES_MAX`].
        limit: usize,
    },
    /// Figures of the pool.
    PoolInfo,
    /// Looks for damage, missing and leaked objects; also in a pool whose catalogue cannot be used. Nothing is changed
    /// without `repair`.
    Check {
        /// Delete what provably nobody needs. Refused with [`crate::error::ErrorCode::InUse`] by a mapper that serves.
        repair: bool,
    },
}

/// The answer to a [`CatalogueRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum CatalogueReply {
    /// The entry as it is now.
    Entry(Entry),
    /// A page of entries.
    Page(Page),
    /// A snapshot is prepared.
    Token {
        /// For [`crate::map::MapOp::SnapshotBegin`].
        token: u64,
    },
    /// Done, nothing to say.
    Done,
    /// Figures of the pool.
    Pool {
        /// Bytes free.
        free: u64,
        /// Bytes in all.
        total: u64,
        /// Named things.
        entries: u64,
        /// Bytes of all volumes together, as guests see them.
        provisioned: u64,
    },
    /// What something takes of the pool.
    Usage(Usage),
    /// A page of ranges that differ.
    Diff(DiffPage),
    /// What a check found.
    Report(Report),
    /// It failed.
    Failed(Error),
}
