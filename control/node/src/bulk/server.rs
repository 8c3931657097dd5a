//! The endpoint's side of a bulk copy: a small driver that turns ring entries into volume requests.
//!
//! | state | meaning | leaves it |
//! |---|---|---|
//! | opening | the volume is being opened | `Opened` |
//! | waiting | open, nobody is connected | a channel, or given up |
//! | copying | requests go through | `Finish`, or the channel ends |
//! | breaking | the channel has ended; what is in flight finishes | nothing is in flight |
//! | closing | no more requests; the volume is being closed | `Closed` |
//! | parting | closed; the client reads its last answer | the channel ends |
//! | ended | nothing left | - |
//!
//! Invariants
//! - Each accepted entry is answered once, unless its channel has ended.
//! - The arena is taken back from the volume peer only when nothing in flight names it.

use std::collections::VecDeque;

use archipelago_protocol::volume::{
    OpenMode, Segment, VolumeEvent, VolumeHandle, VolumeOp, VolumeRequest, Volumes,
};
use archipelago_protocol::{Error, ErrorCode, Lineage};
use archipelago_runtime::Progress;
use xseg::{Completion, RegionId, ServerPort};

use super::{BulkOp, BulkRequest};

/// Entries taken in one poll.
const ENTRIES_PER_POLL: usize = 64;

/// What a poll has brought about.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing to tell.
    None,
    /// The open that was asked for is done.
    Opened(Result<(), Error>),
    /// The volume is closed: forget this server.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Waiting,
    Copying,
    Breaking,
    Closing,
    Parting,
    Ended,
}

/// One bulk copy.
#[derive(Debug)]
pub(crate) struct BulkServer<P> {
    write: bool,
    volume: VolumeHandle,
    state: State,
    port: Option<P>,
    region: Option<RegionId>,
    /// Accepted, not yet submitted.
    waiting: VecDeque<(u64, BulkRequest)>,
    /// Submitted and not yet done. The cookie of a volume request is the tag of its entry.
    in_flight: usize,
    finish: Option<u64>,
}

impl<P: ServerPort> BulkServer<P> {
    /// Starts to open the volume.
    pub(crate) fn open(volumes: &mut impl Volumes, lineage: Lineage, write: bool) -> BulkServer<P> {
        let mode = if write {
            OpenMode::Exclusive
        } else {
            OpenMode::ReadOnly
        };
        BulkServer {
            write,
            volume: volumes.open(lineage, mode),
            state: State::Opening,
            port: None,
            region: None,
            waiting: VecDeque::new(),
            in_flight: 0,
            finish: None,
        }
    }

    /// Whether the volume is open and nobody has connected.
    pub(crate) fn is_waiting(&self) -> bool {
        self.state == State::Waiting
    }

    /// The client has connected.
    pub(crate) fn connect(&mut self, volumes: &mut impl Volumes, port: P) {
        if self.state != State::Waiting {
            return;
        }
        let Some(arena) = port.regions().get(RegionId::ARENA).cloned() else {
            return;
        };
        let region = volumes.fresh_region();
        self.port = Some(port);
        self.state = State::Copying;
        match volumes.add_region(region, arena) {
            Ok(()) => self.region = Some(region),
            Err(code) => self.break_off(volumes, &format!("its memory cannot be added: {code}")),
        }
    }

    /// Nobody will connect, or the process stops: close.
    pub(crate) fn give_up(&mut self, volumes: &mut impl Volumes) {
        match self.state {
            State::Opening | State::Waiting => self.close(volumes),
            State::Copying => self.break_off(volumes, "the endpoint stops"),
            State::Parting => self.state = State::Ended,
            State::Breaking | State::Closing | State::Ended => {}
        }
    }

    /// Ends the copy without its `Finish`.
    fn break_off(&mut self, volumes: &mut impl Volumes, why: &str) {
        match &mut self.port {
            // A client that has gone, interrupted perhaps, is nothing to look into.
            Some(port) if port.is_closed() => tracing::info!("a bulk copy ends early: {why}"),
            Some(port) => port.break_channel(why),
            None => {}
        }
        self.waiting.clear();
        self.finish = None;
        self.state = State::Breaking;
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
        self.state = State::Closing;
    }

    /// Does a bounded piece of the work.
    pub(crate) fn poll(&mut self, volumes: &mut impl Volumes) -> (Progress, Step) {
        let mut progress = Progress::Idle;
        while let Some(event) = volumes.next_event(self.volume) {
            progress = Progress::Busy;
            match self.on_event(event) {
                Step::None => {}
                step => return (progress, step),
            }
        }
        if self.state == State::Copying {
            progress = progress.or(self.copy(volumes));
        }
        if self.state == State::Breaking {
            self.close_when_drained(volumes);
        }
        if self.state == State::Parting {
            self.part();
        }
        if self.state == State::Ended {
            return (Progress::Busy, Step::Ended);
        }
        if let (Progress::Busy, Some(port)) = (progress, &mut self.port) {
            port.publish();
        }
        (progress, Step::None)
    }

