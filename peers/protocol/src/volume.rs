//! What a driver asks of the volume peer: function calls within one thread, without a ring between them.
//!
//! Semantics
//! - Requests in flight together are not ordered. [`VolumeOp::Flush`] covers every write that completed before the flush was submitted.
//! - Offsets and lengths are multiples of 512 bytes, inside the volume.
//! - [`VolumeOp::Discard`] and [`VolumeOp::WriteZeroes`] are block-exact: afterwards the range reads as zeros.
//! - [`VolumeOp::BlockStatus`] reads no data. It may report zeros as data. It never reports as a hole a block with a write that completed
//!   before the status was submitted, unless a later request turned the block into zeros.

use xseg::{Region, RegionId};

use crate::error::{Error, ErrorCode};
use crate::ids::{Lineage, ObjectSize};
pub use crate::on_full::OnFull;

/// Operations of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeOp {
    /// Reads into the segments.
    Read,
    /// Writes the bytes of the segments. `durable`: as if a flush followed the write.
    Write {
        /// Force unit access, or write-through mode.
        durable: bool,
    },
    /// Makes every completed write durable.
    Flush,
    /// The range reads as zeros afterwards; its space may be released.
    Discard,
    /// The range reads as zeros afterwards; `unmap`: its space may be released.
    WriteZeroes {
        /// Whether the space may be released.
        unmap: bool,
        /// As for writes.
        durable: bool,
    },
    /// Which parts of the range hold data, as a page of runs ([`StatusPage`](crate::status::StatusPage)) in the
    /// segments: a multiple of 8 bytes, at most [`STATUS_PAGE_MAX`](crate::status::STATUS_PAGE_MAX). The range has at least
    /// one sector. The answer covers at least the first sector of the range, and ends where the page is full or the work of one request is
    /// done; the driver sends a further request for the rest.
    BlockStatus,
}

/// A piece of memory of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Region that the driver has added.
    pub region: u32,
    /// Length in bytes: any, as long as the sum is a multiple of 512.
    pub len: u32,
    /// Offset in the region.
    pub offset: u64,
}

/// A request for a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeRequest<'a> {
    /// What to do.
    pub op: VolumeOp,
    /// First byte of the volume.
    pub offset: u64,
    /// Bytes of the volume; for reads and writes the sum of the segments.
    pub len: u64,
    /// Memory of reads and writes, and of a status; [`Volumes::submit`] copies the list before it returns.
    pub segments: &'a [Segment],
}

/// A volume that the volume peer serves; private to the driver that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeHandle(pub u32);

/// How a volume is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenMode {
    /// The one writer.
    Exclusive,
    /// The volume cannot change: a snapshot, an image, or a volume attached read-only that nobody has open for writing.
    ReadOnly,
}

/// What a driver needs in order to describe a volume to a guest; known before the volume is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Which volume.
    pub lineage: Lineage,
    /// Bytes.
    pub size: u64,
    /// Size of its objects.
    pub object_size: ObjectSize,
}

/// What the volume peer reports to a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeEvent {
    /// The request with this cookie is done.
    Done {
        /// As given to [`Volumes::submit`].
        cookie: u64,
        /// Success, or the error.
        result: Result<(), ErrorCode>,
    },
    /// The open is done.
    Opened {
        /// The volume, or why it cannot be opened.
        result: Result<VolumeInfo, Error>,
    },
    /// The close is done: all data is durable, and the ownership is released.
    Closed {
        /// Success, or what was lost.
        result: Result<(), Error>,
    },
    /// The size of the volume has changed.
    Resized {
        /// Bytes.
        size: u64,
    },
}

/// The volume peer as drivers see it. For one thread; no call blocks.
pub trait Volumes {
    /// Adds `region`. Requests may name it once [`Volumes::region_ready`] returns `true`.
    ///
    /// # Errors
    /// [`ErrorCode::NoSpace`]: too many regions.
    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), ErrorCode>;

    /// Whether requests may name region `id`.
    fn region_ready(&self, id: RegionId) -> bool;

    /// Removes region `id`; the caller has no request in flight that names it.
    fn remove_region(&mut self, id: RegionId);

    /// A region number that is not in use.
    fn fresh_region(&mut self) -> RegionId;

    /// Starts to open a volume; [`VolumeEvent::Opened`] follows. Requests may be submitted only after that event.
    fn open(&mut self, lineage: Lineage, mode: OpenMode) -> VolumeHandle;

    /// Starts to close a volume: requests in flight finish, the volume is flushed, and its ownership is released. [`VolumeEvent::Closed`]
    /// follows, after which the handle is invalid.
    fn close(&mut self, volume: VolumeHandle);

    /// What `volume` does from now on with writes for which the pool has no room; [`OnFull::Report`] until this is called. If the policy
    /// becomes [`OnFull::Report`], writes that wait are answered. The limit of a policy counts from when the writes began to wait.
    fn on_full(&mut self, volume: VolumeHandle, policy: OnFull);

    /// Answers the requests of `volume` that wait for room now, with [`ErrorCode::NoSpace`], for a driver that cannot wait for them. Such a
    /// request may have been carried out in part or not at all: it can be submitted again. Later requests wait as before.
    fn recall(&mut self, volume: VolumeHandle);

    /// Submits a request; exactly one [`VolumeEvent::Done`] with `cookie` follows.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`]: no slot or credit is free and nothing has changed; try again after a completion. An error of the request
    /// itself is reported as its result.
    fn submit(
        &mut self,
        volume: VolumeHandle,
        cookie: u64,
        request: VolumeRequest<'_>,
    ) -> Result<(), ErrorCode>;

    /// The next event of `volume`.
    fn next_event(&mut self, volume: VolumeHandle) -> Option<VolumeEvent>;
}
