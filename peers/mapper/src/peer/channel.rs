//! What the peer keeps of one channel: its port and how much is in flight.
//!
//! Invariants
//! - `in_flight` counts requests that the mapper has and has not answered; a channel is forgotten only at 0.
//! - What a flush carries is copied out of the arena once, before it is looked at.

use archipelago_protocol::journaled::{AREA_LEN, JournaledData};
use archipelago_protocol::map::{MapOp, MapReply, MapRequest};
use archipelago_protocol::{ErrorCode, Grants};
use archipelago_runtime::Progress;
use xseg::{RegionId, ServerPort, Submission};

use super::rights::Rights;
use crate::effect::ClientId;

/// A volume peer's channel.
#[derive(Debug)]
pub(super) struct Channel<P> {
    client: ClientId,
    port: P,
    rights: Rights,
    /// Accepts nothing more: removed by its owner, or closed.
    leaving: bool,
    /// Something was answered since the last publish.
    unpublished: bool,
    in_flight: usize,
}

impl<P: ServerPort> Channel<P> {
    pub(super) fn new(client: ClientId, port: P, rights: Rights) -> Self {
        Channel {
            client,
            port,
            rights,
            leaving: false,
            unpublished: false,
            in_flight: 0,
        }
    }

    pub(super) fn client(&self) -> ClientId {
        self.client
    }

    pub(super) fn is(&self, client: ClientId) -> bool {
        self.client == client
    }

    pub(super) fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Accepts nothing more.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
    }

    /// Leaves if the port is closed; busy if that is new.
    pub(super) fn note_closed(&mut self) -> Progress {
        if self.leaving || !self.port.is_closed() {
            return Progress::Idle;
        }
        self.leaving = true;
        Progress::Busy
    }

    /// Whether nothing more comes and nothing is under way.
    pub(super) fn has_ended(&self) -> bool {
        self.leaving && self.in_flight == 0
    }

    /// The next entry.
    pub(super) fn accept(&mut self) -> Option<Submission> {
        if self.leaving {
            return None;
        }
        self.port.accept()
    }

    /// Whether the client may ask for `request`.
    pub(super) fn allows(&self, request: &MapRequest, grants: &Grants) -> bool {
        self.rights.allow(request, grants)
    }

    /// A private copy of what a flush carries in the channel's arena.
    pub(super) fn carried(&self, request: &MapRequest) -> Result<JournaledData, ErrorCode> {
        if request.op != MapOp::FlushCommit || request.len == 0 {
            return Ok(JournaledData::default());
        }
        if request.len > AREA_LEN {
            return Err(ErrorCode::Invalid);
        }
        let arena = self.port.regions().get(RegionId::ARENA);
        let arena = arena.ok_or(ErrorCode::Invalid)?;
        let mut area = vec![0; usize::try_from(request.len).expect("at most AREA_LEN")];
        arena
            .read(request.offset, &mut area)
            .map_err(|_outside| ErrorCode::Invalid)?;
        JournaledData::new(area)
    }

    /// Notes a request that goes to the mapper, which [`Channel::finished`] ends.
    pub(super) fn started(&mut self) -> ClientId {
        self.in_flight += 1;
        self.client
    }

    /// Answers a request that the mapper had.
    pub(super) fn finished(&mut self, tag: u64, reply: MapReply) {
        self.in_flight -= 1;
        self.answer(tag, reply);
    }

    /// Answers a request that the mapper never gets.
    pub(super) fn refuse(&mut self, tag: u64, code: ErrorCode) {
        self.answer(tag, MapReply::failed(code));
    }

    fn answer(&mut self, tag: u64, reply: MapReply) {
        self.port.complete(reply.encode(tag));
        self.unpublished = true;
    }

    /// Makes the replies of this turn visible.
    pub(super) fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) {
            self.port.publish();
        }
    }
}
