//! The blocker in a data process: its backend, and the channels of its clients.

use std::time::Duration;

use archipelago_blocker::{Backend, BlockerPeer, ChannelId, Rights};
use archipelago_protocol::Grants;
use archipelago_protocol::control::{PeerStatus, PoolReport, Role, Wait};
use archipelago_runtime::{Peer, Progress};
use xseg::Server;

use crate::Identity;
use crate::acceptor::{Caller, Channels};
use crate::port::{Attention, HostedServer};

/// A blocker and the sockets of its ports.
#[derive(Debug)]
pub(crate) struct BlockerHost<B> {
    peer: BlockerPeer<B, HostedServer>,
    attention: Attention,
    /// The user of the endpoint's process, if it has one of its own.
    endpoint: Option<Identity>,
}

impl<B: Backend> BlockerHost<B> {
    pub(crate) fn new(
        backend: B,
        attention: &Attention,
        endpoint: Option<Identity>,
    ) -> BlockerHost<B> {
        BlockerHost {
            peer: BlockerPeer::new(backend),
            attention: attention.clone(),
            endpoint,
        }
    }

    /// Sets what an endpoint with a user of its own may write.
    pub(crate) fn set_grants(&mut self, grants: Grants) {
        self.peer.set_grants(grants);
    }

    pub(crate) fn status(&self) -> PeerStatus {
        self.peer.status()
    }

    /// The backend's report about the pool.
    pub(crate) fn pool_report(&self) -> Option<PoolReport> {
        self.peer.backend().pool_report()
    }

    /// Passes the time to the backend.
    pub(crate) fn look(&mut self, now: Duration) {
        self.peer.backend_mut().look(now);
    }

    /// Failed syncs of the pool, of other data threads.
    pub(crate) fn failed_pool_syncs_elsewhere(&self) -> u64 {
        self.peer.backend().failed_pool_syncs_elsewhere()
    }

    /// Calls on the pool's storage that have not returned.
    pub(crate) fn waits(&self) -> Vec<Wait> {
        self.peer.backend().waits()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.peer.in_flight() == 0
    }
}

impl<B: Backend> Peer for BlockerHost<B> {
    fn name(&self) -> &str {
        self.peer.name()
    }

    fn poll(&mut self) -> Progress {
        self.peer.poll()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.peer.prepare_sleep()
    }

    fn wake(&mut self) {
        self.peer.wake();
    }
}

impl<B: Backend> Channels for BlockerHost<B> {
    type Channel = ChannelId;

    fn add(&mut self, port: Server, caller: Caller) -> ChannelId {
        let rights = if caller.is(self.endpoint) {
            Rights::Granted
        } else if caller.role == Role::Mapper as u8 {
            Rights::All
        } else {
            Rights::Data
        };
        let port = HostedServer::new(port, &self.attention);
        self.peer.add_channel(port, rights)
    }

    fn remove(&mut self, channel: ChannelId) {
        self.peer.remove_channel(channel);
    }

    fn is_idle(&self, channel: ChannelId) -> bool {
        self.peer.channel_idle(channel)
    }
}

#[cfg(test)]
mod tests {
    use archipelago_doubles::MemoryBackend;
    use archipelago_protocol::handle::{HandleAccess, HandleRequest, OpenObject};
    use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, ObjectRequest};
    use archipelago_protocol::{Access, Epoch, ErrorCode, Lineage};
    use xseg::ClientPort;

    use super::*;

    #[test]
    fn rights_go_by_the_user_first_and_by_the_role_then() {
        let user = Identity {
            uid: 64_001,
            gid: 64_001,
            front_ends: None,
        };
        let (mapper, endpoint) = (Role::Mapper as u8, Role::Endpoint as u8);
        let attention = Attention::default();
        let mut host = BlockerHost::new(MemoryBackend::new(), &attention, Some(user));
        let mut grants = Grants::default();
        grants.allow(Lineage(1), Access::Write);
        host.set_grants(grants);
        let data = |number| ObjectId::data(Lineage(number), Epoch(1));
        let requests = [
            (ObjectOp::Write, data(1)),
            (ObjectOp::Write, data(2)),
            (ObjectOp::Write, ObjectId::log(Lineage(1), 1)),
        ];
        for (uid, role, allowed) in [
            (0, mapper, [true, true, true]),
            (0, endpoint, [true, true, false]),
            (user.uid, endpoint, [true, false, false]),
            (user.uid, mapper, [true, false, false]),
        ] {
            let (mut client, server) = xseg::local::channel(8, 4096).unwrap();
            host.add(
                Server::from(server),
                Caller {
                    uid,
                    role,
                    mapper: 0,
                },
            );
            let mut handle = 0;
            let done = requests.map(|(op, id)| {
                let request = ObjectRequest::new(op, id);
                handle += 1;
                let open = HandleRequest::Open {
                    handle,
                    object: OpenObject::of(&request, HandleAccess::of(op)),
                    again: false,
                };
                client.submit(1, open.encode()).unwrap();
                client.submit(1, request.encode(handle)).unwrap();
                client.publish();
                host.poll();
                let mut answers = std::iter::from_fn(|| client.complete())
                    .map(|(_, completion)| ObjectReply::decode(&completion).result);
                let opened = answers.next().expect("an open is answered at once");
                let written = answers.next().expect("memory answers at once");
                assert!(opened.is_ok() == written.is_ok() && answers.next().is_none());
                opened != Err(ErrorCode::Denied)
            });
            assert_eq!(done, allowed, "user {uid} as {role}");
        }
    }
}
