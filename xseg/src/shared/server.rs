//! The end of a shared channel that answers requests.
//!
//! Invariants
//! - A request is passed on once, and only under a tag whose slot has no other request in flight: whatever the client writes, there are
//!   never more unanswered requests than the ring has entries.
//! - A violation closes this channel and no other. Afterwards answers are dropped, but requests that were passed on are counted until they
//!   are answered, so that the layer above knows when all requests of the client are done.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Violation;
use super::doorbell_fd::DoorbellFd;
use super::layout::{self, Direction, Header, RING_MAX};
use super::message::Message;
use super::socket::{self, Peer, Received, Watch};
use crate::doorbell::{Doorbell, Sleeper};
use crate::entry::{COMPLETION_WORDS, Completion, SUBMISSION_WORDS, Submission};
use crate::mapping::{OwnHalf, PeerHalf};
use crate::port::ServerPort;
use crate::region::{Region, RegionId, RegionTable};
use crate::ring::{Consumer, Producer};

/// Most messages handled in one call: enough for any burst of a guest's memory slots, and few enough not to delay other work.
const MESSAGES_PER_CALL: usize = 64;
const SLOT_MASK: u64 = 0xffff;

/// The content of a client's hello.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Greeting {
    pub(crate) role: u8,
    pub(crate) client_id: u64,
    pub(crate) incarnation: u64,
    pub(crate) size: u64,
    pub(crate) arena_len: u64,
    pub(crate) peer: Peer,
}

/// Requests that were passed on, by their slots.
#[derive(Debug)]
struct Unanswered {
    /// The tag of the request that was passed on and not answered; 0: none.
    tags: Vec<u64>,
    /// Number of unanswered requests.
    count: usize,
    /// Number of requests passed on so far, including the answered ones.
    accepted: u64,
}

/// The end of a channel that answers the requests of a client in another process.
#[derive(Debug)]
pub struct SharedServer {
    greeting: Greeting,
    socket: Option<OwnedFd>,
    watch: Watch,
    #[cfg(all(test, not(loom)))]
    own: OwnHalf,
    requests: Consumer<SUBMISSION_WORDS, OwnHalf, PeerHalf>,
    completions: Producer<COMPLETION_WORDS, OwnHalf, PeerHalf>,
    sleeper: Sleeper<OwnHalf>,
    doorbell: Doorbell<PeerHalf>,
    request_doorbell: DoorbellFd,
    completion_doorbell: DoorbellFd,
    regions: RegionTable,
    unanswered: Unanswered,
    started: bool,
    violation: Option<Violation>,
}

impl SharedServer {
    /// Answers a hello. The error is the fault in it.
    pub(crate) fn welcome(
        socket: OwnedFd,
        greeting: Greeting,
        descriptors: Vec<OwnedFd>,
    ) -> Result<SharedServer, (OwnedFd, Violation)> {
        match SharedServer::build(&socket, greeting, descriptors) {
            Ok(mut server) => {
                server.socket = Some(socket);
                Ok(server)
            }
            Err(violation) => Err((socket, violation)),
        }
    }

