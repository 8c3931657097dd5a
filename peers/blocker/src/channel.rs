//! What the peer keeps of one channel: its port, what its client has open, and how much is in flight.
//!
//! Invariants
//! - `in_flight` counts started requests; a channel leaves the table only at 0.

use archipelago_protocol::object::ObjectReply;
use xseg::ServerPort;

use crate::handles::Handles;
use crate::rights::Rights;

/// A channel that the peer serves. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u64);

#[derive(Debug)]
pub(crate) struct Channel<P> {
    pub(crate) id: ChannelId,
    pub(crate) port: P,
    pub(crate) rights: Rights,
    pub(crate) handles: Handles,
    /// Accept no more: removed by its owner, or closed.
    pub(crate) leaving: bool,
    /// Something was answered since the last publish.
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

    /// Notes a started request, which [`Channel::finished`] ends.
    pub(crate) fn started(&mut self) {
        self.in_flight += 1;
    }

    /// Answers a started request.
    pub(crate) fn finished(&mut self, tag: u64, reply: &ObjectReply) {
        self.in_flight -= 1;
        self.answer(tag, reply);
    }

    /// Answers without having started.
    pub(crate) fn answer(&mut self, tag: u64, reply: &ObjectReply) {
        if !self.port.is_closed() {
            self.port.complete(reply.encode(tag));
            self.unpublished = true;
        }
    }

    /// Makes the answers of this turn visible.
    pub(crate) fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) {
            self.port.publish();
        }
    }
}
