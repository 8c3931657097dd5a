//! A piece of a request: plain data that goes through the steps of `pieces`.

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
    /// Which blocks hold data.
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

/// What a place is for whose lineage is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolved {
    Transfer,
    ReadOld,
}

/// What a piece sends next, or waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Waits for its range, or to be the only writer of its block.
    Acquire,
    /// Mapper: where is it to be read?
    Probe,
    /// Mapper: where shall it be written?
    Claim,
    /// Mapper: which lineage has this index? Then on with `after` at that lineage and `epoch`.
    Resolve {
        index: LineageIndex,
        epoch: Epoch,
        after: Resolved,
    },
    /// Mapper: where is the old content of the block to be merged?
    Old,
    /// Blocker: the old content of the block, into the cell.
    ReadOld(Place),
    /// Blocker: the data itself.
    Transfer,
    /// Blocker: the merged block, from the cell.
    Merge(OldBlock),
    /// Mapper: it is written.
    Report,
    /// Mapper: it is zero.
    Clear,
    /// Mapper: which blocks hold data?
    Status(StatusCursor),
}

/// A range of a request, inside one object (but for [`Work::Clear`] and [`Work::Status`]), in work.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) request: u32,
    pub(crate) volume: u32,
    pub(crate) work: Work,
    pub(crate) step: Step,
    /// First byte in the volume.
    pub(crate) offset: u64,
    /// Bytes of the run in work.
    pub(crate) len: u64,
    /// Bytes behind the run for which there was no room for a piece of their own.
    pub(crate) rest: u64,
    /// Where the run is read or written.
    pub(crate) place: Place,
    /// The blocks of the run are not owned: the mapper gets a report when they are written.
    pub(crate) first: bool,
    /// What it holds of its range.
    pub(crate) hold: Hold,
    pub(crate) cell: Option<Cell>,
    /// The copy of what it writes, until the write has completed.
    pub(crate) copy: Option<Slots>,
    /// The epoch of its place, if it is a write that has one.
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

    /// The whole blocks that hold the run.
    pub(crate) fn blocks(&self) -> Range<u64> {
        block_start(self.offset)..block_end(self.offset + self.len)
    }

    /// Whether the step is a write of the blocker.
    pub(crate) fn is_writing(&self) -> bool {
        match self.step {
            Step::Merge(_) => true,
            Step::Transfer => self.work != Work::Read,
            _ => false,
        }
    }

    /// Whether it is part of a request that changes the volume.
    pub(crate) fn is_for_write(&self) -> bool {
        !matches!(self.work, Work::Read | Work::Status)
    }

    /// Whether the step reports something to the mapper.
    pub(crate) fn is_reporting(&self) -> bool {
        matches!(self.step, Step::Report | Step::Clear)
    }
}
