//! Requests of control that tests make again and again.

use archipelago_protocol::catalogue::{CatalogueRequest, Kind};
use archipelago_protocol::object::ObjectOp;
use archipelago_protocol::{Labels, Lineage, Name, ObjectSize, OnFull};

use super::Rig;

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A volume of 512 bytes.
pub(crate) fn volume(text: &str, lineage: Lineage) -> CatalogueRequest {
    creation(text, lineage, Kind::Volume, 512)
}

fn creation(text: &str, lineage: Lineage, kind: Kind, size: u64) -> CatalogueRequest {
    CatalogueRequest::Create {
        name: name(text),
        lineage,
        kind,
        size,
        object_size: ObjectSize::MIN,
        created: 0,
        on_full: OnFull::default(),
        labels: Labels::default(),
    }
}

impl Rig {
    /// An import of a mebibyte.
    pub(crate) fn import(&mut self, text: &str) -> Lineage {
        let lineage = self.fresh();
        self.entry(creation(text, lineage, Kind::Importing, 1 << 20));
        lineage
    }

    /// Whether a stalled rig has a request of `op`.
    pub(crate) fn waits_for(&self, op: ObjectOp) -> bool {
        self.waiting(op).is_some()
    }
}
