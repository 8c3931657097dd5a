//! What the mapper asks its shell to do.

use archipelago_protocol::catalogue::CatalogueReply;
use archipelago_protocol::map::MapReply;
use archipelago_protocol::object::ObjectRequest;

/// A connection of a volume peer. Never used again for another one, also after it disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// An object request of the mapper, until its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EffectId(pub u64);

/// Something to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send `request` to the blocker, then call [`crate::Mapper::object_done`] with `id`. Its memory field is for the
    /// shell to fill; its `len` is the bytes of `data` to write, or the room for what is read.
    Object {
        /// To be given back.
        id: EffectId,
        /// What to ask.
        request: ObjectRequest,
        /// What to write; empty otherwise.
        data: Vec<u8>,
    },
    /// Answer a volume peer.
    MapReply {
        /// Whom.
        client: ClientId,
        /// Which of its requests.
        tag: u64,
        /// The answer.
        reply: MapReply,
    },
    /// Answer control.
    CatalogueReply {
        /// Which request.
        tag: u64,
        /// The answer.
        reply: CatalogueReply,
    },
}
