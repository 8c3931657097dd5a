//! The end of a shared channel that sends requests. It continues when servers die and are replaced.
//!
//! | state | rings | requests submitted now |
//! |---|---|---|
//! | `Idle`: no connection; each call of `service` tries once | none | kept (`Replay`) or refused (`Report`) |
//! | `Greeting`: hello sent | none | as above |
//! | `Settling`: welcomed; regions go to the server | new, empty | as above |
//! | `Announcing`: all regions are answered; opened handles are announced to the server | working | as above |
//! | `Live`: the announcements are answered | working | sent |
//!
//! The change from `Announcing` to `Live` sends the requests in flight, in the order of submission. So a request reaches a server only
//! after the regions that it names, and after the handles that were open at the predecessor have been opened again. When the server
//! disconnects or breaks the protocol, every state returns to `Idle`.
//!
//! Invariants
//! - The private table decides which requests are in flight. An answer that matches no entry breaks the connection.
//! - Before requests in flight are sent again or forgotten, the answers that the dead server had published are collected and passed to the
//!   caller. Then the server's memory is released, so later changes by it have no effect.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::Violation;
use super::admission::is_own;
use super::announced::Announced;
use super::doorbell_fd::DoorbellFd;
use super::layout::{self, Direction, Header, RING_MAX};
use super::message::{Message, Refusal};
use super::reopened::{Announcing, Reopened};
use super::socket::{self, Received, Watch};
use crate::doorbell::{Doorbell, Sleeper};
use crate::entry::{COMPLETION_WORDS, Completion, SUBMISSION_WORDS, Submission};
use crate::inflight::InFlight;
use crate::mapping::{OwnHalf, PeerHalf};
use crate::port::{ClientPort, PortError};
use crate::region::{Region, RegionId};
use crate::ring::{Consumer, Producer};

/// Most messages handled in one call, as at the server.
const MESSAGES_PER_CALL: usize = 64;
/// What happens to requests in flight when the server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnServerDeath {
    /// They are sent again to the next server, in order: for requests that may be carried out twice.
    Replay,
    /// Those without an answer are forgotten, and the incarnation changes: the caller starts its work again after it has collected the
    /// answers that the dead server had published.
    Report,
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The role that the client claims; the callers define its meaning.
    pub role: u8,
    /// Identifies the client. A restarted client has the same number, so that its server does not take its requests before those of its
    /// predecessor are done.
    pub client_id: u64,
    /// Most requests in flight: a power of two up to 4096.
    pub ring_size: usize,
    /// Length of the arena in bytes.
    pub arena_len: usize,
    /// What happens to requests in flight when the server dies.
    pub on_server_death: OnServerDeath,
    /// Users that may be the server, besides this one and root.
    pub allowed_uids: Vec<u32>,
}

#[derive(Debug)]
struct Rings {
    requests: Producer<SUBMISSION_WORDS, OwnHalf, PeerHalf>,
    completions: Consumer<COMPLETION_WORDS, OwnHalf, PeerHalf>,
    sleeper: Sleeper<OwnHalf>,
    doorbell: Doorbell<PeerHalf>,
}

#[derive(Debug)]
struct Session {
    socket: OwnedFd,
    own: OwnHalf,
    request_doorbell: DoorbellFd,
}

#[derive(Debug)]
enum State {
    Idle,
    Greeting(Session),
    Settling(Session, Rings),
    Announcing(Session, Rings, Announcing),
    Live(Session, Rings),
}

/// What happens to answers that a server had published before its connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Published {
    /// It died: the answers are used.
    Taken,
    /// It violated the protocol: the answers are dropped, and its requests are sent to another server.
    Distrusted,
}

/// The end of a channel that sends requests to a server in another process.
#[derive(Debug)]
pub struct SharedClient {
    path: PathBuf,
    options: ConnectOptions,
    arena: Region,
    state: State,
    inflight: InFlight,
    /// Answers of a dead server that the caller has not collected yet.
    drained: VecDeque<(u64, Completion)>,
    regions: Announced,
    reopened: Reopened,
    incarnation: u64,
    completion_doorbell: DoorbellFd,
    watch: Watch,
    violations: u64,
    last_violation: Option<Violation>,
    refusal: Option<u64>,
}

