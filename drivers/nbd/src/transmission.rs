//! A connection behind its handshake: requests to the volume, replies to the client.
//!
//! | state | means | becomes |
//! |---|---|---|
//! | Open | requests are received | Finishing, at `DISC` or the end of the input; Broken |
//! | Finishing | requests in flight are answered | over, once all replies are sent; Broken |
//! | Broken | replies are dropped; pieces in flight finish | over, once none is in flight |
//!
//! Invariants
//! - Requests are cut into pieces in the order in which they came. The resources that a request waits for (a cell, a slot in the volume)
//!   are released by earlier ones, so no two requests wait for each other.
//! - A cell belongs to one piece: filled from the socket, in flight, or on its way to the client.
//! - A client can occupy only its own resources: its region, its requests, its socket.

mod completion;
mod intake;

use std::os::unix::net::UnixStream;

use archipelago_endpoint::{EndpointVolume, Service};
use archipelago_nbd_protocol::losses::ReportedLosses;
use archipelago_nbd_protocol::request::{Terms, Violation};
use archipelago_nbd_protocol::requests::Requests;
use archipelago_protocol::volume::Volumes;

use crate::cells::{CellList, Cells};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::receiver::{Filling, Received, Receiver, Target};
use crate::sender::{Sender, Sent};
use crate::shared::Shared;
use crate::submissions::Submissions;

/// Most requests received, and calls that receive, in one turn of the thread: others are served in between.
const STEPS_PER_TURN: usize = 16;
const RECEIVES_PER_TURN: usize = 8;

/// What comes next from the client.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Header,
    /// Nothing: a request has to be cut into pieces first.
    Pieces {
        request: u16,
    },
    /// Data of a write.
    Data {
        request: u16,
        filling: Option<Filling>,
    },
    /// Data of a write that was refused.
    Scrap {
        left: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Finishing,
    Broken,
}

/// The result of a step.
enum Step {
    /// It has done something.
    Taken,
    /// More input is needed first.
    NeedsInput,
    /// A resource must become free first.
    Waits,
}

/// The result of a turn of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Turn {
    pub(crate) busy: bool,
    /// The socket has become full.
    pub(crate) blocked: bool,
    /// The client's input is invalid.
    pub(crate) violation: Option<Violation>,
}

/// One client's transmission.
#[derive(Debug)]
pub(crate) struct Transmission {
    terms: Terms,
    memory: Memory,
    receiver: Receiver,
    expected: Expected,
    /// The requests, each with the cells of a read with one reply.
    requests: Requests<CellList>,
    cells: Cells,
    submissions: Submissions,
    reported: ReportedLosses,
    sender: Sender,
    phase: Phase,
}

impl Transmission {
    pub(crate) fn new(place: u8, terms: Terms, memory: Memory, reported: ReportedLosses) -> Self {
        Transmission {
            terms,
            memory,
            receiver: Receiver::new(),
            expected: Expected::Header,
            requests: Requests::new(),
            cells: Cells::new(),
            submissions: Submissions::new(place),
            reported,
            sender: Sender::new(),
            phase: Phase::Open,
        }
    }

    /// Returns its memory, once it is over.
    pub(crate) fn into_memory(self) -> Memory {
        self.memory
    }

    /// Whether its client waits for answers.
    pub(crate) fn is_served(&self) -> bool {
        self.phase != Phase::Broken
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        let answered = self.requests.is_empty() && self.sender.is_empty();
        let drained = self.submissions.is_empty();
        match self.phase {
            Phase::Open => false,
            Phase::Finishing => answered && drained,
            Phase::Broken => drained,
        }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.submissions.in_flight()
    }

    /// Whether it goes on after progress of the volume peer.
    pub(crate) fn waits_for_volume(&self, volumes: &impl Volumes) -> bool {
        !self.submissions.is_empty() || !self.memory.is_ready(volumes)
    }

    /// Data has come, or the client has disconnected.
    pub(crate) fn signal_input(&mut self) {
        self.receiver.signal();
    }

    /// The socket may be writable again.
    pub(crate) fn signal_output(&mut self) {
        self.sender.unblock();
    }

