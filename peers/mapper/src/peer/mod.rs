//! The peer around the mapper: ports in, effects out.
//!
//! The mapper is a state machine without I/O. Its object requests go to the blocker's port, its replies to the port of the
//! volume peer that asked, or to whoever hosts the peer.
//!
//! | module | what |
//! |---|---|
//! | `channel` | a volume peer's port, and how much of it is in flight |
//! | `rights` | what the client of a channel may ask for |
//! | `objects` | object requests through a port |
//! | `arena` | who uses which part of that port's memory |
//!
//! Invariants
//! - Each accepted request is answered exactly once, or its channel is closed by then and the reply is dropped.
//! - No channel gets more than [`ENTRIES_PER_TURN`] requests accepted before the next one has its turn, and the first turn
//!   goes round.
//! - Nothing above this folder names a port or a ring.

mod arena;
mod channel;
mod objects;
mod rights;

use std::collections::VecDeque;

use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::control::PeerStatus;
use archipelago_protocol::map::{MapReply, MapRequest};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectRequest};
use archipelago_protocol::{ErrorCode, Grants, Lineage};
use archipelago_runtime::{Peer, Progress};
use xseg::{ClientPort, ServerPort};

use crate::effect::{ClientId, Effect, EffectId};
use crate::mapper::Mapper;

use channel::Channel;
use objects::{Answered, ObjectRequests};
pub use rights::Rights;

/// Requests of one channel accepted in one turn.
pub const ENTRIES_PER_TURN: usize = 64;

/// The peer's own request, which asks what the backend does by itself: no effect of a mapper comes to this number. It is the first, and
/// answered before all others: the mapper knows what the backend does before it has read anything.
const CAPABILITIES: EffectId = EffectId(u64::MAX);

/// What went through the ports.
#[derive(Debug, Clone, Copy, Default)]
struct PortCounters {
    requests: u64,
    denied: u64,
    catalogue_requests: u64,
    object_requests: u64,
}

/// Serves a [`Mapper`] on any number of channels, with the blocker behind one port. Lives on one thread.
#[derive(Debug)]
pub struct MapperPeer<P = xseg::Server, C = xseg::Client> {
    mapper: Mapper,
    objects: ObjectRequests<C>,
    /// To the blocker that has the catalogue's objects, if that is another one.
    catalogue: Option<ObjectRequests<C>>,
    channels: Vec<Channel<P>>,
    /// Index of the channel whose turn is first.
    first: usize,
    next_client: u64,
    grants: Grants,
    next_tag: u64,
    /// Catalogue requests without a reply.
    asked: usize,
    replies: VecDeque<(u64, CatalogueReply)>,
    counters: PortCounters,
}

impl<P: ServerPort, C: ClientPort> MapperPeer<P, C> {
    /// Serves `mapper`, whose objects are behind `blocker`; nobody is connected yet.
    pub fn new(mapper: Mapper, blocker: C) -> Self {
        let mut objects = ObjectRequests::new(blocker);
        let id = ObjectId::head(Lineage::CATALOGUE);
        let ask = ObjectRequest::new(ObjectOp::Capabilities, id);
        objects.push(CAPABILITIES, ask, Vec::new());
        MapperPeer {
            mapper,
            objects,
            catalogue: None,
            channels: Vec::new(),
            first: 0,
            next_client: 1,
            grants: Grants::default(),
            next_tag: 1,
            asked: 0,
            replies: VecDeque::new(),
            counters: PortCounters::default(),
        }
    }

    /// Has the catalogue's objects behind `blocker`: where several mappers share them, one blocker knows where their log ends and what
    /// of them is not durable.
    #[must_use]
    pub fn with_catalogue_at(mut self, blocker: C) -> Self {
        self.catalogue = Some(ObjectRequests::new(blocker));
        self
    }

    /// Serves `port` from the next poll on, within `rights`.
    pub fn add_channel(&mut self, port: P, rights: Rights) -> ClientId {
        let client = ClientId(self.next_client);
        self.next_client += 1;
        self.channels.push(Channel::new(client, port, rights));
        client
    }

