//! An open volume: its channel, its buffers, requests in flight and whom their answers are for.
//!
//! | state | means | becomes |
//! |---|---|---|
//! | live | requests are taken | closing, by [`Volume::close`]; ended, if the channel ends |
//! | closing | nothing is in flight soon; then the volume is closed | ended; cut off, by [`Volume::cut_off`] |
//! | cut off | nobody waits for its answers | ended |
//! | ended | nothing is taken any more; every request was given back | - |
//!
//! Invariants
//! - Whoever submits has acquired a place before, so that the channel never refuses a request but because it has ended.
//! - Places of requests that the pool's policy may keep waiting for room (writes, zeros) and of all others are apart: when a pool is full,
//!   reads and flushes go on.
//! - A read's place is free again when its buffer is given back, the others' when the volume has answered.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use archipelago_nbd_protocol::command::Command;
use archipelago_nbd_protocol::losses::Losses;
use archipelago_nbd_protocol::offer::{BLOCK_MAX, PIECE_MAX};
use archipelago_nbd_protocol::pieces::Range;
use archipelago_nbd_protocol::reply::errno;
use archipelago_protocol::{Error, ErrorCode, Name};
use archipelago_segment::{Buffer, Finished, Request, SubmitError, VolumeClient, VolumeOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::end::End;

/// Buffers of a volume for reads: as much as the longest read, which has to be whole before it is answered to a client without structured
/// replies. Only what is used takes memory.
const READS: usize = (BLOCK_MAX / PIECE_MAX) as usize;
/// Buffers for writes.
const WRITES: usize = 64;
/// Requests without data in flight: together what a channel has beside those with buffers.
const BARE_REQUESTS: usize = 4;
const FLUSHES: usize = 4;
/// The channel of a volume.
pub(crate) const OPTIONS: VolumeOptions = VolumeOptions {
    buffers: READS + WRITES,
    buffer_len: PIECE_MAX as usize,
};
/// Between two lines about requests that fail.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// The token of the request that closes the volume.
const CLOSE: u64 = u64::MAX;

/// What a client has to know of an export.
#[derive(Debug, Clone)]
pub(crate) struct Export {
    pub(crate) name: Name,
    /// Bytes.
    pub(crate) size: u64,
    /// Writes are refused.
    pub(crate) read_only: bool,
}

/// Whoever is answered.
pub(crate) trait Requester {
    /// The volume has answered a piece; a read's `buffer` is to be given back.
    fn piece_done(
        &self,
        request: u16,
        piece: u16,
        range: Range,
        result: Result<(), ErrorCode>,
        buffer: Option<Buffer>,
    );
}

/// What a request in flight occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A buffer, until what is in it has been copied.
    Read,
    /// A buffer.
    Write,
    /// No buffer: trim and zeros.
    Bare,
    /// No buffer.
    Flush,
}

impl Place {
    pub(crate) fn of(command: Command) -> Place {
        match command {
            Command::Read | Command::BlockStatus { .. } => Place::Read,
            Command::Write { .. } => Place::Write,
            Command::Trim { .. } | Command::WriteZeroes { .. } => Place::Bare,
            Command::Flush | Command::Disconnect | Command::Cache => Place::Flush,
        }
    }
}

/// Places that are free.
struct Places {
    reads: Semaphore,
    writes: Semaphore,
    bare: Semaphore,
    flushes: Semaphore,
}

impl Places {
    const COUNT: usize = READS + WRITES + BARE_REQUESTS + FLUSHES;

    fn new() -> Places {
        Places {
            reads: Semaphore::new(READS),
            writes: Semaphore::new(WRITES),
            bare: Semaphore::new(BARE_REQUESTS),
            flushes: Semaphore::new(FLUSHES),
        }
    }

    fn get(&self, place: Place) -> &Semaphore {
        match place {
            Place::Read => &self.reads,
            Place::Write => &self.writes,
            Place::Bare => &self.bare,
            Place::Flush => &self.flushes,
        }
    }

    fn close(&self) {
        for place in [Place::Read, Place::Write, Place::Bare, Place::Flush] {
            self.get(place).close();
        }
    }
}

