//! The endpoint's side of a bulk copy: a small driver that turns ring entries into volume requests.
//!
//! | state | meaning | leaves it |
//! |---|---|---|
//! | opening | the volume is being opened | `Opened` |
//! | waiting | open, no client is connected | a channel, or given up |
//! | copying | requests are carried out | `Finish`, or the channel ends |
//! | breaking | the channel has ended; what is in flight finishes | nothing is in flight |
//! | closing | no more requests; the volume is being closed | `Closed` |
//! | parting | closed; the client reads its last answer | the channel ends |
//! | ended | nothing left | - |
//!
//! Invariants
//! - Each accepted entry is answered once, unless its channel has ended.
//! - The arena is removed from the volume peer only when nothing in flight names it.

use std::collections::VecDeque;

use archipelago_protocol::volume::{
    OnFull, OpenMode, Segment, VolumeEvent, VolumeHandle, VolumeOp, VolumeRequest, Volumes,
};
use archipelago_protocol::{Error, ErrorCode, Lineage, Reply};
use xseg::{RegionId, ServerPort};

use crate::{BulkOp, BulkRequest};

/// Entries taken in one poll.
const ENTRIES_PER_POLL: usize = 64;

/// The result of a poll of a [`BulkServer`].
#[derive(Debug)]
pub enum BulkStep {
    /// Nothing.
    Idle,
    /// Something was done, and there may be more to do.
    Busy,
    /// The open of the volume has ended, with this result.
    Opened(Result<(), Error>),
    /// The volume is closed: drop this server.
    Ended {
        /// Acknowledged data is lost, and the client was cut off before that could be reported: leave [`crate::loss_marker`].
        lost: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyState {
    Opening,
    Waiting,
    Copying,
    Breaking,
    Closing,
    Parting,
    Ended,
}

/// One bulk copy, served at `port` and carried out by a volume.
#[derive(Debug)]
pub struct BulkServer<P> {
    write: bool,
    volume: VolumeHandle,
    state: CopyState,
    port: Option<P>,
    region: Option<RegionId>,
    /// Accepted, not yet submitted.
    waiting: VecDeque<(u64, BulkRequest)>,
    /// Submitted and not yet done. The cookie of a volume request is the tag of its entry.
    in_flight: usize,
    finish: Option<u64>,
    report: Report,
}

/// How failures are reported to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Report {
    /// By answers, while it is connected.
    Answers,
    /// It was cut off; whether acknowledged data was lost since.
    CutOff { lost: bool },
}

impl<P: ServerPort> BulkServer<P> {
    /// Starts to open the volume; `on_full` is the policy for writes without space in the pool.
    pub fn open(
        volumes: &mut impl Volumes,
        lineage: Lineage,
        write: bool,
        on_full: OnFull,
    ) -> BulkServer<P> {
        let mode = if write {
            OpenMode::Exclusive
        } else {
            OpenMode::ReadOnly
        };
        let volume = volumes.open(lineage, mode);
        if on_full != OnFull::Report {
            volumes.on_full(volume, on_full);
        }
        BulkServer {
            write,
            volume,
            state: CopyState::Opening,
            port: None,
            region: None,
            waiting: VecDeque::new(),
            in_flight: 0,
            finish: None,
            report: Report::Answers,
        }
    }

    /// Whether the volume is open and no client has connected.
    pub fn is_waiting(&self) -> bool {
        self.state == CopyState::Waiting
    }

    /// The client has connected.
    pub fn connect(&mut self, volumes: &mut impl Volumes, port: P) {
        if self.state != CopyState::Waiting {
            return;
        }
        let Some(arena) = port.regions().get(RegionId::ARENA).cloned() else {
            return;
        };
        let region = volumes.fresh_region();
        self.port = Some(port);
        self.state = CopyState::Copying;
        match volumes.add_region(region, arena) {
            Ok(()) => self.region = Some(region),
            Err(code) => self.break_off(volumes, &format!("its memory cannot be added: {code}")),
        }
    }