    /// Accepts nothing more from the channel; what was accepted finishes. A channel whose port is closed is removed without
    /// being asked for.
    pub fn remove_channel(&mut self, client: ClientId) {
        if let Some(channel) = self.channels.iter_mut().find(|channel| channel.is(client)) {
            channel.leave();
        }
    }

    /// Whether the channel has ended and all that it asked for has finished: from then on its client's successor may be
    /// served.
    #[must_use]
    pub fn channel_idle(&self, client: ClientId) -> bool {
        self.channels.iter().all(|channel| !channel.is(client))
    }

    /// Sets what channels with [`Rights::Granted`] may open from now on; until then it is nothing.
    pub fn set_grants(&mut self, grants: Grants) {
        self.grants = grants;
    }

    /// Asks the catalogue. The reply comes from [`MapperPeer::next_reply`], with the tag that this returns.
    pub fn ask(&mut self, request: CatalogueRequest) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.asked += 1;
        self.counters.catalogue_requests += 1;
        self.mapper.catalogue_request(tag, request);
        tag
    }

    /// The next reply of the catalogue, and the tag of its request.
    pub fn next_reply(&mut self) -> Option<(u64, CatalogueReply)> {
        self.replies.pop_front()
    }

    /// As [`Mapper::stop_background`].
    pub fn stop_background(&mut self) {
        self.mapper.stop_background();
    }

    /// As [`Mapper::leave`].
    pub fn leave(&mut self) {
        self.mapper.leave();
    }

    /// The mapper.
    pub fn mapper(&self) -> &Mapper {
        &self.mapper
    }

    /// The port to the blocker.
    pub fn blocker(&self) -> &C {
        self.objects.port()
    }

    /// The port to the blocker, for its connection.
    pub fn blocker_mut(&mut self) -> &mut C {
        self.objects.port_mut()
    }

    /// The port to the blocker that has the catalogue's objects, if that is another one.
    pub fn catalogue_blocker(&self) -> Option<&C> {
        self.catalogue.as_ref().map(ObjectRequests::port)
    }

    /// The same, for its connection.
    pub fn catalogue_blocker_mut(&mut self) -> Option<&mut C> {
        self.catalogue.as_mut().map(ObjectRequests::port_mut)
    }

    /// As [`Mapper::pool_sync_failed`].
    pub fn pool_sync_failed(&mut self) {
        self.mapper.pool_sync_failed();
    }

    /// Whether nothing is under way, and every reply was fetched.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.asked == 0
            && self.replies.is_empty()
            && self.mapper.is_idle()
            && self.object_requests().all(ObjectRequests::is_idle)
            && self.channels.iter().all(Channel::is_idle)
    }

    /// The counters, as the node daemon asks for them.
    #[must_use]
    pub fn status(&self) -> PeerStatus {
        let of_ports = [
            ("clients", self.channels.len() as u64),
            ("requests", self.counters.requests),
            ("denied", self.counters.denied),
            ("catalogue_requests", self.counters.catalogue_requests),
            ("object_requests", self.counters.object_requests),
        ];
        let counters = of_ports.into_iter().chain(self.mapper.counters().list());
        PeerStatus {
            name: self.name().to_owned(),
            counters: counters
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }

    fn accept_all(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        let count = self.channels.len();
        for turn in 0..count {
            progress = progress.or(self.accept_from((self.first + turn) % count));
        }
        self.first = if count == 0 {
            0
        } else {
            (self.first + 1) % count
        };
        progress
    }

    fn accept_from(&mut self, index: usize) -> Progress {
        let channel = &mut self.channels[index];
        let mut progress = Progress::Idle;
        for _ in 0..ENTRIES_PER_TURN {
            let Some(entry) = channel.accept() else {
                break;
            };
            progress = Progress::Busy;
            self.counters.requests += 1;
            let decoded = MapRequest::decode(&entry)
                .and_then(|request| Ok((request, channel.carried(&request)?)));
            match decoded {
                Ok((request, _)) if !channel.allows(&request, &self.grants) => {
                    self.counters.denied += 1;
                    channel.refuse(entry.tag, ErrorCode::Denied);
                }
                Ok((request, carried)) => {
                    let client = channel.started();
                    self.mapper.map_request(client, entry.tag, request, carried);
                }
                Err(code) => channel.refuse(entry.tag, code),
            }
        }
        progress
    }

    /// Reports clients that have gone to the mapper, and forgets those of which nothing is left.
    fn forget_ended(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        for channel in &mut self.channels {
            progress = progress.or(channel.note_closed());
        }
        let mapper = &mut self.mapper;
        self.channels.retain(|channel| {
            if channel.has_ended() {
                mapper.client_gone(channel.client());
            }
            !channel.has_ended()
        });
        progress
    }

    fn object_requests(&self) -> impl Iterator<Item = &ObjectRequests<C>> {
        std::iter::once(&self.objects).chain(&self.catalogue)
    }

    fn object_requests_mut(&mut self) -> impl Iterator<Item = &mut ObjectRequests<C>> {
        std::iter::once(&mut self.objects).chain(&mut self.catalogue)
    }

    /// The port that an object request goes to.
    fn objects_for(&mut self, request: &ObjectRequest) -> &mut ObjectRequests<C> {
        let of_catalogue = request.id.lineage == Lineage::CATALOGUE && !request.op.is_about_pool();
        match &mut self.catalogue {
            Some(catalogue) if of_catalogue => catalogue,
            _ => &mut self.objects,
        }
    }

    fn take_object_replies(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        let mapper = &mut self.mapper;
        for objects in std::iter::once(&mut self.objects).chain(&mut self.catalogue) {
            while let Some(answered) = objects.next() {
                progress = Progress::Busy;
                take_answered(mapper, answered);
            }
        }
        progress
    }

    fn carry_out(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        while let Some(effect) = self.mapper.next_effect() {
            progress = Progress::Busy;
            match effect {
                Effect::Object { id, request, data } => {
                    self.counters.object_requests += 1;
                    self.objects_for(&request).push(id, request, data);
                }
                Effect::MapReply { client, tag, reply } => self.reply(client, tag, reply),
                Effect::CatalogueReply { tag, reply } => {
                    self.asked -= 1;
                    self.replies.push_back((tag, reply));
                }
            }
        }
        progress
    }

    fn reply(&mut self, client: ClientId, tag: u64, reply: MapReply) {
        if let Some(channel) = self.channels.iter_mut().find(|channel| channel.is(client)) {
            channel.finished(tag, reply);
        }
    }
}

