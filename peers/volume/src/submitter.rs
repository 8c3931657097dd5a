//! Sends the requests of pieces to the mapper and to the blocker, in order, as far as there are credits.
//!
//! Invariants
//! - A transfer of guest memory does not copy the memory: one segment is sent as it is, several as a list in a cell. Only the first few
//!   first writes after a flush are also copied ([`Copies`]).
//! - The bytes that are merged into a block are copied from the guest's memory once, and only the copy is written.
//! - A cell is acquired only when there is a credit, so a piece that holds a cell is in flight or next to be sent.

use archipelago_protocol::map::{FLAG_WRITE, MapOp, MapRequest};
use archipelago_protocol::object::{FLAG_DURABLE, Memory, ObjectId, ObjectOp, ObjectRequest};
use archipelago_protocol::{BLOCK_SIZE, ErrorCode, ObjectSize};
use xseg::ClientPort;

use crate::blocks::block_start;
use crate::cells::{Cell, Cells};
use crate::copies::Copies;
use crate::exclusion::Exclusion;
use crate::memory::RequestBytes;
use crate::piece::{OldBlock, Piece, Place, Step, Work};
use crate::ports::{InFlight, Waiter};
use crate::request::Request;
use crate::slab::{Queue, Slab};
use crate::tables::Tables;

/// Pieces of one volume that wait for credits.
#[derive(Debug, Default)]
pub(crate) struct Submitter {
    to_map: Queue,
    to_object: Queue,
}

/// The result of sending the next piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Submitted {
    /// No piece waits, or the next one waits for a credit or a cell.
    Nothing,
    Sent,
    /// The piece cannot be sent.
    Failed(u32, ErrorCode),
}

impl Submitter {
    /// Piece `p` must send `step` to the mapper.
    pub(crate) fn ask_map(&mut self, pieces: &mut Slab<Piece>, p: u32, step: Step) {
        pieces[p].step = step;
        self.to_map.push(pieces, p);
    }

