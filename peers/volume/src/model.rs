//! What the peer remembers: requests of drivers, the pieces that they are cut into, and open volumes.

use std::collections::VecDeque;

use archipelago_protocol::object::SCATTER_MAX;
use archipelago_protocol::volume::{OpenMode, VolumeEvent, VolumeOp};
use archipelago_protocol::{BLOCK_SIZE, Epoch, Error, ErrorCode, Lineage, ObjectSize};

use crate::arena::Cell;
use crate::carry::Slots;
use crate::flush::Flush;
use crate::full::Full;
use crate::slab::{Linked, NONE, Queue};
use crate::snapshot::Snapshots;

/// Volumes open at a time: more than a host has devices, and their slots (some 700 bytes each) stay below 1 MiB.
pub(crate) const VOLUMES_MAX: u32 = 1024;
/// Requests in flight of all volumes: 32 busy queues of 128. About 100 bytes each: 400 KiB.
pub(crate) const REQUESTS_MAX: u32 = 4096;
/// Requests in flight of one volume: 8 queues of 128, so one volume cannot take every slot.
pub(crate) const REQUESTS_PER_VOLUME: u32 = 1024;
/// Pieces in flight of all volumes: one for each request, and room for large ones. About 190 bytes each: 1.5 MiB.
pub(crate) const PIECES_MAX: u32 = 8192;
/// Pieces in flight of one volume: a request of 32 MiB over objects of 64 KiB has 512, twice.
pub(crate) const PIECES_PER_VOLUME: u32 = 1024;
/// Segments of one request: what one scatter list can say.
pub(crate) const SEGMENTS_MAX: usize = SCATTER_MAX as usize;
/// Blocks of a volume that are being merged, or wait for it: a queue of small writes into a fresh clone, half of it.
pub(crate) const MERGES_MAX: usize = 64;

/// Whether a volume that holds `held` of what all volumes share may take another while `free` are left. So one that hangs
/// keeps half of it, two keep a third each, and there is always something left for those that do not.
pub(crate) fn may_take(held: usize, free: usize) -> bool {
    held < free
}

/// First byte of the block that holds byte `offset`.
pub(crate) fn block_start(offset: u64) -> u64 {
    offset - offset % BLOCK_SIZE
}

/// First byte after the last block that holds a byte below `end`.
pub(crate) fn block_end(end: u64) -> u64 {
    end.div_ceil(BLOCK_SIZE) * BLOCK_SIZE
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its pieces are being made or are in flight.
    Running,
    /// Its data is written; it waits for a flush round.
    Flushing,
    /// Its driver has not collected the result yet.
    Done,
}

/// A driver's request. Its segments stand in a table beside, so that their memory is kept.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) volume: u32,
    pub(crate) cookie: u64,
    /// Order of submission.
    pub(crate) sequence: u64,
    pub(crate) op: VolumeOp,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// Where the next piece begins.
    pub(crate) cursor: u64,
    /// Pieces not yet done.
    pub(crate) pieces: u32,
    pub(crate) phase: Phase,
    /// Whether it stands in the volume's queue of requests to be cut.
    pub(crate) cutting: bool,
    pub(crate) result: Result<(), ErrorCode>,
    pub(crate) next: u32,
}

impl Linked for Request {
    fn link(&mut self) -> &mut u32 {
        &mut self.next
    }
}

impl Request {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Whether a flush must follow before it is done.
    pub(crate) fn is_durable(&self) -> bool {
        matches!(
            self.op,
            VolumeOp::Write { durable: true } | VolumeOp::WriteZeroes { durable: true, .. }
        )
    }
}

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Bytes into the request's memory.
    Read,
    /// Bytes out of the request's memory.
    Write,
    /// Zeros into a part of a block: the edge of a discard.
    Zeros,
    /// Whole blocks that the map shall call zero.
    Clear,
}

