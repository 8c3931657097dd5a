//! Where the bytes of a piece are: guest memory, a scatter list, or a cell of the arena.
//!
//! Invariants
//! - A transfer of guest memory copies nothing: one segment goes as it is, several as a list in a cell. Only the first
//!   few first writes after a flush are copied beside it (`carry`).
//! - The bytes that are merged into a block are copied out of the guest's memory once; what was copied is written.
//! - A cell is taken only when there is a credit, so a piece that holds one is in flight or next to be sent.

use archipelago_protocol::object::{
    Memory, ObjectId, ObjectOp, ObjectReply, ObjectRequest, SCATTER_ENTRY_LEN,
};
use archipelago_protocol::{BLOCK_SIZE, ErrorCode};
use xseg::{ClientPort, RegionId};

use crate::model::{Step, Work, block_start, may_take};
use crate::peer::{Kind, VolumePeer};
use crate::segments::{Parts, scatter_entry};

/// Scatter entries that are encoded at a time, on the stack: 1 KiB.
const ENTRIES_AT_ONCE: usize = 64;
/// Bytes of a block, in memory.
const BLOCK_LEN: usize = 4096;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_SIZE);

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// `Ok(false)`: no credit or no cell, try again later.
    pub(crate) fn send_piece_to_blocker(&mut self, v: u32, p: u32) -> Result<bool, ErrorCode> {
        let held = self.volumes[v].object_in_flight as usize;
        if !may_take(held, self.blocker.credits()) {
            return Ok(false);
        }
        let step = self.pieces[p].step;
        let Some(memory) = (match step {
            Step::Transfer => self.transfer_memory(p),
            _ => self.cell_memory(p),
        }) else {
            return Ok(false);
        };
        if step == Step::Merge {
            self.overlay(p)?;
        }
        if step == Step::Transfer {
            self.copy_to_carry(p);
        }
        let piece = &self.pieces[p];
        let (block, len) = (block_start(piece.offset), BLOCK_SIZE);
        let (op, place, offset, len) = match step {
            Step::Merge => (ObjectOp::Write, piece.place, block, len),
            Step::Transfer if piece.work == Work::Read => {
                (ObjectOp::Read, piece.place, piece.offset, piece.len)
            }
            Step::Transfer => (ObjectOp::Write, piece.place, piece.offset, piece.len),
            _ => (ObjectOp::Read, piece.old.unwrap_or_default(), block, len),
        };
        let request = ObjectRequest {
            object_size: self.volumes[v].object_size,
            offset,
            len: u32::try_from(len).map_err(|_too_long| ErrorCode::Internal)?,
            memory,
            ..ObjectRequest::new(op, ObjectId::data(place.lineage, place.epoch))
        };
        Ok(self.send_object(v, Kind::Piece, p, &request))
    }

    /// Keeps a copy of what piece `p` is about to write, if the next flush could carry it.
    fn copy_to_carry(&mut self, p: u32) {
        let piece = &self.pieces[p];
        let v = piece.volume;
        if piece.work != Work::Write || !piece.first || piece.copy.is_some() {
            return;
        }
        let (offset, len) = (piece.offset, piece.len);
        let carry = &mut self.volumes[v].flush.carry;
        let Some(slots) = carry.reserve(len) else {
            return;
        };
        if self.meets_another(p) {
            return self.volumes[v].flush.carry.give(slots);
        }
        let r = self.pieces[p].request;
        let from = offset - self.requests[r].offset;
        let parts = Parts::new(&self.segments[r as usize], from, len);
        let region = |id| self.regions.get(&id).map(|known| &known.region);
        let carry = &mut self.volumes[v].flush.carry;
        if carry.copy(slots, parts, region) {
            self.pieces[p].copy = Some(slots);
        } else {
            carry.give(slots);
        }
    }

    /// The cell of a merge; taken at the first need of it.
    pub(crate) fn cell_memory(&mut self, p: u32) -> Option<Memory> {
        let piece = &mut self.pieces[p];
        if piece.cell.is_none() {
            piece.cell = Some(self.arena.take(1)?);
        }
        piece.cell.map(|cell| Memory {
            region: RegionId::ARENA.0,
            count: 0,
            offset: cell.offset,
        })
    }

    /// Where the bytes of a transfer are: one buffer, or a scatter list in a cell.
    pub(crate) fn transfer_memory(&mut self, p: u32) -> Option<Memory> {
        if self.pieces[p].work == Work::Zeros {
            let memory = self.cell_memory(p)?;
            self.blocker
                .arena()
                .fill(memory.offset, BLOCK_SIZE, 0)
                .expect("cells lie in the arena");
            return Some(memory);
        }
        let piece = &mut self.pieces[p];
        let request = &self.requests[piece.request];
        let parts = Parts::new(
            &self.segments[piece.request as usize],
            piece.offset - request.offset,
            piece.len,
        );
        let mut ahead = parts.clone();
        let first = ahead.next()?;
        if ahead.next().is_none() {
            return Some(Memory {
                region: first.region,
                count: 0,
                offset: first.offset,
            });
        }
        let count = parts.clone().count();
        if piece.cell.is_none() {
            piece.cell = Some(self.arena.take(count)?);
        }
        let cell = piece.cell?;
        let arena = self.blocker.arena();
        let mut chunk = [0; ENTRIES_AT_ONCE * SCATTER_ENTRY_LEN];
        let (mut filled, mut at) = (0, cell.offset);
        for part in parts {
            chunk[filled..filled + SCATTER_ENTRY_LEN].copy_from_slice(&scatter_entry(part));
            filled += SCATTER_ENTRY_LEN;
            if filled == chunk.len() {
                arena.write(at, &chunk).expect("cells lie in the arena");
                at += filled as u64;
                filled = 0;
            }
        }
        arena
            .write(at, &chunk[..filled])
            .expect("cells lie in the arena");
        let count = u16::try_from(count).expect("at most SEGMENTS_MAX");
        Some(Memory {
            region: RegionId::ARENA.0,
            count,
            offset: cell.offset,
        })
    }

    /// Puts the new bytes over the old block in the cell.
    pub(crate) fn overlay(&mut self, p: u32) -> Result<(), ErrorCode> {
        let piece = &self.pieces[p];
        let Some(cell) = piece.cell else {
            return Err(ErrorCode::Internal);
        };
        let arena = self.blocker.arena();
        if piece.old.is_none() {
            arena
                .fill(cell.offset, BLOCK_SIZE, 0)
                .expect("cells lie in the arena");
        }
        let mut at = cell.offset + piece.offset % BLOCK_SIZE;
        if piece.work == Work::Zeros {
            arena.fill(at, piece.len, 0).expect("inside the block");
            return Ok(());
        }
        let request = &self.requests[piece.request];
        let mut copy = [0; BLOCK_LEN];
        for part in Parts::new(
            &self.segments[piece.request as usize],
            piece.offset - request.offset,
            piece.len,
        ) {
            let known = self.regions.get(&part.region).ok_or(ErrorCode::Invalid)?;
            let copy = &mut copy[..part.len as usize];
            known
                .region
                .read(part.offset, copy)
                .map_err(|_outside| ErrorCode::Invalid)?;
            arena.write(at, copy).expect("inside the block");
            at += u64::from(part.len);
        }
        Ok(())
    }

    pub(crate) fn fill_zeros(&mut self, p: u32) -> Result<(), ErrorCode> {
        let piece = &self.pieces[p];
        let request = &self.requests[piece.request];
        for part in Parts::new(
            &self.segments[piece.request as usize],
            piece.offset - request.offset,
            piece.len,
        ) {
            let known = self.regions.get(&part.region).ok_or(ErrorCode::Invalid)?;
            known
                .region
                .fill(part.offset, u64::from(part.len), 0)
                .map_err(|_outside| ErrorCode::Invalid)?;
        }
        Ok(())
    }

    /// A completed write dirties its container, before anybody hears of it.
    pub(crate) fn note_written(&mut self, p: u32, reply: &ObjectReply) {
        let piece = &mut self.pieces[p];
        let is_write =
            piece.step == Step::Merge || piece.step == Step::Transfer && piece.work != Work::Read;
        if is_write && reply.result.is_ok() {
            let copy = piece.copy.take();
            self.volumes[piece.volume]
                .flush
                .mark_dirty(piece.place, piece.offset, copy);
        }
    }
}
