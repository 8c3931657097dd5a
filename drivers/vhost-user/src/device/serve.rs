//! The data path: chains to the volume, completions to the guest.

use std::error::Error;
use std::iter::once;

use archipelago_endpoint::{Service, Wakeups};
use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::{VolumeHandle, VolumeOp, VolumeRequest, Volumes};
use tracing::warn;

use super::backlog::Deferred;
use super::negotiated::FrontEnd;
use super::reader::WrittenPieces;
use super::{Completions, Device};
use crate::config::feature;
use crate::failure::{Failed, Failure, INTERVAL};
use crate::queue::{Broken, Interrupt, Outcome, PieceResult, Taken};
use crate::request::{Kind, Limits, Range, Request, Status};

/// Chains taken from one queue in one turn. If a turn took all that one kick announces, guest, endpoint and device would work alternately:
/// chunks of eight gave a fifth more IOPS at queue depth 32 in the prototype.
const CHAINS_PER_TURN: usize = 8;

/// Descriptors after which a queue's turn is over. A chain has up to 512, of some 10 ns each: if all requests of a guest have that length,
/// its neighbours wait for one of them, not for eight.
const DESCRIPTORS_PER_TURN: usize = 256;

/// The result of taking the next chain of a queue.
enum Step {
    Taken,
    Empty,
    /// The volume has no free slot; the chain stays in the ring.
    Refused,
}

/// A submitted request.
struct Submitted {
    /// Bytes for the guest.
    len: u64,
    /// Pieces whose answers are awaited.
    pieces: u32,
}

fn cookie(queue: usize, head: u16) -> u64 {
    (queue as u64) << 16 | u64::from(head)
}

impl<V: Volumes, W: Wakeups> Device<V, W> {
    /// Takes a bounded number of chains from the rings.
    pub(super) fn serve(&mut self) -> bool {
        let service = self.volume.service();
        if service == Service::NotYet || self.front_end == FrontEnd::Dropped {
            return false;
        }
        if !self.memory.is_ready() || self.throttle.is_paused(|| self.wakeups.now()) {
            return false;
        }
        // Completions of other volumes free slots as well as ours, so each turn tries again.
        self.backlog.retry();
        if !self.submit_backlog(service) {
            return false;
        }
        if self.memory.table().is_damaged() {
            self.break_rings(Broken::Truncated);
        }
        let mut any = false;
        let count = self.rings.len();
        let first = self.rings.next_first();
        for turn in 0..count {
            let index = (first + turn) % count;
            let mut descriptors = 0;
            for _ in 0..CHAINS_PER_TURN {
                let over = descriptors >= DESCRIPTORS_PER_TURN || self.throttle.has_paused();
                if over || !self.rings.at(index).takes() {
                    break;
                }
                match self.step(index, service) {
                    Ok(Step::Taken) => {
                        any = true;
                        descriptors += self.reader.descriptors();
                    }
                    Ok(Step::Empty) => break,
                    Ok(Step::Refused) => {
                        self.shared.metrics.volume_refusals.add(1);
                        self.backlog.refuse();
                        return any;
                    }
                    Err(broken) => {
                        self.break_ring(index, broken);
                        break;
                    }
                }
            }
        }
        any
    }

    fn break_ring(&mut self, index: usize, broken: Broken) {
        let cause = broken.source().map(tracing::field::display);
        warn!(device = %self.name, queue = index, error = %broken, cause, "the guest has broken its ring; it is served no more until it is set up again");
        self.shared.metrics.broken_rings.add(1);
        self.rings.at(index).break_off();
    }

    fn break_rings(&mut self, broken: Broken) {
        for index in 0..self.rings.len() {
            if self.rings.at(index).takes() {
                self.break_ring(index, broken);
            }
        }
    }

