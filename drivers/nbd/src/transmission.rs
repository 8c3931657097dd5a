//! A connection behind its handshake: requests to the volume, replies to the client.
//!
//! | state | means | becomes |
//! |---|---|---|
//! | Open | requests are taken | Finishing, at `DISC` or the end of the input; Broken |
//! | Finishing | what was asked is answered | over, once all of it is sent; Broken |
//! | Broken | nobody waits for answers; pieces in flight finish | over, once none is in flight |
//!
//! Invariants
//! - Requests are cut into pieces in the order in which they came, and what one of them waits for (a cell, a place in the volume)
//!   is freed by those before it: no two requests wait for each other.
//! - A cell belongs to one piece: filled from the socket, in flight, or on its way to the client.
//! - What a client can keep is its own: its region, its requests, its socket.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;

use archipelago_endpoint::{EndpointVolume, Service};
use archipelago_protocol::ErrorCode;
use archipelago_protocol::status::STATUS_PAGE_MAX;
use archipelago_protocol::volume::{Segment, VolumeHandle, VolumeOp, VolumeRequest, Volumes};

use crate::cells::{CellList, Cells, NONE};
use crate::layout::{CELLS, CELLS_SHARED, cell_at};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::piece::{Cookie, Piece, not_served};
use crate::receiver::{Filling, Received, Receiver, Target};
use crate::replies::Replies;
use crate::sender::{Sender, Sent};
use archipelago_nbd_protocol::command::Command;
use archipelago_nbd_protocol::losses::{Losses, ReportedLosses};
use archipelago_nbd_protocol::pieces::Range;
use archipelago_nbd_protocol::reply::{Done, errno};
use archipelago_nbd_protocol::request::{Header, Terms, Violation};
use archipelago_nbd_protocol::requests::{REQUESTS, Request, Requests};
use archipelago_nbd_protocol::wire::Errno;

/// Requests taken, and calls that receive, in one turn of the thread: others are served in between.
const STEPS_PER_TURN: usize = 16;
const RECEIVES_PER_TURN: usize = 8;

/// What comes next from the client.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Header,
    /// Nothing: a request is to be cut into pieces first.
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

/// What came of a step.
enum Step {
    /// Something was done.
    Taken,
    /// More has to come first.
    NeedsInput,
    /// Something has to become free first.
    Waits,
}

/// What came of a turn of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Turn {
    pub(crate) busy: bool,
    /// The socket has become full.
    pub(crate) blocked: bool,
    /// What came made no sense.
    pub(crate) violation: Option<Violation>,
}

/// One client's transmission.
#[derive(Debug)]
pub(crate) struct Transmission {
    place: u8,
    terms: Terms,
    memory: Memory,
    receiver: Receiver,
    expected: Expected,
    /// And the cells of a read that is answered whole.
    requests: Requests<CellList>,
    cells: Cells,
    /// Pieces that the volume had no place for.
    backlog: VecDeque<Piece>,
    /// Pieces in the volume.
    in_flight: u32,
    reported: ReportedLosses,
    sender: Sender,
    phase: Phase,
}

impl Transmission {
    pub(crate) fn new(place: u8, terms: Terms, memory: Memory, reported: ReportedLosses) -> Self {
        Transmission {
            place,
            terms,
            memory,
            receiver: Receiver::new(),
            expected: Expected::Header,
            requests: Requests::new(),
            cells: Cells::new(),
            backlog: VecDeque::with_capacity(usize::from(CELLS + REQUESTS)),
            in_flight: 0,
            reported,
            sender: Sender::new(),
            phase: Phase::Open,
        }
    }

    /// Its memory, once it is over.
    pub(crate) fn into_memory(self) -> Memory {
        self.memory
    }

    /// Whether somebody waits for answers.
    pub(crate) fn is_served(&self) -> bool {
        self.phase != Phase::Broken
    }