    /// Closes the volume: no client will connect, or the process stops.
    pub fn give_up(&mut self, volumes: &mut impl Volumes) {
        match self.state {
            CopyState::Opening | CopyState::Waiting => self.close(volumes),
            CopyState::Copying => {
                self.report = Report::CutOff { lost: false };
                self.break_off(volumes, "the endpoint stops");
            }
            CopyState::Parting => self.state = CopyState::Ended,
            CopyState::Breaking | CopyState::Closing | CopyState::Ended => {}
        }
    }

    /// Ends the copy without its `Finish`.
    fn break_off(&mut self, volumes: &mut impl Volumes, why: &str) {
        match &mut self.port {
            // A client that has disconnected, interrupted perhaps, is not an error.
            Some(port) if port.is_closed() => tracing::info!("a bulk copy ends early: {why}"),
            Some(port) => port.break_channel(why),
            None => {}
        }
        self.waiting.clear();
        self.finish = None;
        self.state = CopyState::Breaking;
        // The client of the requests that wait for space has disconnected.
        volumes.on_full(self.volume, OnFull::Report);
        self.close_when_drained(volumes);
    }

    fn close_when_drained(&mut self, volumes: &mut impl Volumes) {
        if self.in_flight == 0 {
            self.close(volumes);
        }
    }

    fn close(&mut self, volumes: &mut impl Volumes) {
        if let Some(region) = self.region.take() {
            volumes.remove_region(region);
        }
        volumes.close(self.volume);
        self.state = CopyState::Closing;
    }

    /// Does a bounded part of the pending work.
    pub fn poll(&mut self, volumes: &mut impl Volumes) -> BulkStep {
        let mut busy = false;
        while let Some(event) = volumes.next_event(self.volume) {
            busy = true;
            match self.on_event(event) {
                BulkStep::Idle | BulkStep::Busy => {}
                step => return step,
            }
        }
        if self.state == CopyState::Copying {
            busy |= self.copy(volumes);
        }
        if self.state == CopyState::Breaking {
            self.close_when_drained(volumes);
        }
        if self.state == CopyState::Parting {
            self.part();
        }
        if self.state == CopyState::Ended {
            return self.ended();
        }
        if !busy {
            return BulkStep::Idle;
        }
        if let Some(port) = &mut self.port {
            port.publish();
        }
        BulkStep::Busy
    }

    /// Refuses further requests, until the client disconnects.
    fn part(&mut self) {
        let Some(port) = &mut self.port else {
            return;
        };
        while let Some(entry) = port.accept() {
            port.complete(Reply::failed(ErrorCode::Invalid).encode(entry.tag));
        }
        if port.is_closed() {
            self.state = CopyState::Ended;
        }
    }

    fn on_event(&mut self, event: VolumeEvent) -> BulkStep {
        match event {
            VolumeEvent::Opened { result } => match result {
                Ok(_info) => {
                    // Given up while it was opened: the state stays closing until `Closed`.
                    if self.state == CopyState::Opening {
                        self.state = CopyState::Waiting;
                    }
                    BulkStep::Opened(Ok(()))
                }
                Err(error) => {
                    self.state = CopyState::Ended;
                    BulkStep::Opened(Err(error))
                }
            },
            VolumeEvent::Done { cookie, result } => {
                self.in_flight -= 1;
                // Any other failure concerns this request alone: its client has no answer, and sends it again.
                self.note_loss(result == Err(ErrorCode::SyncFailed));
                self.answer(cookie, result);
                BulkStep::Busy
            }
            VolumeEvent::Closed { result } => {
                self.note_loss(result.is_err());
                if let Some(tag) = self.finish.take() {
                    self.answer(tag, result.map_err(|error| error.code));
                }
                match &mut self.port {
                    Some(port) if !port.is_closed() => {
                        port.publish();
                        self.state = CopyState::Parting;
                        BulkStep::Busy
                    }
                    _ => {
                        self.state = CopyState::Ended;
                        self.ended()
                    }
                }
            }
            VolumeEvent::Resized { .. } => BulkStep::Busy,
        }
    }

    fn ended(&self) -> BulkStep {
        let lost = self.report == Report::CutOff { lost: true };
        BulkStep::Ended { lost }
    }

