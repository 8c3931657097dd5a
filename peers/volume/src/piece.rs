//! A piece of a request: plain data; `pieces` moves it from step to step.

use std::ops::Range;

use archipelago_protocol::{Epoch, Lineage};

use crate::blocks::{block_end, block_start};
use crate::cells::Cell;
use crate::copies::Slots;
use crate::epoch_writes::WritePhase;
use crate::exclusion::{Access, Claim, Hold};
use crate::lineages::LineageIndex;
use crate::slab::{Linked, NONE};
use crate::status::StatusCursor;

/// The purpose of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Reads into the request's memory.
    Read,
    /// Writes from the request's memory.
    Write,
    /// Writes zeros into a part of a block: the edge of a discard.
    Zeros,
    /// Marks whole blocks as zero in the map.
    Clear,
    /// Finds out which blocks hold data.
    Status,
}

/// Where bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub(crate) lineage: Lineage,
    pub(crate) epoch: Epoch,
}

/// The content of a block before a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OldBlock {
    /// It reads as zeros.
    Zeros,
    /// It was read into the piece's cell.
    InCell,
}

/// The purpose for which a lineage is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolved {
    Transfer,
    ReadOld,
}

/// What a piece sends next, or the answer that it awaits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Waits for its range, or to become the only writer of its block.
    Acquire,
    /// To the mapper: where is the data read from?
    Probe,
    /// To the mapper: where is the data written?
    Claim,
    /// To the mapper: which lineage has this index? Then continues with `after` at that lineage and `epoch`.
    Resolve {
        index: LineageIndex,
        epoch: Epoch,
        after: Resolved,
    },
    /// To the mapper: where is the old content of the block to be merged?
    Old,
    /// To the blocker: reads the old content of the block into the cell.
    ReadOld(Place),
    /// To the blocker: transfers the data itself.
    Transfer,
    /// To the blocker: writes the merged block from the cell.
    Merge(OldBlock),
    /// To the mapper: the blocks are written.
    Report,
    /// To the mapper: the blocks are zero.
    Clear,
    /// To the mapper: which blocks hold data?
    Status(StatusCursor),
}

/// A range of a request, inside one object (except for [`Work::Clear`] and [`Work::Status`]), in progress.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) request: u32,
    pub(crate) volume: u32,
    pub(crate) work: Work,
    pub(crate) step: Step,
    /// First byte in the volume.
    pub(crate) offset: u64,
    /// Bytes of the current run.
    pub(crate) len: u64,
    /// Bytes after the run for which there was no room to make another piece.
    pub(crate) rest: u64,
    /// Where the run is read or written.
    pub(crate) place: Place,
    /// The blocks of the run are not owned: the mapper gets a report when they have been written.
    pub(crate) first: bool,
    /// What it holds of its range.
    pub(crate) hold: Hold,
    pub(crate) cell: Option<Cell>,
    /// The copy of the written data, until the write has completed.
    pub(crate) copy: Option<Slots>,
    /// The epoch of its place, for a write that has a place.
    pub(crate) located: Option<WritePhase>,
    pub(crate) next: u32,
}

impl Linked for Piece {
    fn link(&mut self) -> &mut u32 {
        &mut self.next
    }
}

impl Claim for Piece {
    fn access(&self) -> Access {
        if self.work == Work::Clear {
            Access::Clear
        } else {
            Access::Write
        }
    }

    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len + self.rest
    }

    fn hold(&mut self) -> &mut Hold {
        &mut self.hold
    }
}

impl Piece {
    pub(crate) fn new(volume: u32, request: u32, work: Work, offset: u64, len: u64) -> Self {
        Piece {
            request,
            volume,
            work,
            step: Step::Acquire,
            offset,
            len,
            rest: 0,
            place: Place::default(),
            first: false,
            hold: Hold::default(),
            cell: None,
            copy: None,
            located: None,
            next: NONE,
        }
    }

    /// The whole blocks that contain the run.
    pub(crate) fn blocks(&self) -> Range<u64> {
        block_start(self.offset)..block_end(self.offset + self.len)
    }

    /// Whether the step is a write to the blocker.
    pub(crate) fn is_writing(&self) -> bool {
        match self.step {
            Step::Merge(_) => true,
            Step::Transfer => self.work != Work::Read,
            _ => false,
        }
    }

    /// Whether the piece belongs to a request that changes the volume.
    pub(crate) fn is_for_write(&self) -> bool {
        !matches!(self.work, Work::Read | Work::Status)
    }

    /// Whether the step is a report to the mapper.
    pub(crate) fn is_reporting(&self) -> bool {
        matches!(self.step, Step::Report | Step::Clear)
    }
}
