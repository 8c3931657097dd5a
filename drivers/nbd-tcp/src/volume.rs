//! An open volume: its channel, requests in flight and whom their answers are for.
//!
//! | state | means | becomes |
//! |---|---|---|
//! | live | requests are taken | closing, by [`Volume::close`]; ended, if the channel ends and is not kept |
//! | closing | nothing is in flight soon; then the volume is closed | ended; cut off, by [`Volume::cut_off`] |
//! | cut off | nobody waits for its answers | ended |
//! | ended | nothing is taken any more; every request was given back | - |
//!
//! A volume that is live or closing may be away from its channel: its requests wait, and nobody else gets the volume meanwhile
//! ([`archipelago_kept_volume`]).
//!
//! Invariants
//! - Whoever submits has acquired a place before, so that the channel never refuses a request but because it has ended.
//! - Nobody acquires a place while the channel is away, but when it has been away for too long: then each request fails at once.
//! - A read's place is free again when its buffer is given back, the others' when the volume has answered.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use archipelago_kept_volume::{Channel, Connection, Opener, Outage, Return};
use archipelago_nbd_protocol::command::Command;
use archipelago_nbd_protocol::losses::Losses;
use archipelago_nbd_protocol::reply::errno;
use archipelago_protocol::{Error, ErrorCode, Name};
use archipelago_runtime::SystemClock;
use archipelago_segment::{Buffer, Request, VolumeClient};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::end::End;
use crate::flights::{Answered, Flight, Flights};
use crate::places::{Place, Places};
use crate::wakeups::Wakeups;

/// Between two lines about requests that fail.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Until a thread is asked for again that the kernel has refused.
const THREAD_RETRY: Duration = Duration::from_secs(1);
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
    flights: RefCell<Flights>,
    state: Cell<State>,
    places: Places,
    /// Wakes the task that takes answers.
    doorbell: Notify,
    /// The channel is back, or has been away for too long.
    returned: Notify,
    end: Notify,
    /// Acknowledged writes that were lost, to be reported to each client.
    pub(crate) losses: Losses,
    failures: Failures,
    /// Clients that use it.
    pub(crate) users: Cell<usize>,
}