    fn step(&mut self, index: usize, service: Service) -> Result<Step, Broken> {
        let queue = self.rings.at(index);
        let Some(next) = queue.peek()? else {
            return Ok(Step::Empty);
        };
        let Some(table) = queue.descriptors() else {
            return Ok(Step::Empty);
        };
        let (head, _) = next;
        let limits = Limits {
            size: self.shared.size(),
            read_only: self.config.volume.read_only,
        };
        let (table, indirect) = ((table, queue.size()), self.negotiated.indirect());
        let read = self
            .reader
            .read(self.memory.table(), table, head, indirect, limits);
        let malformed = match &read {
            Ok(chain) => matches!(chain.request, Err((_, Failure::Chain(_)))),
            Err(_) => true,
        };
        if malformed {
            self.shared.metrics.malformed.add(1);
        }
        let chain = read?;
        let (kind, submitted, failure) = match (chain.request, service) {
            (Err((kind, failure)), _) => (kind, Submitted { len: 0, pieces: 0 }, Some(failure)),
            (Ok(request), Service::Open(handle)) => {
                let Some(submitted) = self.submit(index, head, handle, request) else {
                    return Ok(Step::Refused);
                };
                (request.kind(), submitted, None)
            }
            (Ok(request), Service::Fails(why)) => (
                request.kind(),
                Submitted { len: 0, pieces: 0 },
                Some(why.into()),
            ),
            (Ok(_), Service::NotYet) => return Ok(Step::Empty),
        };
        let Submitted { len, pieces } = submitted;
        let taken = Taken {
            kind,
            request: chain.request.ok(),
            ranges: self.reader.ranges_sum(),
            status: chain.status,
            len,
            generation: self.memory.generation(),
        };
        let logs = self.negotiated.has(feature::LOG_ALL);
        let data = match logs && len > 0 && matches!(kind, Kind::Read | Kind::Other) {
            true => WrittenPieces::All,
            false => WrittenPieces::None,
        };
        let status = once((chain.status_address, 1)).take(usize::from(logs));
        let dirty = status.chain(self.reader.written(data));
        let queue = self.rings.at(index);
        queue.take(next, taken, pieces, failure, dirty);
        if pieces == 0 {
            self.finish(index, head, Outcome::Completed(failure));
            self.count_answer();
        }
        Ok(Step::Taken)
    }

    /// Counts a chain that was answered without the volume, so that its guest may have to wait.
    fn count_answer(&mut self) {
        let descriptors = u32::try_from(self.reader.descriptors()).unwrap_or(u32::MAX);
        if self.throttle.count(descriptors, self.wakeups.now()) {
            self.shared.metrics.throttled.add(1);
        }
    }

    /// Submits `request` to the volume. `None`: no free slot.
    fn submit(
        &mut self,
        index: usize,
        head: u16,
        handle: VolumeHandle,
        request: Request,
    ) -> Option<Submitted> {
        let durable = self.negotiated.write_through(&self.shared);
        let cookie = cookie(index, head);
        let mut give = |op, offset, len, segments: &[_]| {
            let request = VolumeRequest {
                op,
                offset,
                len,
                segments,
            };
            self.volume.submit(handle, cookie, request).ok()
        };
        let at_once = |len| Submitted { len, pieces: 0 };
        let in_one_piece = |len| Submitted { len, pieces: 1 };
        Some(match request {
            Request::GetId => at_once(self.reader.put(self.memory.table(), &self.config.id())),
            Request::Read { len: 0, .. } | Request::Write { len: 0, .. } => at_once(0),
            Request::Read { offset, len } => {
                give(VolumeOp::Read, offset, len, self.reader.writable())?;
                in_one_piece(len)
            }
            Request::Write { offset, len } => {
                let op = VolumeOp::Write { durable };
                give(op, offset, len, self.reader.readable())?;
                self.shared.metrics.written_bytes.add(len);
                in_one_piece(0)
            }
            Request::Flush => {
                give(VolumeOp::Flush, 0, 0, &[])?;
                in_one_piece(0)
            }
            Request::Discard | Request::WriteZeroes => {
                let kind = request.kind();
                let mut pieces = 0;
                for range in self.reader.ranges() {
                    let op = range_op(kind, *range, durable);
                    if pieces == 0 {
                        give(op, range.offset, range.len, &[])?;
                    } else if !self.backlog.is_empty()
                        || give(op, range.offset, range.len, &[]).is_none()
                    {
                        self.backlog.push(Deferred {
                            queue: u16::try_from(index).unwrap_or(u16::MAX),
                            head,
                            range: *range,
                            kind,
                        });
                    }
                    pieces += 1;
                }
                Submitted { len: 0, pieces }
            }
        })
    }

    /// Submits the rest of a request to the volume. `false`: no free slot yet.
    fn submit_backlog(&mut self, service: Service) -> bool {
        let Service::Open(handle) = service else {
            return self.backlog.is_empty();
        };
        if self.backlog.is_empty() {
            return true;
        }
        let durable = self.negotiated.write_through(&self.shared);
        while let Some(part) = self.backlog.next() {
            let request = VolumeRequest {
                op: range_op(part.kind, part.range, durable),
                offset: part.range.offset,
                len: part.range.len,
                segments: &[],
            };
            let cookie = cookie(usize::from(part.queue), part.head);
            if self.volume.submit(handle, cookie, request).is_err() {
                self.backlog.refuse();
                return false;
            }
            self.backlog.pop();
        }
        true
    }

