//! How a request passes through a volume: it is checked, cut into pieces, and answered once.
//!
//! A request is checked completely before anything is done. Its pieces are in flight together; a durable write joins a flush round when all
//! its pieces are done. A request that failed for want of room may be parked (`space`) instead of being answered.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::status::{STATUS_ENTRY_LEN, STATUS_PAGE_MAX};
use archipelago_protocol::volume::{OpenMode, VolumeOp, VolumeRequest};
use xseg::ClientPort;

use super::Volume;
use crate::cutter::Cut;
use crate::limits::{QUANTUM, SEGMENTS_MAX};
use crate::pieces::NewPiece;
use crate::request::{Phase, Request};
use crate::session::Session;
use crate::tables::Tables;

/// Whether a status page may have `len` bytes.
fn is_page(len: u64) -> bool {
    let (entry, max) = (u64::from(STATUS_ENTRY_LEN), u64::from(STATUS_PAGE_MAX));
    len.is_multiple_of(entry) && (entry..=max).contains(&len)
}

impl Volume {
    /// Handles a request of the driver, with cookie `cookie`.
    pub(crate) fn submit<M: ClientPort, B: ClientPort>(
        &mut self,
        t: &mut Tables<M, B>,
        cookie: u64,
        asked: &VolumeRequest<'_>,
    ) -> Result<(), ErrorCode> {
        if self.driver.has_closed() || self.session.is_dead() {
            return Err(ErrorCode::NotFound);
        }
        if !self.session.is_open() || !self.driver.may_submit(t.requests.vacant()) {
            return Err(ErrorCode::Unavailable);
        }
        let mut checked = self.check(asked);
        if checked.is_ok() {
            let ports = &t.ports;
            let is_ready = |id| ports.region_ready(id);
            checked = t.memory.check(asked.segments, is_ready);
            if checked == Err(ErrorCode::Unavailable) {
                return checked;
            }
        }
        let request = Request::new(
            self.slot,
            cookie,
            t.submitted,
            asked.op,
            asked.offset,
            asked.len,
        );
        let r = t.requests.insert(request).ok_or(ErrorCode::Unavailable)?;
        t.submitted += 1;
        self.driver.submitted();
        if checked.is_err() {
            self.answer(t, r, checked);
            return Ok(());
        }
        t.memory.set_segments(r, asked.segments);
        self.start_request(t, r);
        t.ready.add(self.slot);
        Ok(())
    }

    /// Whether the request is valid for the volume as it is.
    fn check(&self, asked: &VolumeRequest<'_>) -> Result<(), ErrorCode> {
        if let Session::Broken(code) = self.session {
            return Err(code);
        }
        if self.space.refuses_all() {
            return Err(ErrorCode::NoSpace);
        }
        let is_read = matches!(asked.op, VolumeOp::Read | VolumeOp::BlockStatus);
        let is_write = !is_read && asked.op != VolumeOp::Flush;
        if self.mode == OpenMode::ReadOnly && is_write {
            return Err(ErrorCode::ReadOnly);
        }
        if self.stale && !is_read {
            return Err(ErrorCode::Stale);
        }
        if asked.op == VolumeOp::Flush {
            return Ok(());
        }
        let end = asked
            .offset
            .checked_add(asked.len)
            .ok_or(ErrorCode::Invalid)?;
        let aligned =
            asked.offset.is_multiple_of(SECTOR_SIZE) && asked.len.is_multiple_of(SECTOR_SIZE);
        if !aligned || end > self.size || asked.segments.len() > SEGMENTS_MAX {
            return Err(ErrorCode::Invalid);
        }
        let lens = asked.segments.iter().map(|segment| u64::from(segment.len));
        let memory = lens.sum::<u64>();
        let fits = match asked.op {
            VolumeOp::Read | VolumeOp::Write { .. } => memory == asked.len,
            VolumeOp::BlockStatus => asked.len > 0 && is_page(memory),
            _ => true,
        };
        if !fits {
            return Err(ErrorCode::Invalid);
        }
        Ok(())
    }

    /// Cuts pieces off the oldest requests. Returns whether any was cut.
    pub(super) fn advance_cutting<M, B>(&mut self, t: &mut Tables<M, B>) -> bool {
        let mut moved = false;
        for _ in 0..QUANTUM {
            match self.cutter.next(&mut t.requests, self.object_size) {
                Cut::Nothing => break,
                Cut::Piece {
                    request,
                    work,
                    offset,
                    len,
                } => {
                    let new = NewPiece {
                        request,
                        work,
                        offset,
                        len,
                    };
                    if !self.pieces.add(t, new) {
                        break;
                    }
                    self.cutter.made(&mut t.requests, len);
                }
                Cut::Finished(r) => {
                    if t.requests[r].pieces == 0 {
                        self.data_done(t, r);
                    }
                }
            }
            moved = true;
        }
        moved
    }

    /// Adds request `r` to the queue where it belongs, from its beginning.
    pub(super) fn start_request<M, B>(&mut self, t: &mut Tables<M, B>, r: u32) {
        let request = &t.requests[r];
        if request.op == VolumeOp::Flush || request.phase == Phase::Flushing {
            self.flush.join(&mut t.requests, r);
        } else {
            self.cutter.push(&mut t.requests, r);
        }
    }

    /// All pieces of request `r` are done.
    pub(super) fn data_done<M, B>(&mut self, t: &mut Tables<M, B>, r: u32) {
        let request = &t.requests[r];
        if request.result.is_err() || !request.is_durable() {
            let result = request.result;
            return self.answer_or_park(t, r, result);
        }
        self.flush.join(&mut t.requests, r);
        t.ready.add(self.slot);
    }

    /// Answers request `r`, or parks it if it failed for want of room.
    pub(super) fn answer_or_park<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        r: u32,
        result: Result<(), ErrorCode>,
    ) {
        if !result.is_err_and(|code| self.park(t, r, code)) {
            self.answer(t, r, result);
        }
    }

    /// Answers request `r`.
    pub(super) fn answer<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        r: u32,
        result: Result<(), ErrorCode>,
    ) {
        t.counters.failed += u64::from(result.is_err());
        t.ready.kick();
        self.driver.answer(&mut t.requests, r, result);
        self.note_probe(t, r, result);
    }

    /// Requests that are not answered, oldest first. The list is the scratch list, which the caller must put back.
    pub(super) fn take_live<M, B>(&self, t: &mut Tables<M, B>) -> Vec<u32> {
        let mut live = std::mem::take(&mut t.scratch);
        live.clear();
        let is_live =
            |request: &Request| request.volume == self.slot && request.phase != Phase::Done;
        let found = t.requests.iter().filter(|(_, request)| is_live(request));
        live.extend(found.map(|(r, _)| r));
        live.sort_by_key(|r| t.requests[*r].sequence);
        live
    }
}
