//! The data path: chains to the volume, completions to the guest.

use std::error::Error;

use archipelago_endpoint::Wakeups;
use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::{VolumeHandle, VolumeOp, VolumeRequest, Volumes};
use tracing::warn;

use super::{Deferred, Device, VolumeState, dirty_log};
use crate::chain::Allowed;
use crate::config::feature;
use crate::failure::{Failed, Failure, INTERVAL};
use crate::queue::{Broken, Slot};
use crate::request::{Kind, Range, Request, Status, parse};
use crate::shared::signal;

/// Chains taken from one queue in one turn. A whole kick's worth at once makes guest, endpoint and device take turns:
/// chunks of eight were worth a fifth of the IOPS at queue depth 32 in the prototype.
const CHAINS_PER_TURN: usize = 8;

/// Descriptors after which a queue's turn is over. A chain has up to 512, of some 10 ns each: a guest whose requests are
/// all of that length keeps its neighbours waiting for one of them, not for eight.
const DESCRIPTORS_PER_TURN: usize = 256;

/// What became of the next chain of a queue.
enum Step {
    Taken,
    Empty,
    /// The volume has no room; the chain stays in the ring.
    HeldBack,
}

pub(super) fn cookie(queue: usize, head: u16) -> u64 {
    (queue as u64) << 16 | u64::from(head)
}

impl<V: Volumes, W: Wakeups> Device<V, W> {
    /// Whether every completed write must be durable: the guest has no write cache, or believes that it has none.
    fn write_through(&self) -> bool {
        // A guest that cannot flush has no other way to make a write durable, whatever it wrote into the write-cache byte.
        let switched_off = self.features & feature::CONFIG_WCE != 0 && !self.shared.writeback();
        switched_off || self.features & feature::FLUSH == 0
    }

