//! The mapper in a data process: the channels of its clients, and the answers for control.

use std::collections::VecDeque;

use archipelago_mapper::{ClientId, Mapper, MapperPeer, Rights};
use archipelago_protocol::catalogue::CatalogueRequest;
use archipelago_protocol::control::{ChannelStatus, ControlReply, PeerStatus};
use archipelago_protocol::{Error, Grants, Lineage};
use archipelago_runtime::{Peer, Progress};
use xseg::{Client, Server};

use crate::Identity;
use crate::acceptor::{Caller, Channels};
use crate::channel_status::channel_status;
use crate::control::Answer;
use crate::port::{Attention, HostedServer};

/// A mapper and the sockets of its ports.
#[derive(Debug)]
pub(crate) struct MapperHost {
    peer: MapperPeer<HostedServer, Client>,
    /// Answers by tag, lowest first.
    asked: VecDeque<(u64, Answer)>,
    attention: Attention,
    /// The user of the endpoint's process, if it has one of its own.
    endpoint: Option<Identity>,
}

impl MapperHost {
    pub(crate) fn new(
        mapper: Mapper,
        blocker: Client,
        attention: &Attention,
        endpoint: Option<Identity>,
    ) -> MapperHost {
        MapperHost {
            peer: MapperPeer::new(mapper, blocker),
            asked: VecDeque::new(),
            attention: attention.clone(),
            endpoint,
        }
    }

    /// As [`MapperHost::new`], with the catalogue's objects behind another blocker.
    pub(crate) fn with_catalogue_at(mut self, blocker: Client) -> MapperHost {
        self.peer = self.peer.with_catalogue_at(blocker);
        self
    }

    /// Sends a request of the catalogue; the answer follows later.
    pub(crate) fn ask(&mut self, request: CatalogueRequest, answer: Answer) {
        let tag = self.peer.ask(request);
        self.asked.push_back((tag, answer));
    }

    /// Ends background work soon: the node is about to stop.
    pub(crate) fn stop_background(&mut self) {
        self.peer.stop_background();
    }

    /// Leaves the pool: the node stops, and no further request is possible.
    pub(crate) fn leave(&mut self) {
        self.peer.leave();
    }

    /// Sets what an endpoint with a user of its own may open.
    pub(crate) fn set_grants(&mut self, grants: Grants) {
        self.peer.set_grants(grants);
    }

    /// The damage found in a volume, if any.
    pub(crate) fn damage(&self, lineage: Lineage) -> Result<(), Error> {
        self.peer.mapper().damage(lineage).map_or(Ok(()), Err)
    }

    /// Records a failed sync of the pool that another data thread requested.
    pub(crate) fn pool_sync_failed(&mut self) {
        self.peer.pool_sync_failed();
    }

    /// The ports to blockers.
    fn blockers(&self) -> impl Iterator<Item = &Client> {
        std::iter::once(self.peer.blocker()).chain(self.peer.catalogue_blocker())
    }

    /// Figures of the channels to blockers.
    pub(crate) fn channels(&self) -> Vec<ChannelStatus> {
        let figures = |port| channel_status("mapper", "blocker", port);
        self.blockers().map(figures).collect()
    }

    /// Whether all blockers are connected.
    pub(crate) fn is_connected(&self) -> bool {
        use xseg::ClientPort;
        self.blockers().all(ClientPort::is_connected)
    }

    /// Services the sockets of the ports to blockers.
    pub(crate) fn service(&mut self) {
        while self.peer.blocker_mut().service() {}
        if let Some(catalogue) = self.peer.catalogue_blocker_mut() {
            while catalogue.service() {}
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.peer.is_idle()
    }

    pub(crate) fn status(&self) -> PeerStatus {
        self.peer.status()
    }

    /// Volumes whose presence journal is in use.
    pub(crate) fn journals(&self) -> Vec<Lineage> {
        self.peer.mapper().journals()
    }

    fn answer_all(&mut self) {
        while let Some((tag, reply)) = self.peer.next_reply() {
            let index = self.asked.iter().position(|(known, _)| *known == tag);
            if let Some((_, answer)) = index.and_then(|index| self.asked.remove(index)) {
                answer.send(ControlReply::Catalogue(reply));
            }
        }
    }
}

impl Peer for MapperHost {
    fn name(&self) -> &str {
        self.peer.name()
    }

    fn poll(&mut self) -> Progress {
        let progress = self.peer.poll();
        self.answer_all();
        progress
    }

    fn prepare_sleep(&mut self) -> bool {
        self.peer.prepare_sleep()
    }

    fn wake(&mut self) {
        self.peer.wake();
    }
}

impl Channels for MapperHost {
    type Channel = ClientId;

    fn add(&mut self, port: Server, caller: Caller) -> ClientId {
        let rights = if caller.is(self.endpoint) {
            Rights::Granted
        } else {
            Rights::All
        };
        let port = HostedServer::new(port, &self.attention);
        self.peer.add_channel(port, rights)
    }

    fn remove(&mut self, client: ClientId) {
        self.peer.remove_channel(client);
    }

    fn is_idle(&self, client: ClientId) -> bool {
        self.peer.channel_idle(client)
    }
}

#[cfg(test)]
mod tests {
    use archipelago_mapper::MapperConfig;
    use archipelago_mapper::journal::NoJournals;
    use archipelago_protocol::control::Role;
    use archipelago_protocol::map::{MapReply, MapRequest};
    use archipelago_protocol::{Access, ErrorCode};
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
        let mut mapper = MapperHost::new(
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
            mapper.add(
                Server::from(server),
                Caller {
                    uid,
                    role,
                    mapper: 0,
                },
            );
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