impl SharedClient {
    /// Makes the client's end of a channel to the server at `path`, and sends a hello if a server is there already. Never waits: the other
    /// steps happen in [`SharedClient::service`], so the two processes may start in any order.
    ///
    /// # Errors
    /// `InvalidInput` for a ring size that is not a power of two up to 4096; otherwise the kernel's error, if memory cannot be mapped.
    pub fn connect(path: &Path, options: ConnectOptions) -> io::Result<SharedClient> {
        let size = options.ring_size;
        if !size.is_power_of_two() || size > RING_MAX {
            let text = format!("ring size {size} is not a power of two in 1..={RING_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut client = SharedClient {
            path: path.to_owned(),
            arena: Region::anonymous(options.arena_len)?,
            state: State::Idle,
            inflight: InFlight::new(size),
            drained: VecDeque::with_capacity(size),
            regions: Announced::default(),
            reopened: Reopened::default(),
            incarnation: 1,
            completion_doorbell: DoorbellFd::new()?,
            watch: Watch::new()?,
            violations: 0,
            last_violation: None,
            refusal: None,
            options,
        };
        client.greet();
        Ok(client)
    }

    /// Descriptors to watch for reading: the doorbell, and an epoll descriptor with the socket. They never change.
    #[must_use]
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.completion_doorbell.as_fd(), self.watch.as_fd()]
    }

    /// Number of requests submitted so far.
    #[must_use]
    pub fn submitted(&self) -> u64 {
        self.inflight.entered()
    }

    /// Requests submitted whose completions have not been collected.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inflight.len() + self.drained.len()
    }

    /// Number of violations of the protocol by servers, and the last one.
    #[must_use]
    pub fn violations(&self) -> (u64, Option<Violation>) {
        (self.violations, self.last_violation)
    }

    /// Whether the server refused this client because of its version: waiting does not help.
    #[must_use]
    pub fn is_refused_for_version(&self) -> bool {
        self.refusal == Some(Refusal::Version as u64)
    }

    /// Whether the server does not admit this user, or not in this role: waiting does not help.
    #[must_use]
    pub fn is_refused_for_credentials(&self) -> bool {
        self.refusal == Some(Refusal::Credentials as u64)
    }

    /// Handles messages from the socket, notices the server's death, and connects again. To be called when the second of
    /// [`SharedClient::fds`] is readable, and on every tick while the port is not connected. `true`: there may be more messages, call
    /// again.
    pub fn service(&mut self) -> bool {
        if matches!(self.state, State::Idle) {
            self.greet();
        }
        let mut more = true;
        for _ in 0..MESSAGES_PER_CALL {
            let (State::Greeting(session)
            | State::Settling(session, _)
            | State::Announcing(session, ..)
            | State::Live(session, _)) = &self.state
            else {
                more = false;
                break;
            };
            match socket::next(&session.socket) {
                Received::Nothing => {
                    more = false;
                    break;
                }
                Received::HungUp | Received::Message(Message::Goodbye, _) => {
                    self.lost(Published::Taken);
                    // The successor may be listening already.
                    self.greet();
                }
                Received::Message(message, descriptors) => self.handle(message, descriptors),
                Received::Unreadable(_) => self.violated(Violation::Message),
            }
        }
        self.send_regions();
        self.start_announcing();
        self.announce_again();
        more
    }

    /// Tries to connect once.
    fn greet(&mut self) {
        let Ok(socket) = socket::connect_to(&self.path) else {
            return;
        };
        match self.hello(socket) {
            Ok(session) => self.state = State::Greeting(session),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot greet the server");
            }
        }
    }

    fn hello(&mut self, socket: OwnedFd) -> io::Result<Session> {
        let server = socket::peer(&socket)?.uid;
        if !is_own(server) && !self.options.allowed_uids.contains(&server) {
            self.violations += 1;
            self.last_violation = Some(Violation::Credentials);
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        let own = OwnHalf::new(layout::memory_len(self.options.ring_size))?;
        self.header(Direction::ClientToServer).write(&own);
        let request_doorbell = DoorbellFd::new()?;
        let hello = Message::Hello {
            role: self.options.role,
            client_id: self.options.client_id,
            incarnation: self.incarnation,
            size: self.options.ring_size as u64,
            arena_len: self.arena.len(),
        };
        let descriptors = [
            own.descriptor().as_fd(),
            self.arena.descriptor().0.as_fd(),
            request_doorbell.as_fd(),
            self.completion_doorbell.as_fd(),
        ];
        socket::send(&socket, &hello, &descriptors)?;
        self.watch.add(&socket)?;
        Ok(Session {
            socket,
            own,
            request_doorbell,
        })
    }

    fn header(&self, direction: Direction) -> Header {
        Header {
            direction,
            size: self.options.ring_size,
            client_id: self.options.client_id,
            incarnation: self.incarnation,
        }
    }

    fn handle(&mut self, message: Message, descriptors: Vec<OwnedFd>) {
        match message {
            Message::Welcome {
                client_id,
                incarnation,
            } if client_id == self.options.client_id && incarnation == self.incarnation => {
                if let Err(violation) = self.settle(descriptors) {
                    self.violated(violation);
                }
            }
            Message::Refused { reason } if matches!(self.state, State::Greeting(_)) => {
                if self.refusal != Some(reason) {
                    tracing::error!(path = %self.path.display(), reason, "the server turned this client away");
                }
                self.refusal = Some(reason);
                self.state = State::Idle;
            }
            Message::RegionAck { serial, errno, .. }
                if !matches!(self.state, State::Greeting(_)) =>
            {
                self.regions.acknowledged(serial, errno);
            }
            _ => self.violated(Violation::Message),
        }
    }

    /// Starts to use the server's memory.
    fn settle(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), Violation> {
        let [memory] =
            <[OwnedFd; 1]>::try_from(descriptors).map_err(|_count| Violation::Message)?;
        let size = self.options.ring_size;
        let State::Greeting(session) = std::mem::replace(&mut self.state, State::Idle) else {
            return Err(Violation::Message);
        };
        let peer =
            PeerHalf::new(memory, layout::memory_len(size)).map_err(|_error| Violation::Memory)?;
        if !self.header(Direction::ServerToClient).is_in(&peer) {
            return Err(Violation::Header);
        }
        let own = session.own.clone();
        let rings = Rings {
            requests: Producer::new(own.clone(), peer.clone(), layout::request_ring(size)),
            completions: Consumer::new(own.clone(), peer.clone(), layout::completion_ring(size)),
            sleeper: Sleeper::new(own, layout::SLEEP),
            doorbell: Doorbell::new(peer, layout::SLEEP),
        };
        self.refusal = None;
        self.regions.start_again();
        self.state = State::Settling(session, rings);
        Ok(())
    }

    fn send_regions(&mut self) {
        if let State::Settling(session, _)
        | State::Announcing(session, ..)
        | State::Live(session, _) = &self.state
        {
            self.regions.send(&session.socket);
        } else {
            self.regions.keep_silent();
        }
    }

    /// Starts to announce open handles, once the server has all regions.
    fn start_announcing(&mut self) {
        if !matches!(self.state, State::Settling(..)) || !self.regions.are_answered() {
            return;
        }
        if let State::Settling(session, rings) = std::mem::replace(&mut self.state, State::Idle) {
            self.state = State::Announcing(session, rings, Announcing::default());
        }
    }

    /// Collects answers to announcements, and announces the rest; when all are answered, sends the requests in flight.
    fn announce_again(&mut self) {
        let State::Announcing(_, rings, at) = &mut self.state else {
            return;
        };
        // Bounded by the number of announcements: one answer too many ends the loop.
        loop {
            let Ok(words) = rings.completions.pop() else {
                return self.violated(Violation::Cursor);
            };
            let Some(completion) = words.map(Completion::from_words) else {
                break;
            };
            let Some(cookie) = self.reopened.answered(at, &completion) else {
                return self.violated(Violation::Completion);
            };
            self.drained
                .extend(cookie.map(|cookie| (cookie, completion)));
        }
        for entry in self.reopened.next_batch(at, self.options.ring_size) {
            if rings.requests.push(entry.to_words()).is_err() {
                return self.violated(Violation::Cursor);
            }
        }
        if self.reopened.are_done(at)
            && let State::Announcing(session, rings, _) =
                std::mem::replace(&mut self.state, State::Idle)
        {
            self.state = State::Live(session, rings);
            for submission in self.inflight.in_order() {
                self.send(&submission);
            }
        }
        self.publish();
    }

    fn send(&mut self, submission: &Submission) {
        let State::Live(_, rings) = &mut self.state else {
            return;
        };
        // The ring has as many entries as there are credits: only a server that publishes a wrong cursor can leave no room.
        if rings.requests.push(submission.to_words()).is_err() {
            self.violated(Violation::Cursor);
        }
    }

    /// The server violated the protocol: it is not used any more. The next tick connects to another one.
    fn violated(&mut self, violation: Violation) {
        tracing::warn!(path = %self.path.display(), %violation, "channel closed: its server broke the protocol");
        self.violations += 1;
        self.last_violation = Some(violation);
        self.lost(Published::Distrusted);
    }

    /// Ends the connection.
    fn lost(&mut self, published: Published) {
        let state = std::mem::replace(&mut self.state, State::Idle);
        let (State::Settling(_, mut rings)
        | State::Announcing(_, mut rings, _)
        | State::Live(_, mut rings)) = state
        else {
            return;
        };
        // Bounded by the table: each iteration removes one request.
        while published == Published::Taken
            && let Ok(Some(words)) = rings.completions.pop()
        {
            let completion = Completion::from_words(words);
            let Some(cookie) = self.inflight.take(&completion) else {
                break;
            };
            self.drained.push_back((cookie, completion));
        }
        if self.options.on_server_death == OnServerDeath::Report {
            self.inflight.clear();
        }
        self.incarnation += 1;
        self.regions.start_again();
    }

    fn keeps_requests(&self) -> bool {
        self.options.on_server_death == OnServerDeath::Replay
            || matches!(self.state, State::Live(..))
    }
}