    /// Takes chains from the rings, a bounded number.
    pub(super) fn serve(&mut self) -> bool {
        let handle = match self.volume {
            VolumeState::Open(handle) => Some(handle),
            VolumeState::Full(_) | VolumeState::Failed => None,
            _ => return false,
        };
        if self.dropping || !self.regions_ready {
            return false;
        }
        if self.rests() {
            return false;
        }
        // Others' completions make room as well as ours, so each turn tries again.
        self.held_back = false;
        if !self.submit_deferred() {
            return false;
        }
        if self.memory.is_damaged() {
            self.break_rings(Broken::Truncated);
        }
        let mut any = false;
        let count = self.queues.len();
        self.first = (self.first + 1) % count.max(1);
        for turn in 0..count {
            let index = (self.first + turn) % count;
            let mut descriptors = 0;
            for _ in 0..CHAINS_PER_TURN {
                let over = descriptors >= DESCRIPTORS_PER_TURN || self.rest_until.is_some();
                if over || !self.queues[index].takes() {
                    break;
                }
                match self.step(index, handle) {
                    Ok(Step::Taken) => {
                        any = true;
                        descriptors += self.chain.descriptors;
                    }
                    Ok(Step::Empty) => break,
                    Ok(Step::HeldBack) => {
                        self.shared.metrics.held_back.add(1);
                        self.held_back = true;
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
        let queue = &mut self.queues[index];
        queue.broken = true;
        if let Some(error) = &queue.error {
            signal(error);
        }
    }

    fn break_rings(&mut self, broken: Broken) {
        for index in 0..self.queues.len() {
            if self.queues[index].takes() {
                self.break_ring(index, broken);
            }
        }
    }

    fn step(&mut self, index: usize, handle: Option<VolumeHandle>) -> Result<Step, Broken> {
        let queue = &self.queues[index];
        let Some((head, before)) = queue.peek()? else {
            return Ok(Step::Empty);
        };
        let Some(ring) = &queue.memory else {
            return Ok(Step::Empty);
        };
        let indirect = if self.features & feature::INDIRECT_DESC != 0 {
            Allowed::Yes
        } else {
            Allowed::No
        };
        let walked = self
            .chain
            .walk(&self.memory, &ring.descriptors, queue.size, head, indirect);
        if let Err(source) = walked {
            self.shared.metrics.malformed.add(1);
            return Err(Broken::Chain { head, source });
        }
        let Some((status, status_address)) = self.chain.take_status() else {
            self.shared.metrics.malformed.add(1);
            return Err(Broken::NoStatus { head });
        };
        let parsed = if let Some(fault) = self.chain.fault {
            self.shared.metrics.malformed.add(1);
            Err((Kind::Other, Failure::Chain(fault)))
        } else {
            let size = self.shared.size();
            let read_only = self.config.volume.read_only;
            parse(
                &mut self.chain,
                &self.memory,
                size,
                read_only,
                &mut self.ranges,
            )
        };
        let parsed = match (parsed, handle) {
            (Ok(request), None) => Err((kind_of(request), self.not_open())),
            (parsed, _) => parsed,
        };
        let durable = self.write_through();
        let (kind, len, pieces, failure) = match parsed {
            Err((kind, failure)) => (kind, 0, 0, Some(failure)),
            Ok(Request::GetId) => {
                let len = self.put_id();
                (Kind::Other, len, 0, None)
            }
            Ok(request) => {
                let kind = kind_of(request);
                let Some((len, pieces)) = self.submit(index, head, handle, request, durable) else {
                    return Ok(Step::HeldBack);
                };
                (kind, len, pieces, None)
            }
        };
        let queue = &mut self.queues[index];
        queue.take(head, before);
        let slot = &mut queue.slots[usize::from(head)];
        slot.kind = kind;
        slot.pieces = pieces;
        slot.failure = failure;
        slot.recalled = false;
        slot.request = parsed.ok();
        slot.status = (status.region, status.offset);
        slot.len = len;
        slot.generation = self.generation;
        slot.dirty.clear();
        if self.features & feature::LOG_ALL != 0 {
            slot.dirty.push((status_address, 1));
            if len > 0 && matches!(kind, Kind::Read | Kind::Other) {
                let pieces = self.chain.addresses.iter().zip(&self.chain.writable);
                slot.dirty
                    .extend(pieces.map(|(address, segment)| (*address, segment.len)));
            }
        }
        if pieces == 0 {
            self.finish(index, head);
            self.count_answer();
        }
        Ok(Step::Taken)
    }

    /// Why a request fails that the volume does not get.
    fn not_open(&self) -> Failure {
        match self.volume {
            VolumeState::Full(_) => Failure::Volume(ErrorCode::NoSpace),
            _ => Failure::NotOpen,
        }
    }

    /// The chain was answered without the volume: its guest has waited for nothing, and may have to.
    fn count_answer(&mut self) {
        let descriptors = u32::try_from(self.chain.descriptors).unwrap_or(u32::MAX);
        let now = self.wakeups.now();
        if !self.answers.count(descriptors, now).is_zero() {
            self.shared.metrics.rests.add(1);
            self.rest_until = Some(self.answers.paid());
        }
    }

    /// Whether the rings are to be left alone for now.
    pub(super) fn rests(&mut self) -> bool {
        let rests = self
            .rest_until
            .is_some_and(|until| self.wakeups.now() < until);
        if !rests {
            self.rest_until = None;
        }
        rests
    }

    /// Gives `request` to the volume: the bytes that the guest will get, and the pieces to wait for. `None`: no room.
    fn submit(
        &mut self,
        index: usize,
        head: u16,
        handle: Option<VolumeHandle>,
        request: Request,
        durable: bool,
    ) -> Option<(u64, u32)> {
        let handle = handle?;
        let cookie = cookie(index, head);
        let volumes = &mut self.volumes;
        let mut give = |op, offset, len, segments: &[_]| {
            let request = VolumeRequest {
                op,
                offset,
                len,
                segments,
            };
            volumes.submit(handle, cookie, request).ok()
        };
        match request {
            Request::Read { len: 0, .. } | Request::Write { len: 0, .. } | Request::GetId => {
                Some((0, 0))
            }
            Request::Read { offset, len } => {
                give(VolumeOp::Read, offset, len, &self.chain.writable)?;
                Some((len, 1))
            }
            Request::Write { offset, len } => {
                let op = VolumeOp::Write { durable };
                give(op, offset, len, &self.chain.readable)?;
                self.shared.metrics.written_bytes.add(len);
                Some((0, 1))
            }
            Request::Flush => {
                give(VolumeOp::Flush, 0, 0, &[])?;
                Some((0, 1))
            }
            Request::Discard | Request::WriteZeroes => {
                let kind = kind_of(request);
                let mut given = 0;
                let slot = &mut self.queues[index].slots[usize::from(head)];
                let sum = self.ranges.iter().map(|range| range.len).sum();
                slot.ranges = (self.ranges.first().map_or(0, |range| range.offset), sum);
                for range in &self.ranges {
                    let op = range_op(kind, *range, durable);
                    if given == 0 {
                        give(op, range.offset, range.len, &[])?;
                    } else if !self.deferred.is_empty()
                        || give(op, range.offset, range.len, &[]).is_none()
                    {
                        self.deferred.push(Deferred {
                            queue: u16::try_from(index).unwrap_or(u16::MAX),
                            head,
                            range: *range,
                            kind,
                        });
                    }
                    given += 1;
                }
                Some((0, given))
            }
        }
    }

    /// Gives the rest of a request to the volume. `false`: no room yet.
    fn submit_deferred(&mut self) -> bool {
        let VolumeState::Open(handle) = self.volume else {
            return self.deferred.is_empty();
        };
        let durable = self.write_through();
        while let Some(part) = self.deferred.last() {
            let request = VolumeRequest {
                op: range_op(part.kind, part.range, durable),
                offset: part.range.offset,
                len: part.range.len,
                segments: &[],
            };
            let cookie = cookie(usize::from(part.queue), part.head);
            if self.volumes.submit(handle, cookie, request).is_err() {
                self.held_back = true;
                return false;
            }
            self.deferred.pop();
        }
        true
    }

    /// Writes the serial into the chain's writable pieces: how many bytes.
    fn put_id(&mut self) -> u64 {
        let id = self.config.id();
        let mut left = id.as_slice();
        for segment in &self.chain.writable {
            let len = usize::try_from(segment.len).map_or(left.len(), |len| len.min(left.len()));
            let (here, rest) = left.split_at(len);
            if let Some(region) = self.memory.region(segment.region) {
                let written = region.write(segment.offset, here);
                debug_assert!(written.is_ok(), "translated by the table");
            }
            left = rest;
        }
        (id.len() - left.len()) as u64
    }

    /// A piece of a request is done.
    pub(super) fn done(&mut self, cookie: u64, result: Result<(), ErrorCode>) {
        let index = usize::try_from(cookie >> 16).unwrap_or(usize::MAX);
        let head = u16::try_from(cookie & 0xffff).unwrap_or(u16::MAX);
        let slot = self
            .queues
            .get_mut(index)
            .and_then(|queue| queue.slots.get_mut(usize::from(head)));
        let Some(slot) = slot.filter(|slot| slot.busy && slot.pieces > 0) else {
            debug_assert!(false, "the volume has answered what was not asked");
            return;
        };
        slot.pieces -= 1;
        match result {
            // It waited for room, and the device cannot wait with it.
            Err(ErrorCode::NoSpace) if self.recalling => slot.recalled = true,
            Err(code) => slot.failure = Some(Failure::Volume(code)),
            Ok(()) => {}
        }
        if slot.pieces == 0 {
            self.finish(index, head);
        }
    }

    fn finish(&mut self, index: usize, head: u16) {
        if self.dropping {
            self.queues[index].abandon(head);
            return;
        }
        let slot = &self.queues[index].slots[usize::from(head)];
        if slot.recalled && slot.failure.is_none() {
            self.queues[index].put_back(head);
            return;
        }
        let metrics = &self.shared.metrics;
        let counter = match slot.kind {
            Kind::Read => &metrics.reads,
            Kind::Write => &metrics.writes,
            Kind::Flush => &metrics.flushes,
            Kind::Discard => &metrics.discards,
            Kind::WriteZeroes => &metrics.write_zeroes,
            Kind::Other => &metrics.others,
        };
        counter.add(1);
        let status = slot.failure.map_or(Status::Ok, Failure::status);
        match (status, slot.failure) {
            (Status::Ok, _) if slot.kind == Kind::Read => metrics.read_bytes.add(slot.len),
            (Status::Unsupported, _) => metrics.unsupported.add(1),
            (Status::IoErr, Some(failure)) => {
                metrics.count_error(failure);
                let (offset, len) = range_of(slot);
                let failed = Failed {
                    queue: index,
                    kind: slot.kind,
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
        let dirty = dirty_log(self.features, self.log.as_ref());
        let queue = &mut self.queues[index];
        queue.complete(head, status, &self.memory, dirty);
    }

    /// Logs an error that the guest gets, and how many came before that were not.
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

    /// Logs the number of errors that were only counted, when it is time.
    pub(super) fn report_failures(&mut self) {
        if self.failures.is_counting()
            && let Some((count, last)) = self.failures.take(self.wakeups.now())
        {
            self.log_failure(count, last);
        }
    }

    /// Logs what is not logged yet: the front end is gone.
    pub(super) fn end_failures(&mut self) {
        if let Some((count, last)) = self.failures.end() {
            self.log_failure(count, last);
        }
    }

    /// Drops the parts of requests that the volume has not taken.
    pub(super) fn drop_deferred(&mut self) {
        while let Some(part) = self.deferred.pop() {
            let index = usize::from(part.queue);
            let slot = &mut self.queues[index].slots[usize::from(part.head)];
            slot.pieces -= 1;
            if slot.pieces == 0 {
                self.queues[index].abandon(part.head);
            }
        }
    }

    /// Shows the guest what was completed: one index and at most one interrupt per queue.
    pub(super) fn publish(&mut self) {
        let dirty = dirty_log(self.features, self.log.as_ref());
        for queue in &mut self.queues {
            match queue.publish(dirty) {
                None => {}
                Some(false) => self.shared.metrics.calls_suppressed.add(1),
                Some(true) => {
                    if let Some(call) = &queue.call {
                        signal(call);
                        self.shared.metrics.calls.add(1);
                    }
                }
            }
        }
    }
}

/// First byte of the volume that the request in `slot` concerns, and how many.
#[cold]
fn range_of(slot: &Slot) -> (u64, u64) {
    match slot.request {
        Some(Request::Read { offset, len } | Request::Write { offset, len }) => (offset, len),
        Some(Request::Discard | Request::WriteZeroes) => slot.ranges,
        Some(Request::Flush | Request::GetId) | None => (0, 0),
    }
}

fn kind_of(request: Request) -> Kind {
    match request {
        Request::Read { .. } => Kind::Read,
        Request::Write { .. } => Kind::Write,
        Request::Flush => Kind::Flush,
        Request::Discard => Kind::Discard,
        Request::WriteZeroes => Kind::WriteZeroes,
        Request::GetId => Kind::Other,
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
