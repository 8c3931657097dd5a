//! The blocker in a data process: its backend, and the channels of its clients.

use std::time::Duration;

use archipelago_blocker::{Backend, BlockerPeer, ChannelId, Rights};
use archipelago_protocol::control::{PeerStatus, Role, Wait};
use archipelago_runtime::{Peer, Progress};
use xseg::Server;

use super::acceptor::{Caller, Channels};
use super::port::{Attention, HostedServer};

/// A blocker and what its ports listen to.
#[derive(Debug)]
pub(crate) struct BlockerHost<B> {
    peer: BlockerPeer<B, HostedServer>,
    attention: Attention,
}

impl<B: Backend> BlockerHost<B> {
    pub(crate) fn new(backend: B, attention: &Attention) -> BlockerHost<B> {
        BlockerHost {
            peer: BlockerPeer::new(backend),
            attention: attention.clone(),
        }
    }

    pub(crate) fn status(&self) -> PeerStatus {
        self.peer.status()
    }

    /// Tells the backend the time.
    pub(crate) fn look(&mut self, now: Duration) {
        self.peer.backend_mut().look(now);
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
        let rights = if caller.role == Role::Mapper as u8 {
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
