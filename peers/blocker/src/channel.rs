//! What the peer keeps of one channel: its port, how much is in flight, and the barriers that wait.
//!
//! Invariants
//! - A barrier splits the channel's requests into stretches; it completes when its stretch and all earlier ones have.
//! - `in_flight` counts started requests and waiting barriers; a channel leaves the table only at 0.

use std::collections::VecDeque;

use archipelago_protocol::object::ObjectReply;
use xseg::ServerPort;

use crate::rights::Rights;

/// A channel that the peer serves. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u64);

/// Requests between two barriers.
#[derive(Debug, Default)]
struct Stretch {
    /// Of these, started and not answered.
    in_flight: usize,
    /// Tag of the barrier that ends the stretch; `None` in the last one.
    barrier: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Channel<P> {
    pub(crate) id: ChannelId,
    pub(crate) port: P,
    pub(crate) rights: Rights,
    /// Accept no more: removed by its owner, or closed.
    pub(crate) leaving: bool,
    /// Something was answered since the last publish.
    unpublished: bool,
    in_flight: usize,
    /// Number of the first stretch.
    first: u64,
    /// Never empty.
    stretches: VecDeque<Stretch>,
}

impl<P: ServerPort> Channel<P> {
    pub(crate) fn new(id: ChannelId, port: P, rights: Rights) -> Self {
        let stretches = VecDeque::from([Stretch::default()]);
        Channel {
            id,
            port,
            rights,
            leaving: false,
            unpublished: false,
            in_flight: 0,
            first: 0,
            stretches,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Notes a started request; its stretch goes back to [`Channel::finished`].
    pub(crate) fn started(&mut self) -> u64 {
        self.in_flight += 1;
        let last = self.stretches.len() - 1;
        self.stretches[last].in_flight += 1;
        self.first + last as u64
    }

    /// Notes a barrier, which may be due at once.
    pub(crate) fn barrier(&mut self, tag: u64) {
        self.in_flight += 1;
        if let Some(last) = self.stretches.back_mut() {
            last.barrier = Some(tag);
        }
        self.stretches.push_back(Stretch::default());
        self.release_barriers();
    }

    /// Answers a request of `stretch`, and the barriers that waited for it.
    pub(crate) fn finished(&mut self, stretch: u64, tag: u64, reply: &ObjectReply) {
        self.in_flight -= 1;
        let index = usize::try_from(stretch - self.first).expect("stretches in memory");
        self.stretches[index].in_flight -= 1;
        self.answer(tag, reply);
        self.release_barriers();
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

    fn release_barriers(&mut self) {
        while let Some(&Stretch {
            in_flight: 0,
            barrier: Some(tag),
        }) = self.stretches.front()
        {
            self.stretches.pop_front();
            self.first += 1;
            self.in_flight -= 1;
            self.answer(tag, &ObjectReply::done(0));
        }
    }
}
