//! The life of a piece: where it lives, the transfer, the report.
//!
//! | work | steps |
//! |---|---|
//! | read | Probe, then fill, or Transfer |
//! | write, block owned | Claim, Transfer |
//! | write, whole blocks, not owned | Claim, Transfer, Report |
//! | write, part of a block, not owned | Claim, Exclusive, Claim again, Old, ReadOld, Merge, Report |
//! | zeros in a part of a block | Probe: done if it is zero; else as a write |
//! | clear | Clear |
//!
//! What excludes what: `exclusion`. Where the bytes are: `transfer`.

use archipelago_protocol::map::{
    FLAG_FLUSH_SOON, FLAG_WRITE, MapOp, MapReply, MapRequest, Placement,
};
use archipelago_protocol::object::ObjectReply;
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Lineage};
use xseg::ClientPort;

use crate::model::{
    PIECES_PER_VOLUME, Phase, Piece, Place, Step, Work, block_end, block_start, may_take,
};
use crate::peer::{Kind, QUANTUM, VolumePeer};

/// Lineages that one volume's blocks can lie in: clones as deep as that.
const LINEAGES_MAX: usize = 1 << 20;

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// Makes a piece of request `r` and starts it; `false`: no slot.
    pub(crate) fn add_piece(&mut self, r: u32, work: Work, offset: u64, len: u64) -> bool {
        let v = self.requests[r].volume;
        let held = self.volumes[v].pieces;
        if held >= PIECES_PER_VOLUME || !may_take(held as usize, self.pieces.vacant()) {
            return false;
        }
        let Some(p) = self.pieces.insert(Piece::new(v, r, work, offset, len)) else {
            return false;
        };
        self.volumes[v].pieces += 1;
        self.requests[r].pieces += 1;
        self.start(p);
        true
    }

    pub(crate) fn ask_map(&mut self, p: u32, step: Step) {
        self.pieces[p].step = step;
        let v = self.pieces[p].volume;
        self.volumes[v].to_map.push(&mut self.pieces, p);
    }

    pub(crate) fn ask_blocker(&mut self, p: u32, step: Step) {
        let piece = &mut self.pieces[p];
        piece.step = step;
        let queue = &mut self.volumes[piece.volume].to_object;
        if piece.cell.is_some() {
            // Not behind somebody who waits for a cell: this is one who gives it back.
            queue.push_front(&mut self.pieces, p);
        } else {
            queue.push(&mut self.pieces, p);
        }
    }

    /// Sends what the pieces of `v` wait to send, a few to each port. Whether anything moved.
    pub(crate) fn advance_pieces(&mut self, v: u32) -> bool {
        let mut moved = false;
        for _ in 0..QUANTUM {
            let Some(p) = self.volumes[v].to_object.front() else {
                break;
            };
            match self.send_piece_to_blocker(v, p) {
                Ok(false) => break,
                Ok(true) => _ = self.volumes[v].to_object.pop(&mut self.pieces),
                Err(code) => {
                    self.volumes[v].to_object.pop(&mut self.pieces);
                    self.fail_piece(p, code);
                }
            }
            moved = true;
        }
        for _ in 0..QUANTUM {
            let Some(p) = self.volumes[v].to_map.front() else {
                break;
            };
            let request = self.map_request(p);
            if !self.send_map(v, Kind::Piece, p, request) {
                break;
            }
            self.volumes[v].to_map.pop(&mut self.pieces);
            moved = true;
        }
        moved
    }

    fn map_request(&self, p: u32) -> MapRequest {
        let piece = &self.pieces[p];
        let session = self.volumes[piece.volume].session;
        let offset = block_start(piece.offset);
        let len = block_end(piece.offset + piece.len) - offset;
        let at = |op| MapRequest {
            offset,
            len,
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
            Step::Resolve => {
                let operand = [u64::from(piece.unresolved), 0];
                MapRequest {
                    operand,
                    ..MapRequest::new(MapOp::Lineage, session)
                }
            }
            _ => at(MapOp::Locate),
        }
    }

    pub(crate) fn piece_map_reply(&mut self, p: u32, reply: MapReply) {
        let result = match self.pieces[p].step {
            Step::Probe | Step::Claim | Step::Old => self.located(p, reply),
            Step::Resolve => self.resolved(p, reply),
            _ => self.reported(p, reply),
        };
        if let Err(code) = result {
            self.fail_piece(p, code);
        }
    }

    /// The map says where: go there.
    fn located(&mut self, p: u32, reply: MapReply) -> Result<(), ErrorCode> {
        let run = u64::from(reply.result?);
        let placement = reply.placement().ok_or(ErrorCode::Internal)?;
        let piece = &self.pieces[p];
        let start = block_start(piece.offset);
        let asked = block_end(piece.offset + piece.len) - start;
        if run == 0 || run > asked || !run.is_multiple_of(BLOCK_SIZE) {
            return Err(ErrorCode::Internal);
        }
        let covered = (start + run - piece.offset).min(piece.len);
        debug_assert!(
            !piece.exclusive || covered <= BLOCK_SIZE,
            "a merge is cut to its block before it waits"
        );
        let epoch = Epoch(reply.values[0]);
        match (piece.step, piece.work, placement) {
            (Step::Old, _, Placement::Zero) => {
                self.pieces[p].old = None;
                self.ask_blocker(p, Step::Merge);
            }
            (Step::Old, _, Placement::Stored) => {
                self.resolve(p, epoch, reply.values[1], Step::ReadOld)?;
            }
            (Step::Probe, Work::Read, Placement::Zero) => {
                self.trim(p, covered);
                self.fill_zeros(p)?;
                self.piece_done(p);
            }
            (Step::Probe, Work::Read, Placement::Stored) => {
                self.trim(p, covered);
                self.resolve(p, epoch, reply.values[1], Step::Transfer)?;
            }
            // A zero edge inside a block: the run covers it whole.
            (Step::Probe, Work::Zeros, Placement::Zero) => self.piece_done(p),
            (Step::Probe, Work::Zeros, Placement::Stored) => self.ask_map(p, Step::Claim),
            (Step::Claim, _, Placement::Stored) => {
                self.trim(p, covered);
                self.count_located(p);
                self.resolve(p, epoch, reply.values[1], Step::Transfer)?;
            }
            (Step::Claim, _, Placement::First) => self.claimed_first(p, covered, epoch),
            _ => return Err(ErrorCode::Internal),
        }
        Ok(())
    }

    /// The blocks of the run are not owned: write them whole, or merge the first one.
    fn claimed_first(&mut self, p: u32, covered: u64, epoch: Epoch) {
        let piece = &self.pieces[p];
        let v = piece.volume;
        let into = piece.offset % BLOCK_SIZE;
        let whole = if into == 0 { block_start(covered) } else { 0 };
        let run = if whole > 0 {
            whole
        } else {
            covered.min(BLOCK_SIZE - into)
        };
        self.trim(p, run);
        let lineage = self.volumes[v].lineage;
        let piece = &mut self.pieces[p];
        piece.place = Place { lineage, epoch };
        piece.first = true;
        if whole > 0 {
            self.count_located(p);
            self.ask_blocker(p, Step::Transfer);
        } else if piece.exclusive {
            self.count_located(p);
            self.counters.merges += 1;
            self.ask_map(p, Step::Old);
        } else {
            self.ask_exclusive(p);
        }
    }

    /// Writes that have a place belong to the epoch in which they got it.
    fn count_located(&mut self, p: u32) {
        let volume = &mut self.volumes[self.pieces[p].volume];
        volume.located[volume.phase] += 1;
        self.pieces[p].located = Some(volume.phase);
    }

    /// Gives the run its length; what is behind it becomes a piece of its own if there is room.
    fn trim(&mut self, p: u32, covered: u64) {
        let Piece {
            request,
            work,
            offset,
            len,
            ..
        } = self.pieces[p];
        if covered >= len {
            return;
        }
        self.pieces[p].len = covered;
        let rest = len - covered;
        if self.pieces[p].rest > 0 || !self.add_piece(request, work, offset + covered, rest) {
            self.pieces[p].rest += rest;
        }
    }

    /// Goes on with `after` at (lineage index, epoch); asks the mapper for the lineage if it is not known yet.
    fn resolve(&mut self, p: u32, epoch: Epoch, index: u64, after: Step) -> Result<(), ErrorCode> {
        let slot = usize::try_from(index).map_err(|_too_large| ErrorCode::Internal)?;
        if slot >= LINEAGES_MAX {
            return Err(ErrorCode::Internal);
        }
        let piece = &mut self.pieces[p];
        let known = self.volumes[piece.volume]
            .lineages
            .get(slot)
            .copied()
            .flatten();
        let place = Place {
            lineage: known.unwrap_or_default(),
            epoch,
        };
        if after == Step::ReadOld {
            piece.old = Some(place);
        } else {
            piece.place = place;
        }
        if known.is_some() {
            self.ask_blocker(p, after);
        } else {
            piece.after = after;
            piece.unresolved = u32::try_from(slot).map_err(|_too_large| ErrorCode::Internal)?;
            self.ask_map(p, Step::Resolve);
        }
        Ok(())
    }

    fn resolved(&mut self, p: u32, reply: MapReply) -> Result<(), ErrorCode> {
        reply.result?;
        let lineage = Lineage::from_words(reply.values[0], reply.values[1]);
        let piece = &mut self.pieces[p];
        let lineages = &mut self.volumes[piece.volume].lineages;
        let slot = piece.unresolved as usize;
        if lineages.len() <= slot {
            lineages.resize(slot + 1, None);
        }
        lineages[slot] = Some(lineage);
        match (&mut piece.old, piece.after) {
            (Some(old), Step::ReadOld) => old.lineage = lineage,
            _ => piece.place.lineage = lineage,
        }
        let after = piece.after;
        self.ask_blocker(p, after);
        Ok(())
    }

    /// `Written` or `Zero` was answered.
    fn reported(&mut self, p: u32, reply: MapReply) -> Result<(), ErrorCode> {
        let flush = &mut self.volumes[self.pieces[p].volume].flush;
        // Also if it failed: it may have had an effect.
        flush.news = true;
        flush.soon |= reply.flags & FLAG_FLUSH_SOON != 0;
        reply.result?;
        let piece = &self.pieces[p];
        if piece.first {
            self.note_room(piece.volume);
        }
        self.piece_done(p);
        Ok(())
    }

    pub(crate) fn piece_object_reply(&mut self, p: u32, reply: ObjectReply) {
        let piece = &self.pieces[p];
        let is_read =
            piece.step == Step::ReadOld || piece.step == Step::Transfer && piece.work == Work::Read;
        let expected = if piece.step == Step::Transfer {
            piece.len
        } else {
            BLOCK_SIZE
        };
        match reply.result {
            // The map says that it is there.
            Err(ErrorCode::NotFound) if is_read => self.fail_piece(p, ErrorCode::Damaged),
            Err(code) => self.fail_piece(p, code),
            Ok(count) if u64::from(count) != expected => self.fail_piece(p, ErrorCode::Io),
            Ok(_) if piece.step == Step::ReadOld => self.ask_blocker(p, Step::Merge),
            Ok(_) if piece.first => self.ask_map(p, Step::Report),
            Ok(_) => self.piece_done(p),
        }
    }

    /// The run is done: on to the rest, or the piece ends.
    fn piece_done(&mut self, p: u32) {
        let rest = self.pieces[p].rest;
        if rest == 0 || self.requests[self.pieces[p].request].result.is_err() {
            return self.end_piece(p);
        }
        self.let_go(p);
        let piece = &mut self.pieces[p];
        let Piece {
            volume,
            request,
            work,
            offset,
            len,
            ..
        } = *piece;
        *piece = Piece::new(volume, request, work, offset + len, rest);
        self.start(p);
    }

    /// The request fails with the first error of its pieces; the others of it finish on their own.
    pub(crate) fn fail_piece(&mut self, p: u32, code: ErrorCode) {
        let piece = &self.pieces[p];
        let volume = &mut self.volumes[piece.volume];
        volume.stale |= code == ErrorCode::Stale && piece.work != Work::Read;
        if code == ErrorCode::SyncFailed {
            let v = piece.volume;
            return self.fail_volume(v);
        }
        let request = &mut self.requests[piece.request];
        request.result = request.result.and(Err(code));
        self.end_piece(p);
    }

    fn end_piece(&mut self, p: u32) {
        self.let_go(p);
        let piece = self.pieces.remove(p);
        self.volumes[piece.volume].pieces -= 1;
        let request = &mut self.requests[piece.request];
        request.pieces -= 1;
        debug_assert_eq!(request.phase, Phase::Running);
        if request.pieces == 0 && !request.cutting {
            self.data_done(piece.request);
        }
    }
}