/// A piece of a request in flight.
pub(crate) struct Flight {
    /// Whose.
    pub(crate) requester: Rc<dyn Requester>,
    /// Place of the request there.
    pub(crate) request: u16,
    /// Number of the piece.
    pub(crate) piece: u16,
    pub(crate) place: Place,
    pub(crate) range: Range,
}

struct Channel {
    client: VolumeClient,
    /// By their tokens.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
}

impl Channel {
    /// # Errors
    /// [`End::Volume`] if it has ended.
    fn submit(&mut self, flight: Flight, request: Request) -> Result<(), End> {
        let Some(place) = self.free.pop() else {
            debug_assert!(false, "whoever submits has a place");
            return Err(End::Volume);
        };
        match self.client.submit(place as u64, request) {
            Ok(()) => self.flights[place] = Some(flight),
            Err(refused) => {
                debug_assert!(!matches!(refused, SubmitError::Full(_)));
                self.free.push(place);
                return Err(End::Volume);
            }
        }
        Ok(())
    }

    fn take(&mut self, token: u64) -> Option<Flight> {
        let place = usize::try_from(token).ok()?;
        let flight = self.flights.get_mut(place)?.take()?;
        self.free.push(place);
        Some(flight)
    }
}

/// Requests that have failed, as the log has them.
#[derive(Default)]
struct Failures {
    next_line: Cell<Option<Instant>>,
    /// Since the last line.
    unsaid: Cell<u64>,
}

