//! The server of one export, on the data thread: its listener, its connections, its volume.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use archipelago_endpoint::{
    Activity, Clients, Driver, EndpointVolume, Report, Seed, Shortage, Throttle, Wakeups,
};
use archipelago_protocol::Lineage;
use archipelago_protocol::volume::{OnFull, Volumes};
use archipelago_runtime::Progress;
use tracing::{info, warn};

use crate::config::{AttachConfig, CONNECT_INTERVAL, CONNECTIONS_MAX, CONNECTS};
use crate::connection::{Connection, Stage};
use crate::detaching::Detaching;
use crate::memory::Memory;
use crate::negotiation::Negotiated;
use crate::piece::Cookie;
use crate::shared::{DetachRequest, Shared};
use crate::transmission::Transmission;
use archipelago_nbd_protocol::losses::Losses;
use archipelago_nbd_protocol::offer::Offer;
use archipelago_nbd_protocol::request::Terms;

/// Mark of the listener's descriptor.
const MARK_LISTENER: u8 = 62;
const MARK_DOORBELL: u8 = 63;
/// Most reports of the volume handled in one turn.
const REPORTS_PER_TURN: usize = 256;
/// Most clients accepted in one turn.
const ACCEPTS_PER_TURN: usize = 4;
/// Pause after a failure to accept a client.
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);
/// Log lines about clients that misbehave: a burst, and one more in each interval.
const LINES: u32 = 8;
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// What the data thread needs to make the server; comes with its [`Endpoint`](crate::Endpoint).
#[derive(Debug)]
pub struct ServerSeed {
    pub(crate) config: AttachConfig,
    pub(crate) shared: Arc<Shared>,
    pub(crate) listener: UnixListener,
    pub(crate) requests: Receiver<DetachRequest>,
    pub(crate) doorbell: OwnedFd,
}

impl ServerSeed {
    /// Makes the server; called on the data thread.
    ///
    /// # Errors
    /// If listener or doorbell cannot be watched.
    pub fn build<V: Volumes, W: Wakeups>(
        self,
        volumes: V,
        mut wakeups: W,
    ) -> std::io::Result<Server<V, W>> {
        wakeups.watch_marked(self.doorbell, MARK_DOORBELL)?;
        let listening = OwnedFd::from(self.listener.try_clone()?);
        wakeups.watch_marked(listening, MARK_LISTENER)?;
        Ok(Server {
            volume: EndpointVolume::new(volumes, &self.config.volume),
            config: self.config,
            shared: self.shared,
            wakeups,
            entrance: Entrance::new(self.listener),
            detaching: Detaching::new(self.requests),
            connections: std::array::from_fn(|_| None),
            lines: Throttle::new(LINES, LINE_INTERVAL),
            logged_errors: 0,
            losses: Losses::default(),
            served: Clients::Served,
        })
    }
}

/// The listening socket.
#[derive(Debug)]
struct Entrance {
    listener: UnixListener,
    throttle: Throttle,
    /// Clients may wait there.
    signalled: bool,
    /// No client is accepted before this time: too many came, or accepting failed.
    paused_until: Option<Duration>,
}

impl Entrance {
    fn new(listener: UnixListener) -> Self {
        Entrance {
            listener,
            throttle: Throttle::new(CONNECTS, CONNECT_INTERVAL),
            signalled: true,
            paused_until: None,
        }
    }

    /// Handles a failure to accept a client.
    fn refused(&mut self, error: &std::io::Error, now: Duration) {
        match error.kind() {
            std::io::ErrorKind::WouldBlock => self.signalled = false,
            std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::Interrupted => {}
            // No descriptor or no memory: the client waits until there is.
            _ => self.paused_until = Some(now + ACCEPT_AGAIN),
        }
    }
}