impl Volume {
    /// Begins with `connection`, which `opener` has opened; a task of its own takes the answers. Requests wait for `wait_max` when the
    /// channel is away.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn start(
        export: Export,
        opener: Opener,
        connection: Connection,
        wait_max: Duration,
    ) -> Result<Rc<Volume>, Error> {
        let wakeups = Wakeups::new(std::os::fd::AsFd::as_fd(&connection.client));
        let wakeups = wakeups.map_err(|error| {
            Error::new(ErrorCode::Io, format!("waiting for the channel: {error}"))
        })?;
        let volume = Rc::new(Volume {
            export,
            channel: RefCell::new(Channel::opened(opener, connection)),
            flights: RefCell::new(Flights::new(Outage::new(wait_max, SystemClock))),
            state: Cell::new(State::Live),
            places: Places::new(),
            doorbell: Notify::new(),
            returned: Notify::new(),
            end: Notify::new(),
            losses: Losses::default(),
            failures: Failures::default(),
            users: Cell::new(0),
        });
        tokio::task::spawn_local(Rc::clone(&volume).take_answers(wakeups));
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

    /// Whether its channel is being opened again.
    pub(crate) fn is_away(&self) -> bool {
        self.channel.borrow().is_away()
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

    /// Acquires `count` places; each belongs to the next request of the caller, who submits it before anything else is waited for.
    ///
    /// # Errors
    /// [`End::Volume`] if it has ended.
    pub(crate) async fn acquire(&self, place: Place, count: u32) -> Result<(), End> {
        let acquired = self.places.acquire(place, count, self.answering()).await;
        acquired.map_err(|_closed| End::Volume)
    }

    /// Returns when requests are sent or fail, not while they would only wait for the channel.
    async fn answering(&self) {
        loop {
            let returned = self.returned.notified();
            if !self.is_away() || self.flights.borrow().outage().is_over_limit() {
                return;
            }
            returned.await;
        }
    }

    /// Sends a request, for which a place was acquired, with the `data` of a write; its answer goes to the flight's requester.
    ///
    /// # Errors
    /// [`End::Volume`] if it has ended.
    pub(crate) fn submit(&self, flight: Flight, data: &[u8]) -> Result<(), End> {
        if self.is_ended() {
            return Err(End::Volume);
        }
        let mut channel = self.channel.borrow_mut();
        let refused = self
            .flights
            .borrow_mut()
            .submit(&mut *channel, flight, data);
        drop(channel);
        if let Some(flight) = refused {
            self.hand_over(flight, Err(ErrorCode::Unavailable), None);
        }
        Ok(())
    }

    /// The data of a read's `buffer` is where it belongs.
    pub(crate) fn give_back(&self, buffer: Buffer) {
        drop(buffer);
        self.places.get(Place::Read).add_permits(1);
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

    async fn take_answers(self: Rc<Self>, mut wakeups: Wakeups) {
        let result = loop {
            if let Some(result) = self.take_finished() {
                break result;
            }
            match self.follow_channel(&mut wakeups) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(code) => break Err(code),
            }
            if self.sleep(&wakeups).await.is_err() {
                break Err(ErrorCode::Io);
            }
        };
        self.state.set(State::Ended(result));
        self.places.close();
        self.end.notify_waiters();
        self.returned.notify_waiters();
        // What is under way holds its requester, and that this volume.
        let none = Flights::new(Outage::new(Duration::ZERO, SystemClock));
        drop(self.flights.replace(none));
        self.channel.borrow_mut().give_up();
    }

    /// Takes what is done; the result once everything has ended.
    fn take_finished(&self) -> Option<Result<(), ErrorCode>> {
        if self.state.get() == State::CutOff {
            return Some(Err(ErrorCode::Unavailable));
        }
        loop {
            let mut channel = self.channel.borrow_mut();
            let Some(finished) = channel.client().and_then(VolumeClient::next) else {
                break;
            };
            if finished.token == CLOSE {
                return Some(finished.result);
            }
            let answered = self.flights.borrow_mut().finished(finished, &mut *channel);
            drop(channel);
            if let Some(Answered {
                flight,
                result,
                buffer,
            }) = answered
            {
                self.hand_over(flight, result, buffer);
            }
        }
        if self.state.get() != State::Closing || !self.flights.borrow().is_empty() {
            return None;
        }
        let mut channel = self.channel.borrow_mut();
        if channel.is_away() {
            // What was answered outlives the death of a process: there is nothing to close.
            return Some(Ok(()));
        }
        // A channel that refuses it has gone: seen in the next turn.
        let sent = channel
            .live()
            .is_some_and(|client| client.submit(CLOSE, Request::Close).is_ok());
        if sent {
            self.state.set(State::CloseSent);
        }
        None
    }

    /// Follows the channel: its end, its return, the limit of what waits for that. Whether anything has changed.
    ///
    /// # Errors
    /// The end of a volume that is not kept, or that others may have had.
    fn follow_channel(&self, wakeups: &mut Wakeups) -> Result<bool, ErrorCode> {
        let name = self.name();
        let mut channel = self.channel.borrow_mut();
        if let Some(back) = channel.come_back(&wakeups.doorbell) {
            self.came_back(back, &mut channel, wakeups)?;
            return Ok(true);
        }
        if self.flights.borrow().outage().is_over_limit() {
            drop(channel);
            return Ok(self.fail_waiting());
        }
        if channel.client().is_none_or(|client| !client.is_gone()) {
            return Ok(false);
        }
        if !channel.leave(&wakeups.doorbell) {
            return Err(ErrorCode::Unavailable);
        }
        wakeups.channel_left();
        self.flights.borrow_mut().channel_left();
        tracing::warn!("the channel of `{name}` has ended: its requests wait for the next one");
        Ok(true)
    }

    fn came_back(
        &self,
        back: Return,
        channel: &mut Channel,
        wakeups: &mut Wakeups,
    ) -> Result<(), ErrorCode> {
        let name = self.name();
        match back {
            Return::Live { lost, .. } => {
                if let Some(descriptor) = channel.descriptor() {
                    let watched = wakeups.channel_returned(descriptor);
                    watched.map_err(|error| {
                        tracing::error!("waiting for the channel of `{name}`: {error}");
                        ErrorCode::Io
                    })?;
                }
                if lost {
                    tracing::error!("`{name}`: written data was lost; the next flush fails");
                    self.losses.add();
                }
                let (away, count) = self.flights.borrow_mut().channel_returned(channel);
                tracing::info!("`{name}` is back after {away:?}: {count} requests are sent again");
                self.returned.notify_waiters();
                Ok(())
            }
            Return::Ended(error) => {
                tracing::error!(
                    "`{name}` is not served any more to who uses it: {error} ({})",
                    error.hint
                );
                Err(error.code)
            }
        }
    }

    /// Fails what has waited for the channel for too long; whether anything has.
    fn fail_waiting(&self) -> bool {
        self.returned.notify_waiters();
        let waiting = self.flights.borrow_mut().take_unanswered();
        let mut any = false;
        for (flight, buffer) in waiting {
            any = true;
            self.hand_over(flight, Err(ErrorCode::Unavailable), buffer);
        }
        any
    }

    async fn sleep(&self, wakeups: &Wakeups) -> io::Result<()> {
        let may_sleep = match self.channel.borrow_mut().client() {
            Some(client) => client.prepare_sleep(),
            None => true,
        };
        if may_sleep {
            let longest = self.sleep_max();
            let late = async {
                match longest {
                    Some(longest) => tokio::time::sleep(longest).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = wakeups.ready() => ready?,
                () = self.doorbell.notified() => {}
                () = late => {}
            }
        } else {
            // Others are served in between.
            tokio::task::yield_now().await;
        }
        if let Some(client) = self.channel.borrow_mut().client() {
            client.wake();
        }
        Ok(())
    }

    /// How long to sleep at most: until requests wait no more.
    fn sleep_max(&self) -> Option<Duration> {
        if self.channel.borrow().wants_thread() {
            return Some(THREAD_RETRY);
        }
        let left = self.flights.borrow().outage().left()?;
        // Behind the moment, not a part of a millisecond before it.
        (left > Duration::ZERO).then(|| left + Duration::from_millis(1))
    }

    fn hand_over(&self, flight: Flight, result: Result<(), ErrorCode>, mut buffer: Option<Buffer>) {
        let place = Place::of(flight.command);
        if place != Place::Read {
            drop(buffer.take());
        }
        // Whoever gets a buffer gives the place back with it.
        if buffer.is_none() {
            self.places.get(place).add_permits(1);
        }
        let Flight {
            requester,
            request,
            piece,
            range,
            ..
        } = flight;
        requester.piece_done(request, piece, range, result, buffer);
    }
}
