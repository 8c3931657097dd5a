//! The pieces of one volume: where each is stored, its transfer, its report.
//!
//! | work | steps |
//! |---|---|
//! | read | Probe, then zeros, or Transfer |
//! | write, block owned | Claim, Transfer |
//! | write, whole blocks, not owned | Claim, Transfer, Report |
//! | write, part of a block, not owned | Claim, Acquire, Claim again, Old, ReadOld, Merge, Report |
//! | zeros in a part of a block | Probe: done if it is zero; else as a write |
//! | clear | Clear |
//! | status | Status, until the page ends |
//!
//! Resolve precedes a transfer whose lineage is not known yet. [`Exclusion`] decides which pieces exclude each other, and [`Submitter`]
//! sends the requests.

use archipelago_protocol::map::{MapReply, Placement};
use archipelago_protocol::object::ObjectReply;
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Lineage, ObjectSize};
use xseg::ClientPort;

use crate::blocks::block_start;
use crate::copies::Copies;
use crate::epoch_writes::EpochWrites;
use crate::exclusion::{Exclusion, Hold};
use crate::flush::Flush;
use crate::limits::{PIECES_PER_VOLUME, may_acquire};
use crate::lineages::{LineageIndex, Lineages};
use crate::piece::{OldBlock, Piece, Place, Resolved, Step, Work};
use crate::ports::InFlight;
use crate::request::Phase;
use crate::slab::{Queue, Slab};
use crate::status::StatusCursor;
use crate::submitter::{Submitted, Submitter, run_bytes};
use crate::tables::Tables;

/// The state of the run of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Run {
    /// The piece has something to send, or waits.
    Continues,
    /// [`Pieces::run_done`] follows.
    Done,
}

/// The range of a new piece.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewPiece {
    pub(crate) request: u32,
    pub(crate) work: Work,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The pieces of one volume.
#[derive(Debug)]
pub(crate) struct Pieces {
    /// Slot of the volume.
    volume: u32,
    count: u32,
    submitter: Submitter,
    exclusion: Exclusion,
    /// Writes that have a place: a place belongs to the epoch in which the mapper gave it.
    writes: EpochWrites,
    lineages: Lineages,
}

impl Pieces {
    /// The pieces of the volume in slot `volume`.
    pub(crate) fn new(volume: u32) -> Self {
        Pieces {
            volume,
            count: 0,
            submitter: Submitter::default(),
            exclusion: Exclusion::default(),
            writes: EpochWrites::default(),
            lineages: Lineages::default(),
        }
    }

    /// Writes in progress, by epoch.
    pub(crate) fn writes(&self) -> &EpochWrites {
        &self.writes
    }

    /// Writes in progress; a snapshot begins the next epoch with it.
    pub(crate) fn writes_mut(&mut self) -> &mut EpochWrites {
        &mut self.writes
    }

    /// Whether a piece waits to be sent.
    pub(crate) fn has_work(&self) -> bool {
        !self.submitter.is_empty()
    }

    /// A session has begun: known indices of lineages have no meaning any more.
    pub(crate) fn forget_lineages(&mut self) {
        self.lineages.clear();
    }

    /// Makes a piece and starts it; `false`: there was no room for it.
    pub(crate) fn add<M, B>(&mut self, t: &mut Tables<M, B>, new: NewPiece) -> bool {
        let NewPiece {
            request,
            work,
            offset,
            len,
        } = new;
        let may = may_acquire(self.count as usize, t.pieces.vacant());
        if self.count >= PIECES_PER_VOLUME || !may {
            return false;
        }
        let piece = Piece::new(self.volume, request, work, offset, len);
        let Some(p) = t.pieces.insert(piece) else {
            return false;
        };
        self.count += 1;
        t.requests[request].pieces += 1;
        self.start(&mut t.pieces, p);
        true
    }

    /// Sends the next request to the mapper, on `session`. Returns whether one was sent.
    pub(crate) fn send_to_map<M: ClientPort, B: ClientPort>(
        &mut self,
        t: &mut Tables<M, B>,
        in_flight: &mut InFlight,
        session: u32,
    ) -> bool {
        self.submitter.send_to_map(t, in_flight, session)
    }