/// What a piece does next, or waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Waits until no merge touches its range.
    Acquire,
    /// Waits until it is the only one that touches its block.
    Exclusive,
    /// Mapper: where is it to be read?
    Probe,
    /// Mapper: where shall it be written?
    Claim,
    /// Mapper: which lineage is that? Then the step in [`Piece::after`].
    Resolve,
    /// Mapper: where is the old content of the block to be merged?
    Old,
    /// Blocker: the old content, into the cell.
    ReadOld,
    /// Blocker: the data itself.
    Transfer,
    /// Blocker: the merged block, from the cell.
    Merge,
    /// Mapper: it is written.
    Report,
    /// Mapper: it is zero.
    Clear,
}

/// Where bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub(crate) lineage: Lineage,
    pub(crate) epoch: Epoch,
}

/// A range of a request, inside one object (but for [`Work::Clear`]), on its way.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) request: u32,
    pub(crate) volume: u32,
    pub(crate) work: Work,
    pub(crate) step: Step,
    /// What follows [`Step::Resolve`].
    pub(crate) after: Step,
    /// Lineage index that is being resolved.
    pub(crate) unresolved: u32,
    /// First byte in the volume.
    pub(crate) offset: u64,
    /// Bytes of the run in work.
    pub(crate) len: u64,
    /// Bytes behind the run that no piece of their own could be made for.
    pub(crate) rest: u64,
    /// Where it is read or written.
    pub(crate) place: Place,
    /// Where the old content of a merged block is; `None`: it reads as zeros.
    pub(crate) old: Option<Place>,
    /// Told to the mapper when written.
    pub(crate) first: bool,
    /// A write smaller than its block, into a block that is not owned.
    pub(crate) merging: bool,
    /// It stands in [`Volume::clears`].
    pub(crate) clearing: bool,
    /// The only one that may write its block.
    pub(crate) exclusive: bool,
    pub(crate) cell: Option<Cell>,
    /// Where the copy of what it writes is, until the write has completed.
    pub(crate) copy: Option<Slots>,
    /// Counted in [`Volume::located`] under this phase.
    pub(crate) located: Option<usize>,
    /// Its place in [`Volume::active`].
    pub(crate) active_at: Option<usize>,
    pub(crate) next: u32,
}

impl Linked for Piece {
    fn link(&mut self) -> &mut u32 {
        &mut self.next
    }
}

impl Piece {
    pub(crate) fn new(volume: u32, request: u32, work: Work, offset: u64, len: u64) -> Self {
        Piece {
            request,
            volume,
            work,
            step: Step::Acquire,
            after: Step::Acquire,
            unresolved: 0,
            offset,
            len,
            rest: 0,
            place: Place::default(),
            old: None,
            first: false,
            merging: false,
            clearing: false,
            exclusive: false,
            cell: None,
            copy: None,
            located: None,
            active_at: None,
            next: NONE,
        }
    }

    /// Whether it touches a block that `other` touches.
    pub(crate) fn meets(&self, other: &Piece) -> bool {
        let end = |piece: &Piece| piece.offset + piece.len + piece.rest;
        block_start(self.offset) < end(other) && block_start(other.offset) < end(self)
    }

    /// Whether it touches the block that begins at `block`.
    pub(crate) fn touches(&self, block: u64) -> bool {
        block_start(self.offset) <= block && block < self.offset + self.len + self.rest
    }
}

/// A block that a piece merges or waits to merge. In the order of asking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Merge {
    pub(crate) block: u64,
    pub(crate) piece: u32,
    pub(crate) active: bool,
}

/// Where a volume stands with the mapper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Asks for a session; requests wait.
    Opening,
    /// Has a session.
    Serving,
    /// A sync failed: waits until nothing is in flight. Requests up to this sequence fail.
    Failing(u64),
    /// Drops what is not durable.
    Abandoning,
    /// Gives the session back.
    Closing,
    /// Could not be reopened: requests fail with this.
    Broken(ErrorCode),
    /// Lives until its last event is collected.
    Dead,
}

