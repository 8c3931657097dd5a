//! The walk over the pages of a map: each is read as it would be to serve, and what it names is noted.

use std::rc::Rc;

use archipelago_protocol::check::FindingKind;
use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{BLOCK_SIZE, Lineage};

use super::{Data, Inspection};
use crate::catalogue::Item;
use crate::disk::name_of;
use crate::tree::{Body, Child, FAN_OUT, LEAF_OBJECTS, Layer, Leaf, Missing, Root};

/// The doctor reads one block in each stretch of this length: a backend may have lost a part of an object.
const CHUNK_LOG2: u32 = 36;

impl Inspection {
    /// Reads every page that `root` leads to and that was not read before.
    pub(super) async fn walk(&mut self, root: Root, item: &Item) {
        let parts = Rc::clone(&self.parts);
        let mut todo: Vec<(Missing, u64)> = Vec::new();
        let level = root.level;
        todo.extend(root.page.map(|page| (Missing { page, level }, 0)));
        while let Some((place, first)) = todo.pop() {
            let Missing { page, level } = place;
            if !self.pages.insert((page, first)) {
                continue;
            }
            let pack = ObjectId::pack(page.lineage, page.pack);
            self.named.insert(pack);
            if !self.has_entry(page.lineage) {
                let why = format!("{} is needed, but has no entry", name_of(pack));
                self.find(FindingKind::Missing, why, item.name.as_ref());
            }
            self.report.checked.pages += 1;
            let node = match parts.pool.read_page(place, item.object_size).await {
                Ok(node) => node,
                Err(failure) => {
                    self.failed(failure, item.name.as_ref());
                    continue;
                }
            };
            match node.body() {
                Body::Leaf(leaf) => self.see_leaf(leaf, first, item),
                Body::Inner(children) => {
                    let level = level - 1;
                    let span = LEAF_OBJECTS * FAN_OUT.pow(u32::from(level));
                    for (index, child) in children.iter().enumerate() {
                        if let Child::Stored(page) = *child {
                            todo.push((Missing { page, level }, first + index as u64 * span));
                        }
                    }
                }
            }
        }
    }

    /// Notes the data that a leaf names; its first object has the number `first`.
    fn see_leaf(&mut self, leaf: &Leaf, first: u64, item: &Item) {
        for layer in leaf.layers() {
            if !self.has_entry(layer.lineage) {
                let id = ObjectId::data(layer.lineage, layer.epoch);
                let why = format!("{} is needed, but has no entry", name_of(id));
                self.find(FindingKind::Missing, why, item.name.as_ref());
            }
        }
        let blocks = item.object_size.blocks();
        for (slot, object) in (first..first + LEAF_OBJECTS).enumerate() {
            for run in leaf.runs(slot) {
                let base = object * blocks;
                let start = (base + u64::from(run.start)) * BLOCK_SIZE;
                let end = (base + u64::from(run.end())) * BLOCK_SIZE;
                self.need(item, leaf.layer(run), start, end);
            }
        }
    }

    fn has_entry(&self, lineage: Lineage) -> bool {
        self.names.get(lineage).is_some()
    }

    /// A map or log says that bytes `start .. end` are in `layer`.
    pub(super) fn need(&mut self, item: &Item, layer: Layer, start: u64, end: u64) {
        let id = ObjectId::data(layer.lineage, layer.epoch);
        let mut at = start;
        while at < end {
            let chunk = at >> CHUNK_LOG2;
            let until = end.min((chunk + 1) << CHUNK_LOG2);
            let data = self.data.entry((id, chunk)).or_insert_with(|| Data {
                start: at,
                end: until,
                object_size: item.object_size,
                entry: item.lineage,
                needed_by: item.name.clone(),
            });
            data.start = data.start.min(at);
            data.end = data.end.max(until);
            at = until;
        }
    }
}
