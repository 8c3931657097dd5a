//! Requests of drivers: judged, cut into pieces, answered once.
//!
//! A request is judged whole before anything is done. It is cut at object boundaries (reads and writes), or into the
//! partial blocks at its ends and runs of whole blocks (discards and write zeroes). All its pieces are in flight
//! together; if slots run out, the cutting waits where it is.

use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::map::LOCATE_LEN_MAX;
use archipelago_protocol::volume::{OpenMode, Segment, VolumeHandle, VolumeOp, VolumeRequest};
use archipelago_protocol::{BLOCK_SIZE, ErrorCode};
use xseg::{ClientPort, RegionId};

use crate::model::{
    Phase, REQUESTS_PER_VOLUME, Request, SEGMENTS_MAX, State, Volume, Work, block_end, block_start,
    may_take,
};
use crate::peer::{QUANTUM, VolumePeer};
use crate::slab::NONE;

fn is_write(op: VolumeOp) -> bool {
    !matches!(op, VolumeOp::Read | VolumeOp::Flush)
}

/// Whether the request can be right at all on `volume` as it is.
fn judge(volume: &Volume, request: &VolumeRequest<'_>) -> Result<(), ErrorCode> {
    if let State::Broken(code) = volume.state {
        return Err(code);
    }
    if volume.full.refuses_all() {
        return Err(ErrorCode::NoSpace);
    }
    if volume.mode == OpenMode::ReadOnly && is_write(request.op) {
        return Err(ErrorCode::ReadOnly);
    }
    if volume.stale && request.op != VolumeOp::Read {
        return Err(ErrorCode::Stale);
    }
    if request.op == VolumeOp::Flush {
        return Ok(());
    }
    let end = request
        .offset
        .checked_add(request.len)
        .ok_or(ErrorCode::Invalid)?;
    let aligned =
        request.offset.is_multiple_of(SECTOR_SIZE) && request.len.is_multiple_of(SECTOR_SIZE);
    if !aligned || end > volume.size || request.segments.len() > SEGMENTS_MAX {
        return Err(ErrorCode::Invalid);
    }
    let sum: u64 = request
        .segments
        .iter()
        .map(|segment| u64::from(segment.len))
        .sum();
    if matches!(request.op, VolumeOp::Read | VolumeOp::Write { .. }) && sum != request.len {
        return Err(ErrorCode::Invalid);
    }
    Ok(())
}

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    pub(crate) fn find(&self, handle: VolumeHandle) -> Option<u32> {
        let v = handle.0 & 0xffff;
        self.volumes
            .get(v)
            .filter(|volume| volume.handle == handle.0)
            .map(|_| v)
    }

    /// Whether the segments lie in regions that are there and ready.
    fn judge_segments(&mut self, segments: &[Segment]) -> Result<(), ErrorCode> {
        for segment in segments {
            let known = self
                .regions
                .get_mut(&segment.region)
                .ok_or(ErrorCode::Invalid)?;
            let end = segment
                .offset
                .checked_add(u64::from(segment.len))
                .ok_or(ErrorCode::Invalid)?;
            if end > known.region.len() {
                return Err(ErrorCode::Invalid);
            }
            if !known.ready {
                known.ready = self.blocker.region_ready(RegionId(segment.region));
            }
            if !known.ready {
                return Err(ErrorCode::Unavailable);
            }
        }
        Ok(())
    }

    pub(crate) fn submit_request(
        &mut self,
        handle: VolumeHandle,
        cookie: u64,
        asked: &VolumeRequest<'_>,
    ) -> Result<(), ErrorCode> {
        let v = self.find(handle).ok_or(ErrorCode::NotFound)?;
        let volume = &self.volumes[v];
        if volume.closing || volume.state == State::Dead {
            return Err(ErrorCode::NotFound);
        }
        if !volume.opened
            || volume.slots >= REQUESTS_PER_VOLUME
            || !may_take(volume.slots as usize, self.requests.vacant())
        {
            return Err(ErrorCode::Unavailable);
        }
        let mut verdict = judge(volume, asked);
        if verdict.is_ok() {
            verdict = self.judge_segments(asked.segments);
            if verdict == Err(ErrorCode::Unavailable) {
                return Err(ErrorCode::Unavailable);
            }
        }
        let request = Request {
            volume: v,
            cookie,
            sequence: self.next_sequence,
            op: asked.op,
            offset: asked.offset,
            len: asked.len,
            cursor: asked.offset,
            pieces: 0,
            phase: Phase::Running,
            cutting: false,
            result: Ok(()),
            next: NONE,
        };
        let r = self
            .requests
            .insert(request)
            .ok_or(ErrorCode::Unavailable)?;
        self.next_sequence += 1;
        self.counters.requests += 1;
        let volume = &mut self.volumes[v];
        volume.slots += 1;
        volume.live += 1;
        if verdict.is_err() {
            self.finish(r, verdict);
            return Ok(());
        }
        let segments = &mut self.segments[r as usize];
        segments.clear();
        segments.extend_from_slice(asked.segments);
        self.queue_request(r);
        self.make_ready(v);
        Ok(())
    }

    /// Puts a request at the end of the queue that it belongs to, from the beginning.
    pub(crate) fn queue_request(&mut self, r: u32) {
        let request = &mut self.requests[r];
        let volume = &mut self.volumes[request.volume];
        if request.op == VolumeOp::Flush {
            request.phase = Phase::Flushing;
        }
        if request.phase == Phase::Flushing {
            return volume.flush.waiting.push(&mut self.requests, r);
        }
        request.cursor = request.offset;
        request.pieces = 0;
        request.result = Ok(());
        request.cutting = true;
        volume.cutting.push(&mut self.requests, r);
    }

    /// Cuts pieces off the requests of `v`, the oldest first. Whether anything moved.
    pub(crate) fn advance_cutting(&mut self, v: u32) -> bool {
        let mut moved = false;
        for _ in 0..QUANTUM {
            let Some(r) = self.volumes[v].cutting.front() else {
                break;
            };
            let request = &self.requests[r];
            if request.cursor < request.end() && request.result.is_ok() {
                let (work, len) = self.next_piece(r);
                let at = request.cursor;
                // The cursor moves first: a piece that is done at once must not end the request.
                self.requests[r].cursor += len;
                if !self.add_piece(r, work, at, len) {
                    self.requests[r].cursor = at;
                    break;
                }
            } else {
                self.volumes[v].cutting.pop(&mut self.requests);
                self.requests[r].cutting = false;
                if self.requests[r].pieces == 0 {
                    self.data_done(r);
                }
            }
            moved = true;
        }
        moved
    }

    /// Work and length of the piece that begins at the request's cursor.
    fn next_piece(&self, r: u32) -> (Work, u64) {
        let request = &self.requests[r];
        let (at, end) = (request.cursor, request.end());
        let object = self.volumes[request.volume].object_size.bytes();
        let in_object = (at / object + 1) * object;
        match request.op {
            VolumeOp::Read => (Work::Read, end.min(in_object) - at),
            VolumeOp::Write { .. } => (Work::Write, end.min(in_object) - at),
            VolumeOp::Discard | VolumeOp::WriteZeroes { .. } | VolumeOp::Flush => {
                let whole = block_start(end).min(at + LOCATE_LEN_MAX);
                if at.is_multiple_of(BLOCK_SIZE) && whole > at {
                    (Work::Clear, whole - at)
                } else {
                    (Work::Zeros, end.min(block_end(at + 1)) - at)
                }
            }
        }
    }

    /// All pieces of `r` are done.
    pub(crate) fn data_done(&mut self, r: u32) {
        let request = &mut self.requests[r];
        if request.result.is_err() || !request.is_durable() {
            let result = request.result;
            let parked = result.is_err_and(|code| self.park(r, code));
            if !parked {
                self.finish(r, result);
            }
            return;
        }
        request.phase = Phase::Flushing;
        let v = request.volume;
        self.volumes[v].flush.waiting.push(&mut self.requests, r);
        self.make_ready(v);
    }

    /// Answers `r`. Its slot is free when its driver has collected the answer.
    pub(crate) fn finish(&mut self, r: u32, result: Result<(), ErrorCode>) {
        let request = &mut self.requests[r];
        request.phase = Phase::Done;
        request.result = result;
        self.counters.failed += u64::from(result.is_err());
        self.kicked = true;
        let v = request.volume;
        let volume = &mut self.volumes[v];
        volume.live -= 1;
        if volume.listening {
            volume.done.push(&mut self.requests, r);
        } else {
            volume.slots -= 1;
            self.requests.remove(r);
        }
        self.note_probe(v, r, result);
    }

    /// Requests of `v` that are not done, oldest first, in the scratch list.
    pub(crate) fn collect_live(&mut self, v: u32) -> Vec<u32> {
        let mut live = std::mem::take(&mut self.scratch);
        live.clear();
        let is_live = |request: &Request| request.volume == v && request.phase != Phase::Done;
        live.extend(
            self.requests
                .iter()
                .filter(|(_, request)| is_live(request))
                .map(|(r, _)| r),
        );
        live.sort_by_key(|r| self.requests[*r].sequence);
        live
    }
}
