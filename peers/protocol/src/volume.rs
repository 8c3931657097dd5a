//! What a driver asks of the volume peer: calls within one thread, no ring between them.
//!
//! Semantics
//! - Requests in flight together are not ordered. [`VolumeOp::Flush`] covers every write completed before it was
//!   submitted.
//! - Offsets and lengths are multiples of 512 bytes, inside the volume.
//! - [`VolumeOp::Discard`] and [`VolumeOp::WriteZeroes`] are block-exact: afterwards the range reads as zeros.
//! - [`VolumeOp::BlockStatus`] never calls a block a hole that holds a write which completed before the status was
//!   submitted, unless a later request made it zeros. It may call zeros data. It reads no data.

use xseg::{Region, RegionId};

use crate::error::{Error, ErrorCode};
use crate::ids::{Lineage, ObjectSize};
pub use crate::on_full::OnFull;

/// Operations of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeOp {
    /// Reads into the segments.
    Read,
    /// Writes the segments' bytes. `durable`: as if a flush followed it.
    Write {
        /// Force unit access, or write-through mode.
        durable: bool,
    },
    /// Makes every completed write durable.
    Flush,
    /// The range reads as zeros; its space may be given back.
    Discard,
    /// The range reads as zeros; `unmap`: its space may be given back.
    WriteZeroes {
        /// Whether space may be given back.
        unmap: bool,
        /// As for writes.
        durable: bool,
    },
    /// Which parts of the range hold data, as a page of runs ([`StatusPage`](crate::status::StatusPage)) in the
    /// segments: a multiple of 8 bytes, at most [`STATUS_PAGE_MAX`](crate::status::STATUS_PAGE_MAX). The range has at least
    /// one sector. The answer is bounded by the page, and by the work of one request: it covers at least the first sector of the
    /// range; for the rest a further request is sent behind what was covered.
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
    /// Memory of reads and writes, and of a status; the list is copied before [`Volumes::submit`] returns.
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
    /// Frozen things only: snapshots and images, or a volume attached read-only that nobody has open.
    ReadOnly,
}

/// What a driver needs to know of a volume to describe it to a guest; known before it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Which volume.
    pub lineage: Lineage,
    /// Bytes.
    pub size: u64,
    /// Its objects' size.
    pub object_size: ObjectSize,
}

/// What the volume peer tells a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeEvent {
    /// The request with this cookie is done.
    Done {
        /// As given to [`Volumes::submit`].
        cookie: u64,
        /// Success, or why not.
        result: Result<(), ErrorCode>,
    },
    /// The open that was asked for is done.
    Opened {
        /// The volume as it is, or why it cannot be had.
        result: Result<VolumeInfo, Error>,
    },
    /// The close that was asked for is done: everything is durable, ownership is given back.
    Closed {
        /// Success, or what was lost.
        result: Result<(), Error>,
    },
    /// The volume has another size now.
    Resized {
        /// Bytes.
        size: u64,
    },
}

/// The volume peer as drivers see it. One thread; nothing blocks.
pub trait Volumes {
    /// Lets requests name `region`, once [`Volumes::region_ready`] returns `true`.
    ///
    /// # Errors
    /// [`ErrorCode::NoSpace`]: too many regions.
    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), ErrorCode>;

    /// Whether requests may name region `id` already.
    fn region_ready(&self, id: RegionId) -> bool;

    /// Takes region `id` back; the caller has no request in flight that names it.
    fn remove_region(&mut self, id: RegionId);

    /// A region number that nobody uses.
    fn fresh_region(&mut self) -> RegionId;

    /// Starts to open a volume; [`VolumeEvent::Opened`] follows. Requests may be submitted only after it.
    fn open(&mut self, lineage: Lineage, mode: OpenMode) -> VolumeHandle;

    /// Starts to close: what is in flight finishes, is flushed, ownership is given back; [`VolumeEvent::Closed`] follows
    /// and the handle is dead.
    fn close(&mut self, volume: VolumeHandle);

    /// What `volume` does from now on with writes for which the pool has no room; [`OnFull::Report`] unless this was
    /// called. Writes that wait already are answered when the policy becomes that. A limit counts from when they began to.
    fn on_full(&mut self, volume: VolumeHandle, policy: OnFull);

    /// Answers what of `volume` waits for room now, with [`ErrorCode::NoSpace`], for a driver that cannot wait with it. Nothing
    /// of it may have been done: it can be submitted again. What is asked later waits as before.
    fn recall(&mut self, volume: VolumeHandle);

    /// Submits a request; exactly one [`VolumeEvent::Done`] with `cookie` follows.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`]: no slot or credit free, nothing changed, try again after a completion. Whatever is
    /// wrong with the request itself comes as its result.
    fn submit(
        &mut self,
        volume: VolumeHandle,
        cookie: u64,
        request: VolumeRequest<'_>,
    ) -> Result<(), ErrorCode>;

    /// The next event of `volume`.
    fn next_event(&mut self, volume: VolumeHandle) -> Option<VolumeEvent>;
}