impl ClientPort for SharedClient {
    fn credits(&self) -> usize {
        if self.keeps_requests() {
            self.inflight.free().saturating_sub(self.drained.len())
        } else {
            0
        }
    }

    fn submit(&mut self, cookie: u64, submission: Submission) -> Result<(), PortError> {
        if !self.keeps_requests() {
            return Err(PortError::Broken);
        }
        if self.inflight.free() <= self.drained.len() {
            return Err(PortError::Full);
        }
        let submission = self
            .inflight
            .enter(cookie, submission)
            .ok_or(PortError::Full)?;
        self.send(&submission);
        Ok(())
    }

    fn publish(&mut self) {
        if let State::Live(session, rings) | State::Announcing(session, rings, _) = &mut self.state
        {
            // First release the slots of completions, then publish requests whose answers need them.
            rings.completions.publish();
            if rings.requests.publish() && rings.doorbell.needed() {
                session.request_doorbell.ring();
            }
        }
    }

    fn complete(&mut self) -> Option<(u64, Completion)> {
        self.announce_again();
        if let Some(answer) = self.drained.pop_front() {
            return Some(answer);
        }
        let State::Live(_, rings) = &mut self.state else {
            return None;
        };
        let Ok(words) = rings.completions.pop() else {
            self.violated(Violation::Cursor);
            return None;
        };
        let completion = Completion::from_words(words?);
        let Some(cookie) = self.inflight.take(&completion) else {
            self.violated(Violation::Completion);
            return None;
        };
        Some((cookie, completion))
    }

    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), PortError> {
        debug_assert_ne!(id, RegionId::ARENA, "the arena belongs to the channel");
        if !self.regions.add(id, region) {
            return Err(PortError::Full);
        }
        self.send_regions();
        Ok(())
    }

    fn region_ready(&self, id: RegionId) -> bool {
        let live = matches!(self.state, State::Live(..));
        live && (id == RegionId::ARENA || self.regions.is_ready(id))
    }

    fn remove_region(&mut self, id: RegionId) {
        debug_assert_ne!(id, RegionId::ARENA, "the arena belongs to the channel");
        self.regions.remove(id);
        self.send_regions();
    }

    fn arena(&self) -> &Region {
        &self.arena
    }

    fn incarnation(&self) -> u64 {
        self.incarnation
    }

    fn is_connected(&self) -> bool {
        matches!(self.state, State::Live(..))
    }

    fn announce(&mut self, number: u32, cookie: u64, submission: Submission) {
        self.reopened.announce(number, cookie, submission);
    }

    fn withdraw(&mut self, number: u32) {
        self.reopened.withdraw(number);
    }

    fn prepare_sleep(&mut self) -> bool {
        if !self.drained.is_empty() {
            return false;
        }
        let (State::Live(_, rings) | State::Announcing(_, rings, _)) = &mut self.state else {
            return true;
        };
        rings.sleeper.announce();
        match rings.completions.refresh() {
            Ok(false) => return true,
            Ok(true) => {
                rings.sleeper.wake();
            }
            Err(_cursor) => self.violated(Violation::Cursor),
        }
        false
    }

    fn wake(&mut self) {
        let silence = match &mut self.state {
            State::Live(_, rings) | State::Announcing(_, rings, _) => rings.sleeper.wake(),
            // Without working rings, no sleeper records that the doorbell rang, but it must be silenced.
            _ => true,
        };
        if silence {
            self.completion_doorbell.silence();
        }
    }
}

impl Drop for SharedClient {
    fn drop(&mut self) {
        if let State::Greeting(session)
        | State::Settling(session, _)
        | State::Announcing(session, ..)
        | State::Live(session, _) = &self.state
        {
            let _a_disconnect_says_the_same = socket::send(&session.socket, &Message::Goodbye, &[]);
        }
    }
}
