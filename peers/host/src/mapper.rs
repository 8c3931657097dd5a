//! The shell around the mapper: ports in, effects out.
//!
//! The mapper is a state machine without I/O; what it asks for goes to the blocker's port, what it answers goes to the
//! port of the volume peer that asked, or to control.

use std::collections::VecDeque;

use archipelago_mapper::{ClientId, Effect, Mapper};
use archipelago_protocol::carry::{AREA_LEN, Carried};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::control::{ControlReply, PeerStatus};
use archipelago_protocol::map::{FLAG_WRITE, MapOp, MapReply, MapRequest};
use archipelago_protocol::{Access, Error, ErrorCode, Grants, Lineage};
use archipelago_runtime::{Peer, Progress};
use xseg::{Client, RegionId, Server, ServerPort};

use crate::Identity;
use crate::acceptor::{Caller, Channels};
use crate::control::Answer;
use crate::objects::Objects;
use crate::port::{Attention, HostedServer};

/// Entries taken from a channel in one poll.
const ENTRIES_PER_POLL: usize = 64;

#[derive(Debug)]
struct Channel {
    client: ClientId,
    port: HostedServer,
    /// Accepted and not answered.
    in_flight: usize,
    leaving: bool,
    /// Opens only what is granted.
    granted_only: bool,
}

/// A private copy of what a flush carries in its channel's arena.
fn carried(port: &HostedServer, request: &MapRequest) -> Result<Carried, ErrorCode> {
    if request.op != MapOp::FlushCommit || request.len == 0 {
        return Ok(Carried::default());
    }
    if request.len > AREA_LEN {
        return Err(ErrorCode::Invalid);
    }
    let arena = port.regions().get(RegionId::ARENA);
    let arena = arena.ok_or(ErrorCode::Invalid)?;
    let mut area = vec![0; usize::try_from(request.len).expect("at most AREA_LEN")];
    arena
        .read(request.offset, &mut area)
        .map_err(|_outside| ErrorCode::Invalid)?;
    Carried::new(area)
}

/// Whether `request` opens something that `grants` do not permit.
fn opens_more_than(grants: &Grants, request: &MapRequest) -> bool {
    let access = if request.flags & FLAG_WRITE == 0 {
        Access::Read
    } else {
        Access::Write
    };
    let [high, low] = request.operand;
    request.op == MapOp::Open && !grants.permit(Lineage::from_words(high, low), access)
}

/// The mapper and its ports.
#[derive(Debug)]
pub(crate) struct MapperPeer {
    mapper: Mapper,
    objects: Objects<Client>,
    channels: Vec<Channel>,
    next_client: u64,
    /// By tag, lowest first.
    asked: VecDeque<(u64, Answer)>,
    next_tag: u64,
    attention: Attention,
    /// The user of the endpoint's process, if it has one of its own; and what it may open.
    endpoint: Option<Identity>,
    grants: Grants,
    requests: u64,
    denied: u64,
    object_requests: u64,
    catalogue_requests: u64,
}

impl MapperPeer {
    pub(crate) fn new(
        mapper: Mapper,
        blocker: Client,
        attention: &Attention,
        endpoint: Option<Identity>,
    ) -> MapperPeer {
        MapperPeer {
            mapper,
            objects: Objects::new(blocker),
            channels: Vec::new(),
            next_client: 1,
            asked: VecDeque::new(),
            next_tag: 1,
            attention: attention.clone(),
            endpoint,
            grants: Grants::default(),
            requests: 0,
            denied: 0,
            object_requests: 0,
            catalogue_requests: 0,
        }
    }

