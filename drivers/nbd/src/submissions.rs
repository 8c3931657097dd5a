//! The pieces of a connection that the volume works on, and those that wait for a place there, in the order in which they were cut.

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

/// What came of a submission.
#[derive(Debug)]
pub(crate) enum Submitted {
    /// The volume works on it.
    InFlight,
    /// The volume has no place for it now.
    NoPlace,
    /// It will not be done.
    Failed(Errno),
}

/// The pieces of a connection behind its requests.
#[derive(Debug)]
pub(crate) struct Submissions {
    /// The connection's place.
    place: u8,
    /// Pieces that the volume had no place for.
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

    /// Pieces that the volume works on.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether the volume has no piece, and none waits for it.
    pub(crate) fn is_empty(&self) -> bool {
        self.in_flight == 0 && self.waiting.is_empty()
    }

    /// The piece that is given to the volume before any other.
    pub(crate) fn next_waiting(&self) -> Option<Piece> {
        self.waiting.front().copied()
    }

    /// The piece of [`Submissions::next_waiting`] waits no longer.
    pub(crate) fn take_waiting(&mut self) {
        self.waiting.pop_front();
    }

    /// `piece` waits for a place, behind all others.
    pub(crate) fn wait(&mut self, piece: Piece) {
        self.waiting.push_back(piece);
    }

    /// Nobody waits for the answers to what waits.
    pub(crate) fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    /// The volume has answered a piece.
    pub(crate) fn done(&mut self) {
        self.in_flight -= 1;
    }

    /// Gives `piece` to the volume, which is to do `operation` with the cell in `memory`.
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
