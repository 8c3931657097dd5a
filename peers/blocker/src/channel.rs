//! The state of one channel: its port, the open handles of its client, and the number of requests in flight.
//!
//! Invariants
//! - `in_flight` counts started requests; a channel leaves the table only at 0.

use archipelago_protocol::object::ObjectReply;
use xseg::ServerPort;

use crate::handles::Handles;
use crate::rights::Rights;

/// A channel of the peer. No id is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u64);

#[derive(Debug)]
pub(crate) struct Channel<P> {
    pub(crate) id: ChannelId,
    pub(crate) port: P,
    pub(crate) rights: Rights,
    pub(crate) handles: Handles,
    /// Accept no more requests: removed by its owner, or closed.
    pub(crate) leaving: bool,
    /// Some requests were answered since the last publish.
    unpublished: bool,
    in_flight: usize,
}

impl<P: ServerPort> Channel<P> {
    pub(crate) fn new(id: ChannelId, port: P, rights: Rights) -> Self {
        Channel {
            id,
            port,
            rights,
            handles: Handles::default(),
            leaving: false,
            unpublished: false,
            in_flight: 0,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Counts a started request, which [`Channel::finished`] ends.
    pub(crate) fn started(&mut self) {
        self.in_flight += 1;
    }

    /// Answers a started request.
    pub(crate) fn finished(&mut self, tag: u64, reply: &ObjectReply) {
        self.in_flight -= 1;
        self.answer(tag, reply);
    }

    /// Answers a request that was not started.
    pub(crate) fn answer(&mut self, tag: u64, reply: &ObjectReply) {
        if !self.port.is_closed() {
            self.port.complete(reply.encode(tag));
            self.unpublished = true;
        }
    }

    /// Publishes the answers of this turn.
    pub(crate) fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) {
            self.port.publish();
        }
    }
}