    /// Handles the volume's answer to a piece of a request.
    pub(super) fn done(
        &mut self,
        cookie: u64,
        result: Result<(), ErrorCode>,
        completions: Completions,
    ) {
        let index = usize::try_from(cookie >> 16).unwrap_or(usize::MAX);
        let head = u16::try_from(cookie & 0xffff).unwrap_or(u16::MAX);
        let result = match (result, completions) {
            // It waited for space, and was recalled.
            (Err(ErrorCode::NoSpace), Completions::Recalled) => PieceResult::Recalled,
            (result, _) => PieceResult::Done(result),
        };
        self.piece_done(index, head, result);
    }

    /// Records that a piece of a request is done, or was recalled.
    pub(super) fn piece_done(&mut self, index: usize, head: u16, result: PieceResult) {
        let Some(queue) = self.rings.get(index) else {
            debug_assert!(false, "the volume has answered what was not asked");
            return;
        };
        if let Some(outcome) = queue.piece_done(head, result) {
            self.finish(index, head, outcome);
        }
    }

    fn finish(&mut self, index: usize, head: u16, outcome: Outcome) {
        let queue = self.rings.at(index);
        let failure = match outcome {
            _ if self.front_end == FrontEnd::Dropped => return queue.abandon(head),
            Outcome::Recalled => return queue.put_back(head),
            Outcome::Completed(failure) => failure,
        };
        let Some(slot) = queue.slot(head) else { return };
        let Taken { kind, len, .. } = *slot.taken();
        let metrics = &self.shared.metrics;
        metrics.of_kind(kind).add(1);
        let status = failure.map_or(Status::Ok, Failure::status);
        match (status, failure) {
            (Status::Ok, _) if kind == Kind::Read => metrics.read_bytes.add(len),
            (Status::Unsupported, _) => metrics.unsupported.add(1),
            (Status::IoErr, Some(failure)) => {
                metrics.count_error(failure);
                let (offset, len) = slot.range();
                let failed = Failed {
                    queue: index,
                    kind,
                    offset,
                    len,
                    failure,
                };
                if self.failures.note(failed, self.wakeups.now()) {
                    self.log_failure(0, failed);
                }
            }
            _ => {}
        }
        let dirty = self.negotiated.dirty_log();
        let queue = self.rings.at(index);
        queue.complete(head, status, self.memory.table(), dirty);
    }

    /// Logs an error of the guest, and how many earlier ones were not logged.
    #[cold]
    fn log_failure(&self, before: u64, failed: Failed) {
        let (device, volume) = (&self.name, self.config.volume.lineage);
        let queue = failed.queue;
        if before == 0 {
            warn!(%device, %volume, queue, "the guest gets an I/O error: {failed}");
        } else {
            let seconds = INTERVAL.as_secs();
            warn!(%device, %volume, queue, "the guest got {before} more I/O errors within {seconds} s, the last: {failed}");
        }
    }

    /// Logs the number of errors that were only counted, when it is due.
    pub(super) fn report_failures(&mut self) {
        if self.failures.is_counting()
            && let Some((count, last)) = self.failures.take(self.wakeups.now())
        {
            self.log_failure(count, last);
        }
    }

    /// Logs the remaining errors: the front end has disconnected.
    pub(super) fn end_failures(&mut self) {
        if let Some((count, last)) = self.failures.end() {
            self.log_failure(count, last);
        }
    }

    /// Drops the parts of requests that the volume has not taken; the front end has disconnected.
    pub(super) fn drop_backlog(&mut self) {
        while let Some(part) = self.backlog.pop() {
            let index = usize::from(part.queue);
            self.piece_done(index, part.head, PieceResult::Recalled);
        }
    }

    /// Publishes the completed requests to the guest: one index and at most one interrupt per queue.
    pub(super) fn publish(&mut self) {
        let dirty = self.negotiated.dirty_log();
        for queue in self.rings.iter_mut() {
            match queue.publish(dirty) {
                None | Some(Interrupt::Unconnected) => {}
                Some(Interrupt::Suppressed) => self.shared.metrics.calls_suppressed.add(1),
                Some(Interrupt::Sent) => self.shared.metrics.calls.add(1),
            }
        }
    }
}

fn range_op(kind: Kind, range: Range, durable: bool) -> VolumeOp {
    if kind == Kind::Discard {
        return VolumeOp::Discard;
    }
    let unmap = range.unmap;
    VolumeOp::WriteZeroes { unmap, durable }
}

const _: () = assert!(
    crate::config::RING_SIZE_MAX <= 1 << 15,
    "heads fit a cookie"
);