    /// Whether nothing is left of it but its memory.
    pub(crate) fn is_over(&self) -> bool {
        let answered = self.requests.is_empty() && self.sender.is_empty();
        let drained = self.in_flight == 0 && self.backlog.is_empty();
        match self.phase {
            Phase::Open => false,
            Phase::Finishing => answered && drained,
            Phase::Broken => drained,
        }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether it goes on once the volume peer has done something.
    pub(crate) fn waits_for_volume(&self, volumes: &impl Volumes) -> bool {
        self.in_flight > 0 || !self.backlog.is_empty() || !self.memory.is_ready(volumes)
    }

    /// Something has come, or the client is gone.
    pub(crate) fn signal_input(&mut self) {
        self.receiver.signal();
    }

    /// The socket can be written again.
    pub(crate) fn signal_output(&mut self) {
        self.sender.unblock();
    }

    /// Nobody waits for answers any more.
    pub(crate) fn break_off(&mut self) {
        self.phase = Phase::Broken;
        self.backlog.clear();
    }

    /// Does a bounded piece of the work.
    pub(crate) fn poll<V: Volumes>(
        &mut self,
        socket: &UnixStream,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> Turn {
        let mut turn = Turn::default();
        let service = match volume.service() {
            Service::Open(_) if !self.memory.is_ready(volume.peer()) => Service::NotYet,
            service => service,
        };
        turn.busy |= self.submit_backlog(service, volume, metrics);
        if self.phase == Phase::Open {
            self.receive(socket, service, volume, metrics, &mut turn);
        }
        // Whoever has said all that it wants may still be there for the answers, or not.
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
            Sent::Gone => {
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
        metrics: &Metrics,
        turn: &mut Turn,
    ) {
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

    /// Receives; `false`: nothing has come.
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
            // Between two requests that is the way of a client that does not say goodbye.
            Received::End
                if matches!(self.expected, Expected::Header) && self.receiver.is_empty() =>
            {
                self.phase = Phase::Finishing;
            }
            Received::End | Received::Gone => self.break_off(),
        }
        true
    }

    fn step<V: Volumes>(
        &mut self,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> Result<Step, Violation> {
        if !self.backlog.is_empty() {
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

    fn take_header(&mut self, service: Service, metrics: &Metrics) -> Result<Step, Violation> {
        if self.requests.is_full() || !self.sender.has_room() {
            return Ok(Step::Waits);
        }
        let Some(bytes) = self.receiver.header(&self.memory) else {
            return Ok(Step::NeedsInput);
        };
        if service == Service::NotYet {
            return Ok(Step::Waits);
        }
        let header = Header::decode(&bytes)?;
        self.receiver.skip_header();
        let checked = match (header.check(&self.terms), service) {
            (Ok(Command::Disconnect), _) => Ok(Command::Disconnect),
            (Ok(_), Service::Fails(why)) => Err(not_served(why)),
            (checked, _) => checked,
        };
        match checked {
            Err(errno) => {
                metrics.count_refused();
                self.replies().refuse(&header, errno);
                if let left @ 1.. = header.data_len() {
                    self.expected = Expected::Scrap { left };
                }
            }
            Ok(Command::Disconnect) => self.phase = Phase::Finishing,
            Ok(command) if command.is_noop(header.len) => {
                metrics.count(command, 0, Ok(()));
                self.replies().noop(&header);
            }
            Ok(command) => {
                // There is room: looked at above.
                let Some(request) = self.requests.insert(command, &header) else {
                    return Ok(Step::Waits);
                };
                self.expected = match command {
                    Command::Write { .. } => Expected::Data {
                        request,
                        filling: None,
                    },
                    _ => Expected::Pieces { request },
                };
            }
        }
        Ok(Step::Taken)
    }

    /// Makes the next piece of a request without data of the client's.
    fn cut<V: Volumes>(
        &mut self,
        index: u16,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> Step {
        let Some((request, whole, range)) = next_piece(&mut self.requests, index) else {
            self.expected = Expected::Header;
            return Step::Taken;
        };
        let mut cell = NONE;
        let is_read = request.command() == Command::Read;
        if is_read || matches!(request.command(), Command::BlockStatus { .. }) {
            // A read that is answered whole needs all its cells at a time.
            let limit = match self.terms.structured {
                true => CELLS_SHARED,
                false => CELLS,
            };
            match self.cells.take(limit, range) {
                Some(taken) => cell = taken,
                None => return Step::Waits,
            }
            if is_read && !self.terms.structured {
                self.cells.append(whole, cell);
            }
        }
        request.cut();
        if request.next_range().is_none() {
            self.expected = Expected::Header;
        }
        let piece = Piece {
            request: index,
            cell,
            range,
        };
        self.submit(piece, service, volume, metrics);
        Step::Taken
    }

    /// Takes data of a write.
    fn take_data<V: Volumes>(
        &mut self,
        index: u16,
        filling: Option<Filling>,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> Step {
        let Some((request, _, range)) = next_piece(&mut self.requests, index) else {
            self.expected = Expected::Header;
            return Step::Taken;
        };
        let mut filling = match filling {
            Some(filling) => filling,
            None => match self.cells.take(CELLS_SHARED, range) {
                Some(cell) => Filling::new(cell, range.len),
                None => return Step::Waits,
            },
        };
        self.receiver.fill(&self.memory, &mut filling);
        if !filling.is_full() {
            self.expected = Expected::Data {
                request: index,
                filling: Some(filling),
            };
            return Step::NeedsInput;
        }
        request.cut();
        self.expected = match request.next_range() {
            Some(_) => Expected::Data {
                request: index,
                filling: None,
            },
            None => Expected::Header,
        };
        let piece = Piece {
            request: index,
            cell: filling.cell,
            range,
        };
        self.submit(piece, service, volume, metrics);
        Step::Taken
    }

    /// Gives a piece to the volume, now or as soon as it has a place.
    fn submit<V: Volumes>(
        &mut self,
        piece: Piece,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) {
        if !self.try_submit(piece, service, volume, metrics) {
            metrics.volume_refusals.add(1);
            self.backlog.push_back(piece);
        }
    }

    fn submit_backlog<V: Volumes>(
        &mut self,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> bool {
        let mut any = false;
        while let Some(piece) = self.backlog.front().copied() {
            if !self.try_submit(piece, service, volume, metrics) {
                break;
            }
            self.backlog.pop_front();
            any = true;
        }
        any
    }

    /// Gives a piece to the volume, or answers it; `false`: no place.
    fn try_submit<V: Volumes>(
        &mut self,
        piece: Piece,
        service: Service,
        volume: &mut EndpointVolume<V>,
        metrics: &Metrics,
    ) -> bool {
        let submitted = match service {
            Service::Open(handle) => self.give(piece, handle, volume),
            Service::Fails(why) => Err(Some(not_served(why))),
            Service::NotYet => Err(None),
        };
        match submitted {
            Ok(()) => self.in_flight += 1,
            Err(None) => return false,
            Err(Some(errno)) => self.piece_done(piece.request, piece.cell, Err(errno), metrics),
        }
        true
    }

    /// # Errors
    /// Why it has failed; `None`: it has to wait.
    fn give<V: Volumes>(
        &mut self,
        piece: Piece,
        handle: VolumeHandle,
        volume: &mut EndpointVolume<V>,
    ) -> Result<(), Option<Errno>> {
        let command = self.command(piece.request);
        let op = command
            .and_then(Command::operation)
            .ok_or(Some(Errno::Io))?;
        let segment = Segment {
            region: self.memory.id(),
            len: match op {
                VolumeOp::BlockStatus => STATUS_PAGE_MAX,
                _ => piece.range.len,
            },
            offset: cell_at(piece.cell) as u64,
        };
        let segments = [segment];
        let request = VolumeRequest {
            op,
            offset: piece.range.offset,
            len: u64::from(piece.range.len),
            segments: match piece.cell {
                NONE => &[],
                _ => &segments,
            },
        };
        let cookie = Cookie {
            place: self.place,
            request: piece.request,
            cell: piece.cell,
        };
        let submitted = volume.submit(handle, cookie.encode(), request);
        submitted.map_err(|code| match code {
            ErrorCode::Unavailable => None,
            code => Some(errno(code)),
        })
    }

    /// The volume has answered a piece.
    pub(crate) fn done(
        &mut self,
        cookie: Cookie,
        result: Result<(), ErrorCode>,
        losses: &Losses,
        metrics: &Metrics,
    ) {
        self.in_flight -= 1;
        let command = self.command(cookie.request);
        let result = command.map_or(result, |command| {
            losses.check(&self.reported, command, result)
        });
        if self.is_served() {
            self.piece_done(cookie.request, cookie.cell, result.map_err(errno), metrics);
        }
    }

    fn piece_done(&mut self, index: u16, cell: u16, result: Result<(), Errno>, metrics: &Metrics) {
        let Some((request, _)) = self.requests.get(index) else {
            debug_assert!(false, "the volume has answered what was not asked");
            return;
        };
        request.piece_done(result);
        let is_done = request.is_done();
        let (command, cookie) = (request.command(), request.cookie());
        match command {
            Command::Read if self.terms.structured => {
                let done = if is_done { Done::Yes } else { Done::No };
                self.replies().chunk(cookie, done, cell, result);
            }
            // Its cells are sent, or freed, all at once.
            Command::Read => {}
            Command::BlockStatus { one } => self.replies().extents(cookie, one, cell, result),
            _ if cell != NONE => self.cells.put(cell),
            _ => {}
        }
        if is_done {
            self.finish(index, metrics);
        }
    }

    /// Every piece of a request is done.
    fn finish(&mut self, index: u16, metrics: &Metrics) {
        let Some((request, cells)) = self.requests.get(index) else {
            return;
        };
        let (command, cookie, result) = (request.command(), request.cookie(), request.result());
        let cells = *cells;
        metrics.count(command, request.len_bytes(), result);
        self.requests.remove(index);
        let is_answered = matches!(command, Command::BlockStatus { .. })
            || self.terms.structured && command == Command::Read;
        if !is_answered {
            self.replies().whole(cookie, cells, result);
        }
    }

    fn command(&mut self, request: u16) -> Option<Command> {
        let (request, _) = self.requests.get(request)?;
        Some(request.command())
    }

    fn replies(&mut self) -> Replies<'_> {
        Replies {
            terms: &self.terms,
            memory: &self.memory,
            cells: &mut self.cells,
            sender: &mut self.sender,
        }
    }
}

/// A request that has a piece to be cut, its cells if it is answered whole, and the piece's range.
fn next_piece(
    requests: &mut Requests<CellList>,
    index: u16,
) -> Option<(&mut Request, &mut CellList, Range)> {
    let (request, whole) = requests.get(index)?;
    let range = request.next_range()?;
    Some((request, whole, range))
}