    /// Sends the next request to the blocker. `copies`: `None` if completed writes are durable.
    pub(crate) fn send_to_blocker<M: ClientPort, B: ClientPort>(
        &mut self,
        t: &mut Tables<M, B>,
        in_flight: &mut InFlight,
        object_size: ObjectSize,
        copies: Option<&mut Copies>,
    ) -> Submitted {
        self.submitter
            .send_to_blocker(t, in_flight, object_size, copies, &self.exclusion)
    }

    /// Handles the mapper's answer to piece `p` of the volume `own`.
    ///
    /// # Errors
    /// The error with which the piece fails.
    pub(crate) fn map_reply<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        own: Lineage,
        p: u32,
        reply: &MapReply,
    ) -> Result<Run, ErrorCode> {
        match t.pieces[p].step {
            Step::Probe | Step::Claim | Step::Old => self.located(t, own, p, reply),
            Step::Resolve {
                index,
                epoch,
                after,
            } => {
                reply.result?;
                let lineage = Lineage::from_words(reply.values[0], reply.values[1]);
                self.lineages.learn(index, lineage);
                let place = Place { lineage, epoch };
                self.transfer_at(&mut t.pieces, p, place, after);
                Ok(Run::Continues)
            }
            Step::Status(cursor) => self.status(t, p, cursor, reply),
            // The blocks are reported.
            _ => reply.result.map(|_| Run::Done),
        }
    }

    /// Handles the blocker's answer to piece `p`.
    ///
    /// # Errors
    /// The error with which the piece fails.
    pub(crate) fn object_reply<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        p: u32,
        reply: &ObjectReply,
    ) -> Result<Run, ErrorCode> {
        let piece = &t.pieces[p];
        let expected = if piece.step == Step::Transfer {
            piece.len
        } else {
            BLOCK_SIZE
        };
        match reply.result {
            // The map refers to the object: if the object does not exist, data is damaged.
            Err(ErrorCode::NotFound) if !piece.is_writing() => return Err(ErrorCode::Damaged),
            Err(code) => return Err(code),
            Ok(count) if u64::from(count) != expected => return Err(ErrorCode::Io),
            Ok(_) => {}
        }
        if let Step::ReadOld(_) = piece.step {
            let merge = Step::Merge(OldBlock::InCell);
            self.submitter.ask_blocker(&mut t.pieces, p, merge);
        } else if piece.first {
            self.submitter.ask_map(&mut t.pieces, p, Step::Report);
        } else {
            return Ok(Run::Done);
        }
        Ok(Run::Continues)
    }

    /// Marks the object of a completed write as dirty, before the completion is reported.
    pub(crate) fn note_written<M, B>(
        &self,
        t: &mut Tables<M, B>,
        flush: &mut Flush,
        p: u32,
        reply: &ObjectReply,
    ) {
        let piece = &mut t.pieces[p];
        if piece.is_writing() && reply.result.is_ok() {
            flush.mark_dirty(piece.place, piece.offset, piece.copy.take());
        }
    }

    /// The run of piece `p` is done: continues with the rest, or ends the piece. Returns the request, if that was its last piece.
    pub(crate) fn run_done<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        copies: &mut Copies,
        p: u32,
    ) -> Option<u32> {
        let piece = &t.pieces[p];
        if piece.rest == 0 || t.requests[piece.request].result.is_err() {
            return self.end(t, copies, p);
        }
        self.release(t, copies, p);
        let piece = &mut t.pieces[p];
        let Piece {
            request,
            work,
            offset,
            len,
            rest,
            ..
        } = *piece;
        *piece = Piece::new(self.volume, request, work, offset + len, rest);
        self.start(&mut t.pieces, p);
        None
    }

    /// Ends piece `p`. Returns the request, if that was its last piece.
    pub(crate) fn end<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        copies: &mut Copies,
        p: u32,
    ) -> Option<u32> {
        self.release(t, copies, p);
        let Piece { request: r, .. } = t.pieces.remove(p);
        self.count -= 1;
        let request = &mut t.requests[r];
        request.pieces -= 1;
        (request.pieces == 0 && request.phase == Phase::Running).then_some(r)
    }

    /// Removes every piece and what waits for it. Their requests start again or fail.
    pub(crate) fn forget_all<M, B>(&mut self, t: &mut Tables<M, B>) {
        let mut mine = std::mem::take(&mut t.scratch);
        mine.clear();
        let of_volume = t.pieces.iter().filter(|(_, it)| it.volume == self.volume);
        mine.extend(of_volume.map(|(p, _)| p));
        for p in &mine {
            if let Some(cell) = t.pieces.remove(*p).cell {
                t.cells.release(cell);
            }
        }
        t.scratch = mine;
        self.count = 0;
        self.submitter.clear();
        self.exclusion.clear();
        self.writes.clear();
    }

    /// Starts the run that piece `p` describes.
    fn start(&mut self, pieces: &mut Slab<Piece>, p: u32) {
        if !pieces[p].is_for_write() || self.exclusion.acquire(pieces, p) {
            self.send_first(pieces, p);
        }
    }

    /// Piece `p` has acquired its range or its block: sends its first request.
    fn send_first(&mut self, pieces: &mut Slab<Piece>, p: u32) {
        let piece = &pieces[p];
        let step = match piece.work {
            _ if piece.hold == Hold::Exclusive => Step::Claim,
            Work::Read | Work::Zeros => Step::Probe,
            Work::Write => Step::Claim,
            Work::Clear => Step::Clear,
            Work::Status => Step::Status(StatusCursor::default()),
        };
        self.submitter.ask_map(pieces, p, step);
    }

    fn send_granted(&mut self, pieces: &mut Slab<Piece>, mut granted: Queue) {
        while let Some(p) = granted.pop(pieces) {
            self.send_first(pieces, p);
        }
    }

    /// Releases what the run held: its range, its cell, its count in the epoch.
    fn release<M, B>(&mut self, t: &mut Tables<M, B>, copies: &mut Copies, p: u32) {
        let piece = &mut t.pieces[p];
        if let Some(phase) = piece.located.take() {
            self.writes.end(phase);
        }
        if let Some(cell) = piece.cell.take() {
            t.cells.release(cell);
        }
        if let Some(slots) = piece.copy.take() {
            copies.release(slots);
        }
        let granted = self.exclusion.release(&mut t.pieces, p);
        self.send_granted(&mut t.pieces, granted);
    }

    /// The mapper has answered which of the first blocks of piece `p` hold data.
    fn status<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        p: u32,
        mut cursor: StatusCursor,
        reply: &MapReply,
    ) -> Result<Run, ErrorCode> {
        let runs = reply.status_runs()?;
        let piece = &mut t.pieces[p];
        let range = piece.offset..piece.offset + piece.len;
        let covered = cursor.add(&t.memory, piece.request, &runs, range)?;
        piece.offset += covered;
        piece.len -= covered;
        if piece.len > 0 && cursor.has_room() {
            let step = Step::Status(cursor);
            self.submitter.ask_map(&mut t.pieces, p, step);
            return Ok(Run::Continues);
        }
        cursor.finish(&t.memory, piece.request)?;
        Ok(Run::Done)
    }

    /// The mapper has answered where the first blocks of piece `p` are stored.
    fn located<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        own: Lineage,
        p: u32,
        reply: &MapReply,
    ) -> Result<Run, ErrorCode> {
        let run = u64::from(reply.result?);
        let placement = reply.placement().ok_or(ErrorCode::Internal)?;
        let piece = &t.pieces[p];
        let blocks = piece.blocks();
        let asked = blocks.end - blocks.start;
        if run == 0 || run > asked || !run.is_multiple_of(BLOCK_SIZE) {
            return Err(ErrorCode::Internal);
        }
        let covered = (blocks.start + run - piece.offset).min(piece.len);
        debug_assert!(
            piece.hold != Hold::Exclusive || covered <= BLOCK_SIZE,
            "a merge is cut to its block before it waits"
        );
        let (epoch, lineage) = (Epoch(reply.values[0]), reply.values[1]);
        match (piece.step, piece.work, placement) {
            (Step::Old, _, Placement::Zero) => {
                let merge = Step::Merge(OldBlock::Zeros);
                self.submitter.ask_blocker(&mut t.pieces, p, merge);
            }
            (Step::Old, _, Placement::Stored) => {
                self.resolve(&mut t.pieces, p, epoch, lineage, Resolved::ReadOld)?;
            }
            (Step::Probe, Work::Read, Placement::Zero) => {
                self.trim(t, p, covered);
                t.memory.fill_zeros(run_bytes(&t.pieces[p], &t.requests))?;
                return Ok(Run::Done);
            }
            (Step::Probe, Work::Read, Placement::Stored) => {
                self.trim(t, p, covered);
                self.resolve(&mut t.pieces, p, epoch, lineage, Resolved::Transfer)?;
            }
            // The edge of a discard, in a block that is zero: the run covers all of the piece.
            (Step::Probe, Work::Zeros, Placement::Zero) => return Ok(Run::Done),
            (Step::Probe, Work::Zeros, Placement::Stored) => {
                self.submitter.ask_map(&mut t.pieces, p, Step::Claim);
            }
            (Step::Claim, _, Placement::Stored) => {
                self.trim(t, p, covered);
                t.pieces[p].located = Some(self.writes.begin());
                self.resolve(&mut t.pieces, p, epoch, lineage, Resolved::Transfer)?;
            }
            (Step::Claim, _, Placement::First) => {
                let lineage = own;
                self.claimed_first(t, p, covered, Place { lineage, epoch });
            }
            _ => return Err(ErrorCode::Internal),
        }
        Ok(Run::Continues)
    }

    /// The blocks of the run are not owned: writes them whole to `place`, or merges the first one.
    fn claimed_first<M, B>(&mut self, t: &mut Tables<M, B>, p: u32, covered: u64, place: Place) {
        let into = t.pieces[p].offset % BLOCK_SIZE;
        let whole = if into == 0 { block_start(covered) } else { 0 };
        let run = if whole > 0 {
            whole
        } else {
            covered.min(BLOCK_SIZE - into)
        };
        self.trim(t, p, run);
        let piece = &mut t.pieces[p];
        let exclusive = piece.hold == Hold::Exclusive;
        if whole == 0 && !exclusive {
            // The piece asks for the place again once it is the only writer of its block.
            piece.step = Step::Acquire;
            let granted = self.exclusion.acquire_block(&mut t.pieces, p);
            return self.send_granted(&mut t.pieces, granted);
        }
        (piece.place, piece.first) = (place, true);
        piece.located = Some(self.writes.begin());
        if whole > 0 {
            self.submitter.ask_blocker(&mut t.pieces, p, Step::Transfer);
        } else {
            t.counters.merges += 1;
            self.submitter.ask_map(&mut t.pieces, p, Step::Old);
        }
    }

    /// Sets the length of the run; the rest becomes another piece if there is room for one.
    fn trim<M, B>(&mut self, t: &mut Tables<M, B>, p: u32, covered: u64) {
        let piece = &mut t.pieces[p];
        if covered >= piece.len {
            return;
        }
        let len = piece.len - covered;
        piece.len = covered;
        let behind = NewPiece {
            request: piece.request,
            work: piece.work,
            offset: piece.offset + covered,
            len,
        };
        if piece.rest > 0 || !self.add(t, behind) {
            t.pieces[p].rest += len;
        }
    }

    /// Continues at (lineage of the mapper's `index`, `epoch`); asks the mapper for the lineage if it is not known yet.
    fn resolve(
        &mut self,
        pieces: &mut Slab<Piece>,
        p: u32,
        epoch: Epoch,
        index: u64,
        after: Resolved,
    ) -> Result<(), ErrorCode> {
        let index = LineageIndex::new(index)?;
        if let Some(lineage) = self.lineages.get(index) {
            self.transfer_at(pieces, p, Place { lineage, epoch }, after);
        } else {
            let step = Step::Resolve {
                index,
                epoch,
                after,
            };
            self.submitter.ask_map(pieces, p, step);
        }
        Ok(())
    }

    fn transfer_at(&mut self, pieces: &mut Slab<Piece>, p: u32, place: Place, what: Resolved) {
        let step = match what {
            Resolved::Transfer => {
                pieces[p].place = place;
                Step::Transfer
            }
            Resolved::ReadOld => Step::ReadOld(place),
        };
        self.submitter.ask_blocker(pieces, p, step);
    }
}