/// The NBD server of one volume. Lives on one thread; made by [`ServerSeed::build`].
pub struct Server<V, W> {
    config: AttachConfig,
    shared: Arc<Shared>,
    wakeups: W,
    volume: EndpointVolume<V>,
    entrance: Entrance,
    detaching: Detaching,
    connections: [Option<Connection>; CONNECTIONS_MAX],
    lines: Throttle,
    /// Errors of clients that were logged.
    logged_errors: u64,
    /// Acknowledged writes that were lost, to be reported to each connection.
    losses: Losses,
    /// Whether clients wait for answers.
    served: Clients,
}

impl<V: Volumes, W: Wakeups> Server<V, W> {
    /// Handles what has been signalled.
    fn take_signals(&mut self) {
        let marks = self.wakeups.take_marks();
        if marks == 0 {
            return;
        }
        for connection in self.connections.iter_mut().flatten() {
            connection.signal(marks);
        }
        self.entrance.signalled |= marks & 1 << MARK_LISTENER != 0;
        if marks & 1 << MARK_DOORBELL != 0 {
            self.take_requests();
        }
    }

    fn take_requests(&mut self) {
        let in_use = self.transmissions().count();
        if !self.detaching.take_requests(in_use) {
            return;
        }
        for connection in self.connections.iter_mut().flatten() {
            connection.shut_down();
        }
    }

    fn transmissions(&self) -> impl Iterator<Item = &Transmission> {
        let stages = self.connections.iter().flatten().map(|it| &it.stage);
        stages.filter_map(|stage| match stage {
            Stage::Transmission(transmission) => Some(&**transmission),
            _ => None,
        })
    }

