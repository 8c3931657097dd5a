//! The pieces of a connection that are in flight at the volume, and those that wait for a slot there, in the order in which they were cut.

use std::collections::VecDeque;

use archipelago_endpoint::{EndpointVolume, Service};
use archipelago_nbd_protocol::reply::errno;
use archipelago_nbd_protocol::requests::REQUESTS;
use archipelago_nbd_protocol::wire::Errno;
use archipelago_protocol::ErrorCode;
use archipelago_protocol::status::STATUS_PAGE_MAX;
use archipelago_protocol::volume::{Segment, VolumeHandle, VolumeOp, VolumeRequest, Volumes};

use crate::cells::NONE;
use crate::layout::{CELLS, cell_at};
use crate::memory::Memory;
use crate::piece::{Cookie, Piece, not_served};

/// The result of a submission.
#[derive(Debug)]
pub(crate) enum Submitted {
    /// It is in flight.
    InFlight,
    /// The volume has no free slot.
    NoPlace,
    /// It has failed.
    Failed(Errno),
}

/// The pieces of a connection.
#[derive(Debug)]
pub(crate) struct Submissions {
    /// The connection's place.
    place: u8,
    /// Pieces that wait for a slot.
    waiting: VecDeque<Piece>,
    in_flight: u32,
}

impl Submissions {
    pub(crate) fn new(place: u8) -> Self {
        Submissions {
            place,
            waiting: VecDeque::with_capacity(usize::from(CELLS + REQUESTS)),
            in_flight: 0,
        }
    }

    /// Pieces in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether no piece is in flight and none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.in_flight == 0 && self.waiting.is_empty()
    }

    /// The piece to submit before any other.
    pub(crate) fn next_waiting(&self) -> Option<Piece> {
        self.waiting.front().copied()
    }

    /// Removes the piece of [`Submissions::next_waiting`].
    pub(crate) fn take_waiting(&mut self) {
        self.waiting.pop_front();
    }

    /// Queues `piece`, behind all others.
    pub(crate) fn wait(&mut self, piece: Piece) {
        self.waiting.push_back(piece);
    }

    /// Drops the waiting pieces: the client has disconnected.
    pub(crate) fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    /// Counts a piece that the volume has answered.
    pub(crate) fn done(&mut self) {
        self.in_flight -= 1;
    }

    /// Submits `piece` to the volume, as `operation` with the cell in `memory`.
    pub(crate) fn submit<V: Volumes>(
        &mut self,
        piece: Piece,
        operation: Option<VolumeOp>,
        memory: &Memory,
        service: Service,
        volume: &mut EndpointVolume<V>,
    ) -> Submitted {
        let handle = match service {
            Service::Open(handle) => handle,
            Service::Fails(why) => return Submitted::Failed(not_served(why)),
            Service::NotYet => return Submitted::NoPlace,
        };
        let Some(op) = operation else {
            return Submitted::Failed(Errno::Io);
        };
        match self.give(piece, op, memory, handle, volume) {
            Ok(()) => {
                self.in_flight += 1;
                Submitted::InFlight
            }
            Err(ErrorCode::Unavailable) => Submitted::NoPlace,
            Err(code) => Submitted::Failed(errno(code)),
        }
    }

    fn give<V: Volumes>(
        &self,
        piece: Piece,
        op: VolumeOp,
        memory: &Memory,
        handle: VolumeHandle,
        volume: &mut EndpointVolume<V>,
    ) -> Result<(), ErrorCode> {
        let segments = [Segment {
            region: memory.id(),
            len: match op {
                VolumeOp::BlockStatus => STATUS_PAGE_MAX,
                _ => piece.range.len,
            },
            offset: cell_at(piece.cell) as u64,
        }];
        let request = VolumeRequest {
            op,
            offset: piece.range.offset,
            len: u64::from(piece.range.len),
            segments: match piece.cell {
                NONE => &[],
                _ => &segments,
            },
        };
        let cookie = Cookie {
            place: self.place,
            request: piece.request,
            cell: piece.cell,
        };
        volume.submit(handle, cookie.encode(), request)
    }
}