    /// Records the end of a request or of the volume; `is_lost`: acknowledged data may be lost with it.
    fn note_loss(&mut self, is_lost: bool) {
        if let Report::CutOff { lost } = &mut self.report {
            *lost |= is_lost;
        }
    }

    fn answer(&mut self, tag: u64, result: Result<(), ErrorCode>) {
        if let Some(port) = &mut self.port {
            port.complete(Reply::from(result).encode(tag));
        }
    }

    /// Takes entries and submits them while the volume has slots. Returns whether anything was done.
    fn copy(&mut self, volumes: &mut impl Volumes) -> bool {
        let Some(port) = &mut self.port else {
            return false;
        };
        if port.is_closed() {
            self.break_off(volumes, "the client has disconnected");
            return true;
        }
        let mut busy = false;
        for _ in 0..ENTRIES_PER_POLL {
            let Some(entry) = port.accept() else {
                break;
            };
            busy = true;
            match BulkRequest::decode(&entry) {
                Ok(request) => self.waiting.push_back((entry.tag, request)),
                Err(code) => port.complete(Reply::failed(code).encode(entry.tag)),
            }
        }
        let ready = self
            .region
            .is_some_and(|region| volumes.region_ready(region));
        while ready && let Some((tag, request)) = self.waiting.front().copied() {
            if !self.submit(volumes, tag, request) {
                break;
            }
            self.waiting.pop_front();
            busy = true;
        }
        if self.finish.is_some() && self.in_flight == 0 && self.waiting.is_empty() {
            self.close(volumes);
            busy = true;
        }
        busy
    }

    /// `false`: no slot, try again later.
    fn submit(&mut self, volumes: &mut impl Volumes, tag: u64, request: BulkRequest) -> bool {
        let region = self.region.map_or(0, |region| region.0);
        let segments = [Segment {
            region,
            len: request.len,
            offset: request.memory,
        }];
        let durable = request.flags.durable;
        let (op, segments) = match request.op {
            BulkOp::Read => (VolumeOp::Read, segments.as_slice()),
            BulkOp::Write => (VolumeOp::Write { durable }, segments.as_slice()),
            BulkOp::Zero => (
                VolumeOp::WriteZeroes {
                    unmap: !request.flags.keep_space,
                    durable,
                },
                [].as_slice(),
            ),
            BulkOp::Discard => (VolumeOp::Discard, [].as_slice()),
            BulkOp::Flush => (VolumeOp::Flush, [].as_slice()),
            BulkOp::Status => (VolumeOp::BlockStatus, segments.as_slice()),
            BulkOp::Finish if self.finish.is_none() => {
                self.finish = Some(tag);
                return true;
            }
            BulkOp::Finish => {
                self.answer(tag, Err(ErrorCode::Invalid));
                return true;
            }
        };
        let changes = matches!(request.op, BulkOp::Write | BulkOp::Zero | BulkOp::Discard);
        if changes && !self.write {
            self.answer(tag, Err(ErrorCode::ReadOnly));
            return true;
        }
        if self.finish.is_some() {
            self.answer(tag, Err(ErrorCode::Invalid));
            return true;
        }
        let len = match request.op {
            BulkOp::Flush => 0,
            BulkOp::Status => request.range,
            _ => u64::from(request.len),
        };
        let request = VolumeRequest {
            op,
            offset: request.offset,
            len,
            segments,
        };
        match volumes.submit(self.volume, tag, request) {
            Ok(()) => {
                self.in_flight += 1;
                true
            }
            Err(ErrorCode::Unavailable) => false,
            Err(code) => {
                self.answer(tag, Err(code));
                true
            }
        }
    }

    /// Announces sleep; `false`: do not sleep. Requests that wait for a slot do not keep the thread awake: a freed slot wakes it.
    pub fn prepare_sleep(&mut self) -> bool {
        self.port.as_mut().is_none_or(|port| port.prepare_sleep())
    }

    /// Withdraws the announcement of sleep.
    pub fn wake(&mut self) {
        if let Some(port) = &mut self.port {
            port.wake();
        }
    }
}

#[cfg(test)]
mod tests;