    /// Builds all parts except the socket, over which its owner may have to send a refusal.
    fn build(
        socket: &OwnedFd,
        greeting: Greeting,
        descriptors: Vec<OwnedFd>,
    ) -> Result<SharedServer, Violation> {
        let [memory, arena, request_doorbell, completion_doorbell]: [OwnedFd; 4] = descriptors
            .try_into()
            .map_err(|_count| Violation::Message)?;
        let size = usize::try_from(greeting.size).map_err(|_size| Violation::Header)?;
        if !size.is_power_of_two() || size > RING_MAX {
            return Err(Violation::Header);
        }
        let arena_len = usize::try_from(greeting.arena_len).map_err(|_size| Violation::Memory)?;
        let refused = |error: io::Error| {
            tracing::debug!(%error, "memory of a client refused");
            Violation::Memory
        };
        let len = layout::memory_len(size);
        let peer = PeerHalf::new(memory, len).map_err(refused)?;
        let mut header = Header {
            direction: Direction::ClientToServer,
            size,
            client_id: greeting.client_id,
            incarnation: greeting.incarnation,
        };
        if !header.is_in(&peer) {
            return Err(Violation::Header);
        }
        let mut regions = RegionTable::default();
        regions.insert(
            RegionId::ARENA,
            Region::arena_of_peer(arena, arena_len).map_err(refused)?,
        );
        let request_doorbell = DoorbellFd::of_peer(request_doorbell).map_err(refused)?;
        let completion_doorbell = DoorbellFd::of_peer(completion_doorbell).map_err(refused)?;

        let own = OwnHalf::new(len).map_err(refused)?;
        header.direction = Direction::ServerToClient;
        header.write(&own);
        let watch = Watch::new().map_err(refused)?;
        watch.add(socket).map_err(refused)?;
        let welcome = Message::Welcome {
            client_id: greeting.client_id,
            incarnation: greeting.incarnation,
        };
        socket::send(socket, &welcome, &[own.descriptor().as_fd()]).map_err(refused)?;
        Ok(SharedServer {
            greeting,
            socket: None,
            watch,
            #[cfg(all(test, not(loom)))]
            own: own.clone(),
            requests: Consumer::new(own.clone(), peer.clone(), layout::request_ring(size)),
            completions: Producer::new(own.clone(), peer.clone(), layout::completion_ring(size)),
            sleeper: Sleeper::new(own, layout::SLEEP),
            doorbell: Doorbell::new(peer, layout::SLEEP),
            request_doorbell,
            completion_doorbell,
            regions,
            unanswered: Unanswered {
                tags: vec![0; size],
                count: 0,
                accepted: 0,
            },
            started: false,
            violation: None,
        })
    }

    /// The socket and the memory, for tests that act as the server.
    #[cfg(all(test, not(loom)))]
    pub(super) fn into_parts(mut self) -> (OwnedFd, OwnHalf) {
        let socket = self.socket.take().expect("not closed");
        (socket, self.own.clone())
    }

    /// The role that the client claimed.
    #[must_use]
    pub fn role(&self) -> u8 {
        self.greeting.role
    }

    /// The client's number: the same as its predecessor's, if it had one.
    #[must_use]
    pub fn client_id(&self) -> u64 {
        self.greeting.client_id
    }

    /// How often the client has connected.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.greeting.incarnation
    }

    /// The client's process.
    #[must_use]
    pub fn peer_pid(&self) -> i32 {
        self.greeting.peer.pid
    }

    /// The client's user, as reported by the kernel.
    #[must_use]
    pub fn peer_uid(&self) -> u32 {
        self.greeting.peer.uid
    }

    /// Starts to take requests. Until then the channel only maps regions, because requests of a predecessor with the same client id may
    /// still be in progress.
    pub fn start(&mut self) {
        self.started = true;
    }

    /// Number of requests passed on so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.unanswered.accepted
    }

    /// Requests passed on and not answered, also after the client has disconnected.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.unanswered.count
    }

    /// The client's violation, if one ended the channel.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// Descriptors to watch for reading: the doorbell, and an epoll descriptor with the socket. They never change.
    #[must_use]
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.request_doorbell.as_fd(), self.watch.as_fd()]
    }

    /// Handles messages from the socket: regions, and the client's end. To be called when the second of [`SharedServer::fds`] is readable.
    /// `true`: there may be more messages, call again.
    pub fn service(&mut self) -> bool {
        for _ in 0..MESSAGES_PER_CALL {
            let Some(socket) = &self.socket else {
                return false;
            };
            match socket::next(socket) {
                Received::Nothing => return false,
                Received::HungUp | Received::Message(Message::Goodbye, _) => self.socket = None,
                Received::Message(
                    Message::RegionAdd {
                        id,
                        serial,
                        offset,
                        len,
                    },
                    descriptors,
                ) => {
                    self.add_region(RegionId(id), serial, (offset, len), descriptors);
                }
                Received::Message(Message::RegionRemove { id }, _)
                    if RegionId(id) != RegionId::ARENA =>
                {
                    self.regions.remove(RegionId(id));
                }
                Received::Message(..) | Received::Unreadable(_) => {
                    self.violated(Violation::Message);
                }
            }
        }
        true
    }

    fn add_region(
        &mut self,
        id: RegionId,
        serial: u64,
        place: (u64, u64),
        descriptors: Vec<OwnedFd>,
    ) {
        let Ok([fd]) = <[OwnedFd; 1]>::try_from(descriptors) else {
            return self.violated(Violation::Message);
        };
        if id == RegionId::ARENA {
            return self.violated(Violation::Message);
        }
        let mapped = usize::try_from(place.1)
            .map_err(io::Error::other)
            .and_then(|len| Region::from_fd(fd, place.0, len));
        let errno = match mapped {
            Ok(region) => {
                if self.regions.insert(id, region) {
                    0
                } else {
                    libc::ENOSPC
                }
            }
            Err(error) => {
                tracing::warn!(region = id.0, %error, "region of a client cannot be mapped");
                error.raw_os_error().unwrap_or(libc::EINVAL)
            }
        };
        let ack = Message::RegionAck {
            id: id.0,
            serial,
            errno: u64::from(errno.unsigned_abs()),
        };
        let Some(socket) = &self.socket else { return };
        // A correct client waits for its acknowledgements, so there is always room for one.
        if let Err(error) = socket::send(socket, &ack, &[]) {
            if error.kind() == io::ErrorKind::WouldBlock {
                self.violated(Violation::Message);
            } else {
                self.socket = None;
            }
        }
    }

    fn violated(&mut self, violation: Violation) {
        if self.socket.take().is_some() {
            let Greeting {
                role,
                client_id,
                peer: Peer { uid, pid },
                ..
            } = self.greeting;
            tracing::warn!(role, client_id, uid, pid, %violation, "channel closed: its client broke the protocol");
            self.violation = Some(violation);
        }
    }

    /// The slot of a tag, if the ring has that slot and the tag is not the mark of a free slot.
    fn slot(&mut self, tag: u64) -> Option<&mut u64> {
        let slot = usize::try_from(tag & SLOT_MASK).ok()?;
        if tag == 0 {
            None
        } else {
            self.unanswered.tags.get_mut(slot)
        }
    }
}

