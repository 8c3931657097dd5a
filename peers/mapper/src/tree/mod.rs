//! The map of a volume: a persistent tree from blocks to the layers that hold them.
//!
//! A leaf holds 512 objects, an inner node 256 children. A copy of a tree costs one pointer; what a later change
//! touches is copied on its way down, so a frozen tree and the live one share everything else.
//!
//! Invariants
//! - A node whose `page` is set is stored with exactly its content; any change clears it.
//! - Runs of an object are sorted, disjoint, not empty, and neighbours differ in their layer: a lookup is one run.
//! - What no run covers reads as zeros.
//! - A change is made whole or not at all: [`Tree::missing`] names the pages that it needs beforehand.

mod cache;
mod compare;
mod leaf;
mod node;
mod page;
mod place;
mod set;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod unshared;

use std::rc::Rc;

use archipelago_protocol::ObjectSize;

use leaf::LeafPlace;
use place::{index, small};

pub(crate) use cache::Cache;
pub(crate) use compare::{Comparison, PlaceNodes, SLOTS, Segment};
pub(crate) use leaf::Leaf;
pub(crate) use node::{Body, Child, Node};
#[cfg(feature = "fuzzing")]
pub(crate) use page::reencode;
pub(crate) use page::{REF_LEN, decode, read_ref, write_ref};
pub(crate) use place::{
    FAN_OUT, LEAF_OBJECTS, LEVEL_MAX, Layer, Missing, PackPlace, PageRef, Range, Root, WritePlace,
};
pub(crate) use store::Written;
pub(crate) use unshared::{Nodes, Unshared};

/// A map, live or frozen.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    root: Child,
    level: u8,
    /// Blocks of an object.
    object_blocks: u64,
    object_size: ObjectSize,
}

impl Tree {
    pub(crate) fn new(root: Root, object_size: ObjectSize) -> Self {
        let child = root.page.map_or(Child::Empty, Child::Stored);
        Tree {
            root: child,
            level: root.level,
            object_blocks: object_size.blocks(),
            object_size,
        }
    }

    pub(crate) fn object_size(&self) -> ObjectSize {
        self.object_size
    }

    /// Blocks under a node of `level`.
    fn span(&self, level: u8) -> u64 {
        self.object_blocks * LEAF_OBJECTS * FAN_OUT.pow(u32::from(level))
    }

    /// Raises the root until block `end - 1` is under it.
    fn grow(&mut self, end: u64) {
        while self.span(self.level) < end {
            self.level += 1;
            assert!(self.level <= LEVEL_MAX, "volumes are at most 1 PiB");
            if matches!(self.root, Child::Empty) {
                continue;
            }
            let mut node = Node::empty(self.level);
            if let Body::Inner(children) = &mut node.body {
                children[0] = std::mem::replace(&mut self.root, Child::Empty);
            }
            self.root = Child::Node(Rc::new(node));
        }
    }

    /// Calls `see` with the leaf that holds `block` and the object's index in it; `None`: it is all zeros.
    /// `Err`: what has to be loaded first.
    pub(crate) fn with_object<T>(
        &self,
        cache: &Cache,
        block: u64,
        see: impl FnOnce(Option<(&Leaf, usize)>) -> T,
    ) -> Result<T, Missing> {
        if block >= self.span(self.level) {
            return Ok(see(None));
        }
        let object = block / self.object_blocks;
        let mut child = &self.root;
        let mut level = self.level;
        loop {
            let node = match child {
                Child::Empty => return Ok(see(None)),
                Child::Stored(page) => cache.get(page).ok_or(Missing { page: *page, level })?,
                Child::Node(node) => node,
            };
            match &node.body {
                Body::Leaf(leaf) => return Ok(see(Some((leaf, index(object % LEAF_OBJECTS))))),
                Body::Inner(children) => {
                    level -= 1;
                    let below = LEAF_OBJECTS * FAN_OUT.pow(u32::from(level));
                    child = &children[index(object / below % FAN_OUT)];
                }
            }
        }
    }

    /// The run that holds `block`: its layer (`None`: zeros) and its end, inside the object.
    pub(crate) fn lookup(
        &self,
        cache: &Cache,
        block: u64,
    ) -> Result<(Option<Layer>, u64), Missing> {
        self.with_object(cache, block, |found| match found {
            Some((leaf, _)) => self.leaf_lookup(leaf, block),
            None => (None, (block / self.object_blocks + 1) * self.object_blocks),
        })
    }

    /// The run that holds `block`, in the leaf that has the block's object.
    fn leaf_lookup(&self, leaf: &Leaf, block: u64) -> (Option<Layer>, u64) {
        let (object, into) = (block / self.object_blocks, block % self.object_blocks);
        let (layer, end) = leaf.lookup(index(object % LEAF_OBJECTS), small(into));
        let end = end.map_or(self.object_blocks, u64::from);
        (layer, block - into + end)
    }

    /// Where a write of `range` goes, from its first block on, inside the object of that block.
    pub(crate) fn write_place(
        &self,
        cache: &Cache,
        range: Range,
        owned: impl Fn(&Layer) -> bool,
    ) -> Result<WritePlace, Missing> {
        let first = range.start - range.start % self.object_blocks;
        let end = range.end.min(first + self.object_blocks);
        self.with_object(cache, range.start, |found| {
            let Some((leaf, object)) = found else {
                return WritePlace::Unowned { end };
            };
            let (from, to) = (small(range.start - first), small(end - first));
            match leaf.write_place(object, from, to, owned) {
                LeafPlace::Owned(layer, end) => WritePlace::Owned {
                    epoch: layer.epoch,
                    end: first + u64::from(end),
                },
                LeafPlace::Unowned(end) => WritePlace::Unowned {
                    end: first + u64::from(end),
                },
            }
        })
    }

    pub(crate) fn is_stored(&self) -> bool {
        match &self.root {
            Child::Node(node) => node.page.get().is_some(),
            Child::Empty | Child::Stored(_) => true,
        }
    }

    /// Root of a tree of which every page is stored.
    pub(crate) fn stored_root(&self) -> Option<Root> {
        let page = match &self.root {
            Child::Empty => None,
            Child::Stored(page) => Some(*page),
            Child::Node(node) => Some(*node.page.get()?),
        };
        Some(Root {
            page,
            level: self.level,
        })
    }
}