    /// Accepts clients.
    fn accept(&mut self) -> bool {
        if !self.entrance.signalled || self.detaching.has_begun() {
            return false;
        }
        let now = self.wakeups.now();
        if self.entrance.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        self.entrance.paused_until = None;
        let mut any = false;
        for _ in 0..ACCEPTS_PER_TURN {
            let socket = match self.entrance.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) => {
                    self.entrance.refused(&error, now);
                    break;
                }
            };
            any = true;
            let wait = self.entrance.throttle.count(1, now);
            if !wait.is_zero() {
                self.entrance.paused_until = Some(now + wait);
            }
            let Some(place) = self.connections.iter().position(Option::is_none) else {
                self.shared.metrics.turned_away.add(1);
                if self.may_log() {
                    let export = &self.config.export;
                    warn!(%export, "an NBD client was refused: the export already has {CONNECTIONS_MAX} connections, its maximum");
                }
                continue;
            };
            let index = u8::try_from(place).expect("a few connections");
            let deadline = now + self.config.handshake_max;
            match Connection::new(socket, index, deadline, &mut self.wakeups) {
                Ok(connection) => self.connections[place] = Some(connection),
                Err(error) => {
                    warn!(export = %self.config.export, %error, "an NBD client cannot be served");
                }
            }
            if self.entrance.paused_until.is_some() {
                break;
            }
        }
        any
    }

    /// Whether a line about a client may be logged now.
    fn may_log(&mut self) -> bool {
        let now = self.wakeups.now();
        self.lines.count(1, now).is_zero()
    }

    /// Handles the reports of the volume.
    fn take_reports(&mut self) -> bool {
        let mut any = false;
        for _ in 0..REPORTS_PER_TURN {
            let now = || self.wakeups.now();
            let Some(report) = self.volume.next_report(self.served, now) else {
                break;
            };
            any = true;
            match report {
                Report::Done { cookie, result } => {
                    let cookie = Cookie::decode(cookie);
                    let connection = self.connections.get_mut(usize::from(cookie.place));
                    if let Some(Some(connection)) = connection
                        && let Stage::Transmission(transmission) = &mut connection.stage
                    {
                        transmission.done(cookie, result, &self.losses, &self.shared.metrics);
                    } else {
                        debug_assert!(false, "the volume has answered what was not asked");
                    }
                }
                Report::Size(size) => self.shared.set_size(size),
                Report::OpenFailed => self.shared.metrics.open_failures.add(1),
                Report::Closed => {}
            }
        }
        any
    }

    fn poll_connections(&mut self) -> bool {
        let mut busy = false;
        for place in 0..CONNECTIONS_MAX {
            let Some(connection) = &self.connections[place] else {
                continue;
            };
            busy |= match &connection.stage {
                Stage::Handshake(_) => self.negotiate(place),
                Stage::Transmission(_) => self.transmit(place),
                Stage::Over => true,
            };
            self.end_if_over(place);
        }
        busy
    }

    fn negotiate(&mut self, place: usize) -> bool {
        let Some(connection) = &mut self.connections[place] else {
            return false;
        };
        let Stage::Handshake(negotiation) = &mut connection.stage else {
            return false;
        };
        let offer = Offer {
            name: &self.config.export,
            size: self.shared.size(),
            read_only: self.config.volume.read_only,
        };
        let mut broken = None;
        match negotiation.poll(&connection.socket, &offer) {
            Negotiated::Continues => return true,
            Negotiated::Waits if self.wakeups.now() < negotiation.deadline => return false,
            Negotiated::Blocked if self.wakeups.now() < negotiation.deadline => {
                connection.await_room(&mut self.wakeups);
                return false;
            }
            Negotiated::Waits | Negotiated::Blocked => {
                self.shared.metrics.handshake_timeouts.add(1);
                connection.stage = Stage::Over;
            }
            Negotiated::Agreed(terms) => self.begin(place, terms),
            Negotiated::Ended(why) => {
                broken = why;
                connection.stage = Stage::Over;
            }
        }
        if let Some(why) = broken {
            self.shared.metrics.violations.add(1);
            if self.may_log() {
                warn!(export = %self.config.export, error = %why, "the handshake of an NBD client is broken off");
            }
        }
        true
    }

    /// Begins the transmission of the client at `place`.
    fn begin(&mut self, place: usize, terms: Terms) {
        let memory = Memory::new(self.volume.peer());
        let log = self.may_log();
        let reported = self.losses.reported();
        let Some(connection) = &mut self.connections[place] else {
            return;
        };
        let export = &self.config.export;
        connection.stage = match memory {
            Ok(memory) => {
                self.shared.metrics.connections.add(1);
                if log {
                    info!(%export, structured = terms.structured, "an NBD client is connected");
                }
                let place = u8::try_from(place).expect("a few connections");
                Stage::Transmission(Box::new(Transmission::new(place, terms, memory, reported)))
            }
            Err(code) => {
                warn!(%export, "an NBD client cannot be served, its memory cannot be shown to the pool: {code}");
                Stage::Over
            }
        };
    }

    fn transmit(&mut self, place: usize) -> bool {
        let Some(connection) = &mut self.connections[place] else {
            return false;
        };
        let Stage::Transmission(transmission) = &mut connection.stage else {
            return false;
        };
        let turn = transmission.poll(&connection.socket, &mut self.volume, &self.shared);
        if turn.blocked {
            connection.await_room(&mut self.wakeups);
        }
        if let Some(violation) = turn.violation {
            self.shared.metrics.violations.add(1);
            if self.may_log() {
                warn!(export = %self.config.export, error = %violation, "the connection of an NBD client is broken off");
            }
        }
        turn.busy
    }

    fn end_if_over(&mut self, place: usize) {
        let is_over = self.connections[place]
            .as_ref()
            .is_some_and(|connection| match &connection.stage {
                Stage::Handshake(_) => false,
                Stage::Transmission(transmission) => transmission.is_over(),
                Stage::Over => true,
            });
        if !is_over {
            return;
        }
        let Some(mut connection) = self.connections[place].take() else {
            return;
        };
        let stage = std::mem::replace(&mut connection.stage, Stage::Over);
        if let Stage::Transmission(transmission) = stage {
            transmission.into_memory().end(self.volume.peer());
        }
        connection.end(&mut self.wakeups);
        // A client may wait for the place.
        self.entrance.signalled = true;
    }

    /// Opens and closes the volume as the connections need it.
    fn settle_volume(&mut self) -> bool {
        let (mut all, mut served, mut in_flight) = (0, 0, 0);
        for transmission in self.transmissions() {
            all += 1;
            served += u64::from(transmission.is_served());
            in_flight += u64::from(transmission.in_flight());
        }
        self.shared.metrics.connected.set(all);
        self.shared.metrics.in_flight.set(in_flight);
        let clients = match served {
            0 if in_flight > 0 => Clients::Dropped,
            _ => Clients::Served,
        };
        if clients != self.served {
            self.served = clients;
            match clients {
                // The clients of the requests that wait for space have disconnected.
                Clients::Dropped => self.volume.stop_waiting(),
                Clients::Served => self.volume.wait_again(),
            }
        }
        let busy = self
            .volume
            .settle(served > 0, all == 0, || self.wakeups.now());
        if self.detaching.has_begun() && all == 0 && self.volume.is_closed() {
            self.shared.finish();
            self.detaching.finish();
        }
        busy
    }

    /// Logs that clients get errors.
    fn report_errors(&mut self) {
        let errors = self.shared.metrics.errors.get();
        let fresh = errors.wrapping_sub(self.logged_errors);
        if fresh > 0 && self.may_log() {
            self.logged_errors = errors;
            warn!(export = %self.config.export, volume = %self.config.volume.lineage, "NBD clients get errors: {fresh} more requests have failed, {errors} since the volume was attached");
        }
    }
}