impl ServerPort for SharedServer {
    fn accept(&mut self) -> Option<Submission> {
        if !self.started || self.socket.is_none() {
            return None;
        }
        let Ok(entry) = self.requests.pop() else {
            self.violated(Violation::Cursor);
            return None;
        };
        let submission = Submission::from_words(entry?);
        match self.slot(submission.tag) {
            Some(open) if *open == 0 => *open = submission.tag,
            _ => {
                self.violated(Violation::Tag);
                return None;
            }
        }
        self.unanswered.count += 1;
        self.unanswered.accepted += 1;
        Some(submission)
    }

    fn complete(&mut self, completion: Completion) {
        match self.slot(completion.tag) {
            Some(open) if *open == completion.tag => *open = 0,
            _ => {
                debug_assert!(
                    false,
                    "tag {:#x} answered twice or never asked",
                    completion.tag
                );
                tracing::error!(
                    tag = completion.tag,
                    "answer to nothing that was asked: dropped"
                );
                return;
            }
        }
        self.unanswered.count -= 1;
        // The ring has twice as many entries as there are credits: only a client that publishes a wrong cursor can leave no room.
        if self.socket.is_some() && self.completions.push(completion.to_words()).is_err() {
            self.violated(Violation::Cursor);
        }
    }

    fn publish(&mut self) {
        if self.socket.is_none() {
            return;
        }
        // The cursor of requests first: when a client sees a completion, the slot of the request is free.
        self.requests.publish();
        if self.completions.publish() && self.doorbell.needed() {
            self.completion_doorbell.ring();
        }
    }

    fn regions(&self) -> &RegionTable {
        &self.regions
    }

    fn break_channel(&mut self, why: &str) {
        tracing::warn!(why, "channel closed by its server");
        self.violated(Violation::Protocol);
    }

    fn is_closed(&self) -> bool {
        self.socket.is_none()
    }

    fn prepare_sleep(&mut self) -> bool {
        if !self.started || self.socket.is_none() {
            return true;
        }
        self.sleeper.announce();
        match self.requests.refresh() {
            Ok(false) => return true,
            Ok(true) => {}
            Err(_cursor) => self.violated(Violation::Cursor),
        }
        self.sleeper.wake();
        false
    }

    fn wake(&mut self) {
        // Without working rings, no sleeper records that the doorbell rang, but it must be silenced.
        if self.sleeper.wake() || !self.started || self.socket.is_none() {
            self.request_doorbell.silence();
        }
    }
}

impl Drop for SharedServer {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            let _a_disconnect_says_the_same = socket::send(socket, &Message::Goodbye, &[]);
        }
    }
}