/// A volume that a driver opened.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) handle: u32,
    pub(crate) lineage: Lineage,
    pub(crate) mode: OpenMode,
    pub(crate) state: State,
    /// Whether the request that the state calls for is with the mapper.
    pub(crate) asked: bool,
    /// Whether the driver was told that it is open.
    pub(crate) opened: bool,
    /// A sync failed, and no session has begun since.
    pub(crate) dropped: bool,
    /// The last try to open it again met a failed sync.
    pub(crate) reopened: bool,
    /// Whether it closes when everything is done.
    pub(crate) closing: bool,
    /// Whether a driver still collects events.
    pub(crate) listening: bool,
    /// What the closing lost.
    pub(crate) lost: Option<Error>,
    /// Whether a newer session owns it.
    pub(crate) stale: bool,
    /// The mapper's handle.
    pub(crate) session: u32,
    pub(crate) size: u64,
    pub(crate) object_size: ObjectSize,
    /// Lineages by the mapper's index, as far as they were asked for.
    pub(crate) lineages: Vec<Option<Lineage>>,
    /// Requests not yet done.
    pub(crate) live: u32,
    /// Request slots taken, results not yet collected included.
    pub(crate) slots: u32,
    pub(crate) pieces: u32,
    pub(crate) done: Queue,
    pub(crate) cutting: Queue,
    pub(crate) to_map: Queue,
    pub(crate) to_object: Queue,
    pub(crate) blocked: Queue,
    pub(crate) merges: Vec<Merge>,
    /// Pieces that clear, or wait to.
    pub(crate) clears: Vec<u32>,
    /// Pieces that write, but for those in [`Volume::merges`].
    pub(crate) active: Vec<u32>,
    pub(crate) map_in_flight: u32,
    pub(crate) object_in_flight: u32,
    pub(crate) flush: Flush,
    pub(crate) full: Full,
    pub(crate) snapshots: Snapshots,
    /// Changes with each snapshot: which of the counters below counts new locations.
    pub(crate) phase: usize,
    /// Writes that have a place and are not yet done, by phase.
    pub(crate) located: [u32; 2],
    /// Events other than [`VolumeEvent::Done`]: rare.
    pub(crate) events: VecDeque<VolumeEvent>,
    /// Whether it stands in the peer's queue of volumes with work.
    pub(crate) queued: bool,
}

impl Volume {
    pub(crate) fn new(handle: u32, lineage: Lineage, mode: OpenMode) -> Self {
        Volume {
            handle,
            lineage,
            mode,
            state: State::Opening,
            asked: false,
            opened: false,
            dropped: false,
            reopened: false,
            closing: false,
            listening: true,
            lost: None,
            stale: false,
            session: 0,
            size: 0,
            object_size: ObjectSize::DEFAULT,
            lineages: Vec::new(),
            live: 0,
            slots: 0,
            pieces: 0,
            done: Queue::default(),
            cutting: Queue::default(),
            to_map: Queue::default(),
            to_object: Queue::default(),
            blocked: Queue::default(),
            merges: Vec::with_capacity(MERGES_MAX),
            clears: Vec::with_capacity(PIECES_PER_VOLUME as usize),
            active: Vec::with_capacity(PIECES_PER_VOLUME as usize),
            map_in_flight: 0,
            object_in_flight: 0,
            flush: Flush::default(),
            full: Full::default(),
            snapshots: Snapshots::default(),
            phase: 0,
            located: [0; 2],
            events: VecDeque::with_capacity(4),
            queued: false,
        }
    }

    /// Whether there is something to send as soon as there is a credit.
    pub(crate) fn has_work(&self) -> bool {
        match self.state {
            State::Opening | State::Abandoning | State::Closing => !self.asked,
            State::Failing(_) => self.map_in_flight + self.object_in_flight == 0,
            State::Serving => {
                !(self.to_map.is_empty() && self.to_object.is_empty() && self.cutting.is_empty())
                    || self.flush.has_work()
                    || self.snapshots.has_work(self.located)
            }
            State::Broken(_) => self.closing,
            State::Dead => false,
        }
    }
}
