//! Who serves the pool: incarnations of nodes. Layout: `docs/map-format.md`, "Incarnations".
//!
//! Begin: 0 u32, incarnation (16 bytes), node length u16, addresses length u16, 0 u32, node, addresses. End: how u8, 0 u8, 0 u16,
//! incarnation. Zeros to 8.
//!
//! Invariants
//! - An incarnation begins before it owns anything: volume, import, deletion. An id is never used for another one.
//! - An incarnation that is not listed has ended: whatever names it may be taken over. It notices that itself when it reads on, and
//!   its appends are refused until it has, because its end stands in the log.

use std::collections::BTreeMap;

use archipelago_protocol::Lineage;

use crate::config::{ADDRESSES_LEN_MAX, NODE_LEN_MAX};
use crate::format::{Reader, Writer};

/// A node's right to change the pool, from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Incarnation {
    /// Random, not 0.
    pub(crate) id: u128,
    /// Name of the node, for people.
    pub(crate) node: String,
    /// What a fence has to name, in words of the backend. Pools of files have none.
    pub(crate) addresses: String,
}

/// How an incarnation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It has left, owning nothing.
    Gone,
    /// Somebody has declared it dead, and whatever it still sends is stopped.
    Fenced,
}

impl Incarnation {
    pub(super) fn encode(&self, to: &mut Writer) {
        to.u32(0);
        to.lineage(Lineage(self.id));
        to.u16(u16::try_from(self.node.len()).expect("at most NODE_LEN_MAX"));
        to.u16(u16::try_from(self.addresses.len()).expect("at most ADDRESSES_LEN_MAX"));
        to.u32(0);
        to.bytes(self.node.as_bytes());
        to.bytes(self.addresses.as_bytes());
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, String> {
        let bad = || "a catalogue record's incarnation is impossible".to_owned();
        from.zeros(4).ok_or_else(bad)?;
        let id = from.lineage().filter(|id| id.0 != 0).ok_or_else(bad)?.0;
        let node_len = usize::from(from.u16().ok_or_else(bad)?);
        let addresses_len = usize::from(from.u16().ok_or_else(bad)?);
        from.zeros(4).ok_or_else(bad)?;
        if node_len > NODE_LEN_MAX || addresses_len > ADDRESSES_LEN_MAX {
            return Err(bad());
        }
        let mut text = |len: usize| {
            let text = std::str::from_utf8(from.take(len)?).ok()?;
            Some(text.to_owned())
        };
        let node = text(node_len).ok_or_else(bad)?;
        let addresses = text(addresses_len).ok_or_else(bad)?;
        from.padding().map_err(|problem| problem.to_string())?;
        Ok(Incarnation {
            id,
            node,
            addresses,
        })
    }
}

impl End {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u8(match self {
            End::Gone => 1,
            End::Fenced => 2,
        });
        to.u8(0);
        to.u16(0);
    }

    /// How, and which incarnation.
    pub(super) fn decode(from: &mut Reader<'_>) -> Result<(Self, u128), String> {
        let bad = || "a catalogue record's end of an incarnation is impossible".to_owned();
        let how = match from.u8() {
            Some(1) => End::Gone,
            Some(2) => End::Fenced,
            _ => return Err(bad()),
        };
        from.zeros(3).ok_or_else(bad)?;
        let incarnation = from.lineage().ok_or_else(bad)?.0;
        from.padding().map_err(|problem| problem.to_string())?;
        Ok((how, incarnation))
    }
}

/// The incarnations that serve the pool.
#[derive(Debug, Default)]
pub(crate) struct Incarnations {
    live: BTreeMap<u128, Incarnation>,
}

impl Incarnations {
    pub(super) fn begin(&mut self, incarnation: Incarnation) {
        self.live.insert(incarnation.id, incarnation);
    }

    pub(super) fn end(&mut self, incarnation: u128) {
        self.live.remove(&incarnation);
    }

    pub(crate) fn is_live(&self, incarnation: u128) -> bool {
        self.live.contains_key(&incarnation)
    }

    /// The node of an incarnation that serves the pool.
    pub(crate) fn node(&self, incarnation: u128) -> Option<&str> {
        Some(self.live.get(&incarnation)?.node.as_str())
    }

    /// All that serve the pool, in order of their ids.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Incarnation> + '_ {
        self.live.values()
    }

    /// Those beside `incarnation`.
    pub(crate) fn others(&self, incarnation: u128) -> impl Iterator<Item = &Incarnation> + '_ {
        self.live().filter(move |other| other.id != incarnation)
    }
}