    /// Refuses what still comes, until the client hangs up.
    fn part(&mut self) {
        let Some(port) = &mut self.port else {
            return;
        };
        while let Some(entry) = port.accept() {
            let result = ErrorCode::Invalid.to_result();
            port.complete(Completion {
                tag: entry.tag,
                result,
                ..Completion::default()
            });
        }
        if port.is_closed() {
            self.state = State::Ended;
        }
    }

    fn on_event(&mut self, event: VolumeEvent) -> Step {
        match event {
            VolumeEvent::Opened { result } => match result {
                Ok(_info) => {
                    // Given up while it was opened: it stays in closing until `Closed`.
                    if self.state == State::Opening {
                        self.state = State::Waiting;
                    }
                    Step::Opened(Ok(()))
                }
                Err(error) => {
                    self.state = State::Ended;
                    Step::Opened(Err(error))
                }
            },
            VolumeEvent::Done { cookie, result } => {
                self.in_flight -= 1;
                self.answer(cookie, result);
                Step::None
            }
            VolumeEvent::Closed { result } => {
                if let Some(tag) = self.finish.take() {
                    self.answer(tag, result.map_err(|error| error.code));
                }
                match &mut self.port {
                    Some(port) if !port.is_closed() => {
                        port.publish();
                        self.state = State::Parting;
                        Step::None
                    }
                    _ => {
                        self.state = State::Ended;
                        Step::Ended
                    }
                }
            }
            VolumeEvent::Resized { .. } => Step::None,
        }
    }

    fn answer(&mut self, tag: u64, result: Result<(), ErrorCode>) {
        let result = result.map_or_else(ErrorCode::to_result, |()| 0);
        if let Some(port) = &mut self.port {
            port.complete(Completion {
                tag,
                result,
                ..Completion::default()
            });
        }
    }

    fn copy(&mut self, volumes: &mut impl Volumes) -> Progress {
        let Some(port) = &mut self.port else {
            return Progress::Idle;
        };
        if port.is_closed() {
            self.break_off(volumes, "the client has gone");
            return Progress::Busy;
        }
        let mut progress = Progress::Idle;
        for _ in 0..ENTRIES_PER_POLL {
            let Some(entry) = port.accept() else {
                break;
            };
            progress = Progress::Busy;
            match BulkRequest::decode(&entry) {
                Ok(request) => self.waiting.push_back((entry.tag, request)),
                Err(code) => {
                    port.complete(Completion {
                        tag: entry.tag,
                        result: code.to_result(),
                        ..Completion::default()
                    });
                }
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
            progress = Progress::Busy;
        }
        if self.finish.is_some() && self.in_flight == 0 && self.waiting.is_empty() {
            self.close(volumes);
            progress = Progress::Busy;
        }
        progress
    }

    /// `false`: no room, try again later.
    fn submit(&mut self, volumes: &mut impl Volumes, tag: u64, request: BulkRequest) -> bool {
        let region = self.region.map_or(0, |region| region.0);
        let segments = [Segment {
            region,
            len: request.len,
            offset: request.memory,
        }];
        let (op, segments) = match request.op {
            BulkOp::Read => (VolumeOp::Read, segments.as_slice()),
            BulkOp::Write => (VolumeOp::Write { durable: false }, segments.as_slice()),
            BulkOp::Zero => (
                VolumeOp::WriteZeroes {
                    unmap: true,
                    durable: false,
                },
                [].as_slice(),
            ),
            BulkOp::Flush => (VolumeOp::Flush, [].as_slice()),
            BulkOp::Finish if self.finish.is_none() => {
                self.finish = Some(tag);
                return true;
            }
            BulkOp::Finish => {
                self.answer(tag, Err(ErrorCode::Invalid));
                return true;
            }
        };
        if matches!(request.op, BulkOp::Write | BulkOp::Zero) && !self.write {
            self.answer(tag, Err(ErrorCode::ReadOnly));
            return true;
        }
        if self.finish.is_some() {
            self.answer(tag, Err(ErrorCode::Invalid));
            return true;
        }
        let len = if request.op == BulkOp::Flush {
            0
        } else {
            u64::from(request.len)
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

    /// Announces sleep; `false`: do not sleep.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        self.waiting.is_empty() && self.port.as_mut().is_none_or(|port| port.prepare_sleep())
    }

    /// Takes the announcement of sleep back.
    pub(crate) fn wake(&mut self) {
        if let Some(port) = &mut self.port {
            port.wake();
        }
    }
}

#[cfg(test)]
mod tests;