impl<V, W> Seed<V, W> for ServerSeed
where
    V: Volumes + 'static,
    W: Wakeups + 'static,
{
    fn build(self: Box<Self>, volumes: V, wakeups: W) -> std::io::Result<Box<dyn Driver>> {
        Ok(Box::new(ServerSeed::build(*self, volumes, wakeups)?))
    }
}

impl<V: Volumes, W: Wakeups> Driver for Server<V, W> {
    fn lineage(&self) -> Lineage {
        self.config.volume.lineage
    }

    fn poll(&mut self) -> Progress {
        self.take_signals();
        if self.is_finished() {
            return Progress::Idle;
        }
        let mut busy = self.accept();
        busy |= self.take_reports();
        busy |= self.poll_connections();
        busy |= self.settle_volume();
        self.report_errors();
        if busy { Progress::Busy } else { Progress::Idle }
    }

    fn prepare_sleep(&mut self) -> Activity {
        let deadlines = self
            .connections
            .iter()
            .flatten()
            .filter_map(|it| match &it.stage {
                Stage::Handshake(negotiation) => Some(negotiation.deadline),
                _ => None,
            });
        let paused = self
            .entrance
            .paused_until
            .filter(|_| self.entrance.signalled);
        let due = deadlines.chain(paused).chain(self.volume.due()).min();
        if let Some(due) = due {
            self.wakeups.alarm(due);
        }
        // Anything else that comes is signalled: a poll with work left would not have returned idle.
        let mut waits = self.volume.changes();
        let stages = self.connections.iter().flatten().map(|it| &it.stage);
        for stage in stages {
            if let Stage::Transmission(transmission) = stage {
                waits |= transmission.waits_for_volume(self.volume.peer_ref());
            }
        }
        match waits {
            true => Activity::Waiting,
            false => Activity::Idle,
        }
    }

    fn wake(&mut self) {}

    fn set_on_full(&mut self, policy: OnFull) {
        self.volume.set_on_full(policy, self.served);
    }

    fn shortage(&self) -> Option<(Shortage, Duration)> {
        self.volume.shortage()
    }

    fn is_finished(&self) -> bool {
        self.shared.is_finished()
    }
}

impl<V, W> fmt::Debug for Server<V, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("export", &self.config.export)
            .finish_non_exhaustive()
    }
}