    /// Asks about names; the answer follows.
    pub(crate) fn ask(&mut self, request: CatalogueRequest, answer: Answer) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.catalogue_requests += 1;
        self.asked.push_back((tag, answer));
        self.mapper.catalogue_request(tag, request);
    }

    /// Says what an endpoint with a user of its own may open from now on; until then it is nothing.
    pub(crate) fn set_grants(&mut self, grants: Grants) {
        self.grants = grants;
    }

    /// What was found damaged of a volume.
    pub(crate) fn damage(&self, lineage: Lineage) -> Result<(), Error> {
        self.mapper.damage(lineage).map_or(Ok(()), |message| {
            Err(Error::new(ErrorCode::Damaged, message).with_hint(
                "nothing was changed; restore the object named, or the pool, from a copy",
            ))
        })
    }

    /// The port to the blocker.
    pub(crate) fn blocker(&self) -> &Client {
        self.objects.port()
    }

    pub(crate) fn blocker_mut(&mut self) -> &mut Client {
        self.objects.port_mut()
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.asked.is_empty()
            && self.mapper.is_idle()
            && self.objects.in_flight() == 0
            && self.channels.iter().all(|channel| channel.in_flight == 0)
    }

    pub(crate) fn status(&self) -> PeerStatus {
        let shell = [
            ("clients", self.channels.len() as u64),
            ("requests", self.requests),
            ("denied", self.denied),
            ("catalogue_requests", self.catalogue_requests),
            ("object_requests", self.object_requests),
        ];
        let counters = shell.into_iter().chain(self.mapper.counters().list());
        let counters = counters
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        PeerStatus {
            name: "mapper".to_owned(),
            counters,
        }
    }

    /// Volumes whose presence journal is in use.
    pub(crate) fn journals(&self) -> Vec<Lineage> {
        self.mapper.journals()
    }

    fn accept(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        for channel in &mut self.channels {
            for _ in 0..ENTRIES_PER_POLL {
                if channel.leaving {
                    break;
                }
                let Some(entry) = channel.port.accept() else {
                    break;
                };
                progress = Progress::Busy;
                self.requests += 1;
                let request = MapRequest::decode(&entry)
                    .and_then(|request| Ok((request, carried(&channel.port, &request)?)));
                match request {
                    Ok((request, _))
                        if channel.granted_only && opens_more_than(&self.grants, &request) =>
                    {
                        self.denied += 1;
                        let denied = MapReply::failed(ErrorCode::Denied);
                        channel.port.complete(denied.encode(entry.tag));
                    }
                    Ok((request, carried)) => {
                        channel.in_flight += 1;
                        self.mapper
                            .map_request(channel.client, entry.tag, request, carried);
                    }
                    Err(code) => channel
                        .port
                        .complete(MapReply::failed(code).encode(entry.tag)),
                }
            }
        }
        progress
    }

    /// Tells the mapper of clients that have gone, and forgets those of which nothing is left.
    fn forget_ended(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        for channel in &mut self.channels {
            if !channel.leaving && channel.port.is_closed() {
                channel.leaving = true;
                progress = Progress::Busy;
            }
        }
        let mapper = &mut self.mapper;
        self.channels.retain(|channel| {
            let ended = channel.leaving && channel.in_flight == 0;
            if ended {
                mapper.client_gone(channel.client);
            }
            !ended
        });
        progress
    }

    fn carry_out(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        while let Some(effect) = self.mapper.next_effect() {
            progress = Progress::Busy;
            match effect {
                Effect::Object { id, request, data } => {
                    self.object_requests += 1;
                    self.objects.push(id, request, data);
                }
                Effect::MapReply { client, tag, reply } => {
                    if let Some(channel) = self
                        .channels
                        .iter_mut()
                        .find(|channel| channel.client == client)
                    {
                        channel.in_flight -= 1;
                        channel.port.complete(reply.encode(tag));
                    }
                }
                Effect::CatalogueReply { tag, reply } => self.answer(tag, reply),
            }
        }
        progress
    }

    fn answer(&mut self, tag: u64, reply: CatalogueReply) {
        let index = self.asked.iter().position(|(known, _)| *known == tag);
        if let Some((_, answer)) = index.and_then(|index| self.asked.remove(index)) {
            answer.send(ControlReply::Catalogue(reply));
        }
    }
}