impl Failures {
    fn log(&self, name: &Name, command: Command, offset: u64, code: ErrorCode) {
        let now = Instant::now();
        if self.next_line.get().is_some_and(|next| now < next) {
            return self.unsaid.set(self.unsaid.get() + 1);
        }
        self.next_line.set(Some(now + LINE_INTERVAL));
        let unsaid = self.unsaid.take();
        tracing::warn!(
            "`{name}`: {command:?} at {offset} fails: {code} ({:?}); {unsaid} others since the last such line",
            errno(code)
        );
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Live,
    Closing,
    CloseSent,
    CutOff,
    Ended(Result<(), ErrorCode>),
}

/// An open volume, for all clients of its export.
pub(crate) struct Volume {
    export: Export,
    channel: RefCell<Channel>,
    state: Cell<State>,
    places: Places,
    /// Wakes the task that takes answers.
    doorbell: Notify,
    end: Notify,
    /// Acknowledged writes that were lost, to be reported to each client.
    pub(crate) losses: Losses,
    failures: Failures,
    /// Clients that use it.
    pub(crate) users: Cell<usize>,
}

impl Volume {
    /// Begins with `client`; a task of its own takes the answers.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn start(export: Export, client: VolumeClient) -> Result<Rc<Volume>, Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::new(ErrorCode::Io, format!("waiting for the channel: {error}"))
        };
        let descriptor = client
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| failed(&error))?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd is what that asks for: one open descriptor for as long as it lives"
        )]
        let readiness = AsyncFd::with_interest(descriptor, Interest::READABLE)
            .map_err(|error| failed(&error))?;
        let volume = Rc::new(Volume {
            export,
            channel: RefCell::new(Channel {
                client,
                flights: (0..Places::COUNT).map(|_| None).collect(),
                free: (0..Places::COUNT).rev().collect(),
            }),
            state: Cell::new(State::Live),
            places: Places::new(),
            doorbell: Notify::new(),
            end: Notify::new(),
            losses: Losses::default(),
            failures: Failures::default(),
            users: Cell::new(0),
        });
        tokio::task::spawn_local(Rc::clone(&volume).take_answers(readiness));
        Ok(volume)
    }

    pub(crate) fn export(&self) -> &Export {
        &self.export
    }

    pub(crate) fn name(&self) -> &Name {
        &self.export.name
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.state.get(), State::Ended(_))
    }

    /// Returns when it has ended.
    pub(crate) async fn ended(&self) {
        self.result().await.unwrap_or_default();
    }

    async fn result(&self) -> Result<(), ErrorCode> {
        loop {
            let end = self.end.notified();
            if let State::Ended(result) = self.state.get() {
                return result;
            }
            end.await;
        }
    }

    /// Acquires `count` places; each belongs to the next request of the caller.
    ///
    /// # Errors
    /// [`End::Volume`] if it has ended.
    pub(crate) async fn acquire(&self, place: Place, count: u32) -> Result<(), End> {
        let places = self.places.get(place).acquire_many(count).await;
        places.map_err(|_closed| End::Volume)?.forget();
        Ok(())
    }

    /// The buffer of an acquired place.
    ///
    /// # Errors
    /// [`End::Volume`] if it has ended.
    pub(crate) fn buffer(&self) -> Result<Buffer, End> {
        let channel = self.channel.borrow();
        channel.client.buffers().acquire().ok_or(End::Volume)
    }

    /// Sends a request, for which a place was acquired; its answer goes to the flight's requester.
    ///
    /// # Errors
    /// [`End::Volume`] if it has ended.
    pub(crate) fn submit(&self, flight: Flight, request: Request) -> Result<(), End> {
        self.channel.borrow_mut().submit(flight, request)
    }

    /// The data of a read's `buffer` is where it belongs.
    pub(crate) fn give_back(&self, buffer: Buffer) {
        drop(buffer);
        self.places.reads.add_permits(1);
    }

    /// Logs a failure that a client gets, at a bounded rate.
    pub(crate) fn log_failure(&self, command: Command, offset: u64, code: ErrorCode) {
        self.failures.log(self.name(), command, offset, code);
    }

    /// Makes everything durable and closes it; nobody uses it any more.
    ///
    /// # Errors
    /// What was lost.
    pub(crate) async fn close(&self) -> Result<(), ErrorCode> {
        if self.state.get() == State::Live {
            self.state.set(State::Closing);
            self.doorbell.notify_one();
        }
        self.result().await
    }

    /// Gives up a volume that takes too long to be closed: the channel ends, and the node closes the volume by itself.
    pub(crate) fn cut_off(&self) {
        if !self.is_ended() {
            self.state.set(State::CutOff);
            self.doorbell.notify_one();
        }
    }

    async fn take_answers(self: Rc<Self>, readiness: AsyncFd<OwnedFd>) {
        let result = loop {
            if let Some(result) = self.take_finished() {
                break result;
            }
            let may_sleep = self.channel.borrow_mut().client.prepare_sleep();
            if may_sleep {
                tokio::select! {
                    ready = readiness.readable() => match ready {
                        Ok(mut ready) => ready.clear_ready(),
                        Err(_) => break Err(ErrorCode::Io),
                    },
                    () = self.doorbell.notified() => {}
                }
            } else {
                // Others are served in between.
                tokio::task::yield_now().await;
            }
            self.channel.borrow_mut().client.wake();
        };
        self.state.set(State::Ended(result));
        self.places.close();
        self.end.notify_waiters();
        // What is in flight holds its requester, and that this volume.
        let flights = std::mem::take(&mut self.channel.borrow_mut().flights);
        drop(flights);
    }

    /// Takes what is done; the result once everything has ended.
    fn take_finished(&self) -> Option<Result<(), ErrorCode>> {
        if self.state.get() == State::CutOff {
            return Some(Err(ErrorCode::Unavailable));
        }
        loop {
            let mut channel = self.channel.borrow_mut();
            let Some(finished) = channel.client.next() else {
                let is_idle = channel.client.in_flight() == 0;
                if channel.client.is_gone() && is_idle {
                    return Some(Err(ErrorCode::Unavailable));
                }
                if self.state.get() == State::Closing && is_idle {
                    // A channel that refuses it has gone: seen in the next turn.
                    let _sent = channel.client.submit(CLOSE, Request::Close);
                    self.state.set(State::CloseSent);
                    continue;
                }
                return None;
            };
            if finished.token == CLOSE {
                return Some(finished.result);
            }
            let flight = channel.take(finished.token);
            // Nothing is known of a request that was lost with the channel: its client is cut off, and asks again.
            let is_lost = channel.client.is_gone();
            drop(channel);
            if let (Some(flight), false) = (flight, is_lost) {
                self.hand_over(flight, finished);
            }
        }
    }

    fn hand_over(&self, flight: Flight, finished: Finished) {
        let Flight {
            requester,
            request,
            piece,
            place,
            range,
        } = flight;
        let mut buffer = finished.buffer;
        if place != Place::Read {
            drop(buffer.take());
            self.places.get(place).add_permits(1);
        }
        requester.piece_done(request, piece, range, finished.result, buffer);
    }
}