fn take_answered(mapper: &mut Mapper, answered: Answered) {
    let Answered { id, reply, data } = answered;
    if id != CAPABILITIES {
        mapper.object_done(id, reply, data);
    } else if reply.result.is_ok() {
        let capabilities = Capabilities::from_bits(reply.values[0]);
        mapper.set_capabilities(capabilities);
    }
}

impl<P: ServerPort, C: ClientPort> Peer for MapperPeer<P, C> {
    fn name(&self) -> &str {
        "mapper"
    }

    fn poll(&mut self) -> Progress {
        let mut progress = self
            .accept_all()
            .or(self.forget_ended())
            .or(self.take_object_replies())
            .or(self.carry_out());
        for objects in self.object_requests_mut() {
            if objects.send() {
                progress = Progress::Busy;
            }
        }
        for channel in &mut self.channels {
            channel.publish();
        }
        progress
    }

    fn prepare_sleep(&mut self) -> bool {
        // Every port is asked, so that `wake` takes back what was announced and nothing else.
        let mut quiet = true;
        for objects in self.object_requests_mut() {
            quiet &= objects.port_mut().prepare_sleep();
        }
        self.channels.iter_mut().fold(quiet, |quiet, channel| {
            channel.port_mut().prepare_sleep() && quiet
        })
    }

    fn wake(&mut self) {
        for objects in self.object_requests_mut() {
            objects.port_mut().wake();
        }
        for channel in &mut self.channels {
            channel.port_mut().wake();
        }
    }
}

#[cfg(test)]
mod tests;