    /// Drops all replies: the client has disconnected or is cut off.
    pub(crate) fn break_off(&mut self) {
        self.phase = Phase::Broken;
        self.submissions.forget_waiting();
    }

    /// Does a bounded part of the pending work.
    pub(crate) fn poll<V: Volumes>(
        &mut self,
        socket: &UnixStream,
        volume: &mut EndpointVolume<V>,
        shared: &Shared,
    ) -> Turn {
        let metrics = &shared.metrics;
        let mut turn = Turn::default();
        let service = match volume.service() {
            Service::Open(_) if !self.memory.is_ready(volume.peer()) => Service::NotYet,
            service => service,
        };
        turn.busy |= self.submit_waiting(service, volume, metrics);
        if self.phase == Phase::Open {
            self.receive(socket, service, volume, shared, &mut turn);
        }
        // A client that sends no more requests may still read its replies, or have disconnected.
        if self.phase == Phase::Finishing && self.receiver.take_hangup(socket) {
            self.break_off();
            turn.busy = true;
        }
        if self.phase == Phase::Broken {
            return turn;
        }
        let calls = || metrics.sends.add(1);
        let sent = self
            .sender
            .send(socket, &self.memory, &mut self.cells, calls);
        turn.busy |= sent == Sent::Some;
        match sent {
            Sent::Blocked => turn.blocked = true,
            Sent::Disconnected => {
                self.break_off();
                turn.busy = true;
            }
            Sent::Nothing | Sent::Some => {}
        }
        turn
    }

    fn receive<V: Volumes>(
        &mut self,
        socket: &UnixStream,
        service: Service,
        volume: &mut EndpointVolume<V>,
        shared: &Shared,
        turn: &mut Turn,
    ) {
        let metrics = &shared.metrics;
        let mut receives = 0;
        for _ in 0..STEPS_PER_TURN {
            match self.step(service, volume, metrics) {
                Ok(Step::Taken) => turn.busy = true,
                Ok(Step::Waits) => return,
                Ok(Step::NeedsInput) => {
                    if !self.receiver.is_readable() || receives == RECEIVES_PER_TURN {
                        return;
                    }
                    receives += 1;
                    metrics.receives.add(1);
                    if !self.receive_once(socket) {
                        return;
                    }
                    // After the requests already received: a client that knows the new size may use all of it.
                    self.terms.size = shared.size();
                    turn.busy = true;
                }
                Err(violation) => {
                    turn.violation = Some(violation);
                    turn.busy = true;
                    self.break_off();
                }
            }
            if self.phase != Phase::Open {
                turn.busy = true;
                return;
            }
        }
    }

    /// Receives; `false`: nothing was received.
    fn receive_once(&mut self, socket: &UnixStream) -> bool {
        let target = match &mut self.expected {
            Expected::Header | Expected::Pieces { .. } => Target::Input,
            Expected::Data { filling, .. } => match filling {
                Some(filling) => Target::Cell(filling),
                None => return false,
            },
            Expected::Scrap { left } => Target::Scrap(left),
        };
        match self.receiver.receive(socket, &self.memory, target) {
            Received::Some => {}
            Received::Nothing => return false,
            // Between two requests some clients disconnect without a request for it.
            Received::End
                if matches!(self.expected, Expected::Header) && self.receiver.is_empty() =>
            {
                self.phase = Phase::Finishing;
            }
            Received::End | Received::Failed => self.break_off(),
        }
        true
    }

    fn step<V: Volumes>(
        &mut self,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> Result<Step, Violation> {
        if self.submissions.next_waiting().is_some() {
            return Ok(Step::Waits);
        }
        match self.expected {
            Expected::Header => self.take_header(service, metrics),
            Expected::Pieces { request } => Ok(self.cut(request, service, volume, metrics)),
            Expected::Data { request, filling } => {
                Ok(self.take_data(request, filling, service, volume, metrics))
            }
            Expected::Scrap { mut left } => {
                self.receiver.scrap(&mut left);
                self.expected = Expected::Scrap { left };
                if left > 0 {
                    return Ok(Step::NeedsInput);
                }
                self.expected = Expected::Header;
                Ok(Step::Taken)
            }
        }
    }
}