    /// Piece `p` must send `step` to the blocker.
    pub(crate) fn ask_blocker(&mut self, pieces: &mut Slab<Piece>, p: u32, step: Step) {
        pieces[p].step = step;
        if pieces[p].cell.is_some() {
            // Not behind a piece that waits for a cell: this one will release its own cell.
            self.to_object.push_front(pieces, p);
        } else {
            self.to_object.push(pieces, p);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.to_map.is_empty() && self.to_object.is_empty()
    }

    /// Removes all pieces from here. The caller drops them.
    pub(crate) fn clear(&mut self) {
        *self = Submitter::default();
    }

    /// Sends the next request to the mapper, on `session`. Returns whether one was sent.
    pub(crate) fn send_to_map<M: ClientPort, B: ClientPort>(
        &mut self,
        t: &mut Tables<M, B>,
        in_flight: &mut InFlight,
        session: u32,
    ) -> bool {
        let Some(p) = self.to_map.front() else {
            return false;
        };
        let request = map_request(&t.pieces[p], session);
        let sent = t.ports.send_map(in_flight, Waiter::Piece(p), &request);
        if sent {
            self.to_map.pop(&mut t.pieces);
        }
        sent
    }

    /// Sends the next request to the blocker. A first write leaves a copy in `copies`, unless another write overlaps it according to
    /// `exclusion`. Without `copies`, completed writes are durable: no sync follows, and writes are marked as needing none.
    pub(crate) fn send_to_blocker<M: ClientPort, B: ClientPort>(
        &mut self,
        t: &mut Tables<M, B>,
        in_flight: &mut InFlight,
        object_size: ObjectSize,
        copies: Option<&mut Copies>,
        exclusion: &Exclusion,
    ) -> Submitted {
        let Some(p) = self.to_object.front() else {
            return Submitted::Nothing;
        };
        let mut request = match object_request(&t.pieces[p], object_size) {
            Ok(request) => request,
            Err(code) => {
                self.to_object.pop(&mut t.pieces);
                return Submitted::Failed(p, code);
            }
        };
        let Some(handle) = t.ports.open_for(in_flight, &request) else {
            return Submitted::Nothing;
        };
        request.memory = match prepare(t, p) {
            Ok(None) => return Submitted::Nothing,
            Ok(Some(memory)) => memory,
            Err(code) => {
                self.to_object.pop(&mut t.pieces);
                return Submitted::Failed(p, code);
            }
        };
        match copies {
            Some(copies) => copy_first_write(t, p, copies, exclusion),
            None if request.op == ObjectOp::Write => request.flags = FLAG_DURABLE,
            None => {}
        }
        let waiter = Waiter::Piece(p);
        if !t.ports.send_object(in_flight, waiter, handle, &request) {
            return Submitted::Nothing;
        }
        self.to_object.pop(&mut t.pieces);
        Submitted::Sent
    }
}

/// The bytes of the current run of `piece`.
pub(crate) fn run_bytes(piece: &Piece, requests: &Slab<Request>) -> RequestBytes {
    RequestBytes {
        request: piece.request,
        skip: piece.offset - requests[piece.request].offset,
        len: piece.len,
    }
}

fn map_request(piece: &Piece, session: u32) -> MapRequest {
    let blocks = piece.blocks();
    let at = |op| MapRequest {
        offset: blocks.start,
        len: blocks.end - blocks.start,
        ..MapRequest::new(op, session)
    };
    match piece.step {
        Step::Claim => MapRequest {
            flags: FLAG_WRITE,
            ..at(MapOp::Locate)
        },
        Step::Report => MapRequest {
            operand: [piece.place.epoch.0, 0],
            ..at(MapOp::Written)
        },
        Step::Clear => at(MapOp::Zero),
        Step::Status(_) => at(MapOp::Status),
        Step::Resolve { index, .. } => MapRequest {
            operand: [index.into(), 0],
            ..MapRequest::new(MapOp::Lineage, session)
        },
        _ => at(MapOp::Locate),
    }
}

/// The request of piece `piece` to the blocker, without the memory.
fn object_request(piece: &Piece, object_size: ObjectSize) -> Result<ObjectRequest, ErrorCode> {
    let block = (block_start(piece.offset), BLOCK_SIZE);
    let run = (piece.offset, piece.len);
    let (op, place, (offset, len)) = match piece.step {
        Step::ReadOld(old) => (ObjectOp::Read, old, block),
        Step::Merge(_) => (ObjectOp::Write, piece.place, block),
        _ if piece.work == Work::Read => (ObjectOp::Read, piece.place, run),
        _ => (ObjectOp::Write, piece.place, run),
    };
    let Place { lineage, epoch } = place;
    Ok(ObjectRequest {
        object_size,
        offset,
        len: u32::try_from(len).map_err(|_too_long| ErrorCode::Internal)?,
        ..ObjectRequest::new(op, ObjectId::data(lineage, epoch))
    })
}

/// The memory of piece `p` for the transfer, filled if needed; `None`: it waits for a cell.
fn prepare<M: ClientPort, B: ClientPort>(
    t: &mut Tables<M, B>,
    p: u32,
) -> Result<Option<Memory>, ErrorCode> {
    let piece = &mut t.pieces[p];
    let arena = t.ports.object_arena();
    let bytes = run_bytes(piece, &t.requests);
    if piece.step == Step::Transfer && piece.work != Work::Zeros {
        let parts = t.memory.parts(bytes);
        let mut ahead = parts.clone();
        let (Some(first), more) = (ahead.next(), ahead.next().is_some()) else {
            return Ok(None);
        };
        if !more {
            return Ok(Some(Memory {
                region: first.region,
                count: 0,
                offset: first.offset,
            }));
        }
        let count = parts.clone().count();
        return Ok(cell_of(piece, &mut t.cells, count).map(|cell| {
            cell.write_list(arena, parts);
            cell.list(count)
        }));
    }
    let Some(cell) = cell_of(piece, &mut t.cells, 1) else {
        return Ok(None);
    };
    let into = piece.offset % BLOCK_SIZE;
    match piece.step {
        Step::Transfer => cell.write_zeros(arena, 0, BLOCK_SIZE),
        Step::Merge(old) => {
            if old == OldBlock::Zeros {
                cell.write_zeros(arena, 0, BLOCK_SIZE);
            }
            if piece.work == Work::Zeros {
                cell.write_zeros(arena, into, piece.len);
            } else {
                let put = |copy: &[u8]| cell.write(arena, into, copy);
                t.memory.with_copy(bytes, put)?;
            }
        }
        _ => {}
    }
    Ok(Some(cell.block()))
}

/// The cell of `piece`; acquired when first needed.
fn cell_of(piece: &mut Piece, cells: &mut Cells, entries: usize) -> Option<Cell> {
    if piece.cell.is_none() {
        piece.cell = cells.acquire(entries);
    }
    piece.cell
}

/// Keeps a copy of the data of piece `p`, if the next flush could journal it.
fn copy_first_write<M, B>(
    t: &mut Tables<M, B>,
    p: u32,
    copies: &mut Copies,
    exclusion: &Exclusion,
) {
    let piece = &t.pieces[p];
    let is_transfer = piece.step == Step::Transfer && piece.work == Work::Write;
    if !is_transfer || !piece.first || piece.copy.is_some() {
        return;
    }
    let Some(slots) = copies.reserve(piece.len) else {
        return;
    };
    let bytes = run_bytes(piece, &t.requests);
    if !exclusion.overlaps_another(&t.pieces, p) && t.memory.read(bytes, copies.room(slots)).is_ok()
    {
        t.pieces[p].copy = Some(slots);
    } else {
        copies.release(slots);
    }
}