impl Peer for MapperPeer {
    fn name(&self) -> &str {
        "mapper"
    }

    fn poll(&mut self) -> Progress {
        let mut progress = self.accept().or(self.forget_ended());
        while let Some(answered) = self.objects.next() {
            self.mapper
                .object_done(answered.id, answered.reply, answered.data);
            progress = Progress::Busy;
        }
        progress = progress.or(self.carry_out());
        if self.objects.send() {
            progress = Progress::Busy;
        }
        if progress == Progress::Busy {
            for channel in &mut self.channels {
                channel.port.publish();
            }
        }
        progress
    }

    fn prepare_sleep(&mut self) -> bool {
        let quiet = self.objects.prepare_sleep();
        self.channels.iter_mut().fold(quiet, |quiet, channel| {
            channel.port.prepare_sleep() && quiet
        })
    }

    fn wake(&mut self) {
        self.objects.wake();
        for channel in &mut self.channels {
            channel.port.wake();
        }
    }
}

impl Channels for MapperPeer {
    type Channel = ClientId;

    fn add(&mut self, port: Server, caller: Caller) -> ClientId {
        let client = ClientId(self.next_client);
        self.next_client += 1;
        let port = HostedServer::new(port, &self.attention);
        self.channels.push(Channel {
            client,
            port,
            in_flight: 0,
            leaving: false,
            granted_only: caller.is(self.endpoint),
        });
        client
    }

    fn remove(&mut self, client: ClientId) {
        if let Some(channel) = self
            .channels
            .iter_mut()
            .find(|channel| channel.client == client)
        {
            channel.leaving = true;
        }
    }

    fn is_idle(&self, client: ClientId) -> bool {
        self.channels.iter().all(|channel| channel.client != client)
    }
}

#[cfg(test)]
mod tests {
    use archipelago_mapper::MapperConfig;
    use archipelago_mapper::journal::NoJournals;
    use archipelago_protocol::control::Role;
    use xseg::ClientPort;

    use super::*;

    #[test]
    fn an_endpoint_with_a_user_of_its_own_opens_what_is_granted() {
        let user = Identity {
            uid: 64_001,
            gid: 64_001,
            front_ends: None,
        };
        let (to_blocker, _blocker) = xseg::local::channel(4, 4096).unwrap();
        let mapper = Mapper::new(MapperConfig::default(), Box::new(NoJournals));
        let mut mapper = MapperPeer::new(
            mapper,
            Client::from(to_blocker),
            &Attention::default(),
            Some(user),
        );
        let mut grants = Grants::default();
        grants.allow(Lineage(1), Access::Read);
        grants.allow(Lineage(2), Access::Write);
        for (uid, granted, denied) in [
            (user.uid, &Grants::default(), vec![0, 1, 2, 3, 4]),
            (user.uid, &grants, vec![0, 2]),
            (0, &Grants::default(), vec![]),
        ] {
            mapper.set_grants(granted.clone());
            let (mut client, server) = xseg::local::channel(8, 4096).unwrap();
            let role = Role::Endpoint as u8;
            mapper.add(Server::from(server), Caller { uid, role });
            for (cookie, lineage, write) in [
                (0, 3, false),
                (1, 1, false),
                (2, 1, true),
                (3, 2, false),
                (4, 2, true),
            ] {
                let request = MapRequest::open(Lineage(lineage), write);
                client.submit(cookie, request.encode()).unwrap();
            }
            client.publish();
            mapper.poll();
            // What is not denied waits for a blocker that does not answer.
            let mut answers = Vec::new();
            while let Some((cookie, completion)) = client.complete() {
                let result = MapReply::decode(&completion).result;
                assert_eq!(result, Err(ErrorCode::Denied));
                answers.push(cookie);
            }
            assert_eq!(answers, denied, "user {uid} with {granted:?}");
        }
    }
}
