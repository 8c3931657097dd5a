//! A driver's request, from its submission until the driver collects the answer.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::VolumeOp;

use crate::slab::{Linked, NONE};

/// The state of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Part of it is not cut into pieces yet: it is in the cutter's queue.
    Cutting,
    /// All its pieces are made, and some are in flight.
    Running,
    /// Its data is written, and it waits for a flush round.
    Flushing,
    /// It is answered, and its driver has not collected the answer yet.
    Done,
}

/// A driver's request: plain data. Its segments are in [`GuestMemory`](crate::memory::GuestMemory), which keeps the list for the next
/// request of the slot.
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
    pub(crate) result: Result<(), ErrorCode>,
    pub(crate) next: u32,
}

impl Linked for Request {
    fn link(&mut self) -> &mut u32 {
        &mut self.next
    }
}

impl Request {
    pub(crate) fn new(
        volume: u32,
        cookie: u64,
        sequence: u64,
        op: VolumeOp,
        offset: u64,
        len: u64,
    ) -> Self {
        Request {
            volume,
            cookie,
            sequence,
            op,
            offset,
            len,
            cursor: offset,
            pieces: 0,
            phase: Phase::Running,
            result: Ok(()),
            next: NONE,
        }
    }

    /// First byte after the request.
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

    /// Whether its answer implies that earlier writes are durable.
    pub(crate) fn flushes(&self) -> bool {
        self.op == VolumeOp::Flush || self.is_durable()
    }
}
