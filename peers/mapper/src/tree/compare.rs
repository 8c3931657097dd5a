//! Two maps beside each other: a walk from the roots down that leaves out each subtree that both have.
//!
//! Either map may be live: its nodes are looked at in memory, and those that are stored are compared by their pages, which never change.
//! So the walk reads the pages that differ, and nothing else.

use std::rc::Rc;

use super::Tree;
use super::leaf::Leaf;
use super::node::{Body, Child, Node};
use super::place::{
    FAN_OUT, LEAF_OBJECTS, LEAF_SLOTS, Layer, Missing, PageRef, Range, index, small,
};

/// A subtree that is not empty.
#[derive(Debug, Clone)]
enum Subtree {
    Stored(Missing),
    Node { node: Rc<Node>, level: u8 },
}

impl Subtree {
    fn of(child: &Child, level: u8) -> Option<Subtree> {
        match child {
            Child::Empty => None,
            Child::Stored(page) => Some(Subtree::Stored(Missing { page: *page, level })),
            Child::Node(node) => Some(Subtree::Node {
                node: Rc::clone(node),
                level,
            }),
        }
    }

    fn level(&self) -> u8 {
        match self {
            Subtree::Stored(missing) => missing.level,
            Subtree::Node { level, .. } => *level,
        }
    }

    /// Where it is stored, if it is.
    fn page(&self) -> Option<PageRef> {
        match self {
            Subtree::Stored(missing) => Some(missing.page),
            Subtree::Node { node, .. } => node.page.get().copied(),
        }
    }

    /// Whether both are known to have the same below them.
    fn is_same(&self, other: &Subtree) -> bool {
        if self.level() != other.level() {
            return false;
        }
        match (self, other) {
            (Subtree::Node { node, .. }, Subtree::Node { node: other, .. })
                if Rc::ptr_eq(node, other) =>
            {
                true
            }
            _ => self.page().is_some() && self.page() == other.page(),
        }
    }
}

/// One place in both maps, in which they may differ.
#[derive(Debug)]
pub(crate) struct Place {
    /// Of the place. The root of a map that is not as high stands at the left end of it.
    level: u8,
    /// The first object under it.
    first: u64,
    /// Of the map, and of the one that it is compared with.
    subtrees: [Option<Subtree>; 2],
}

/// The nodes of a [`Place`], as far as the maps have one at its level.
pub(crate) type PlaceNodes = [Option<Rc<Node>>; 2];

/// Blocks of one object that lie in one layer of each map; `None`: they read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) range: Range,
    pub(crate) layer: Option<Layer>,
    /// In the map that is compared with.
    pub(crate) base: Option<Layer>,
}

impl Place {
    /// Whether it is one of objects, not of further places.
    pub(crate) fn is_leaf(&self) -> bool {
        self.level == 0
    }

    /// The object in `slot` of a leaf.
    pub(crate) fn object(&self, slot: usize) -> u64 {
        self.first + slot as u64
    }

    /// The nodes that are in memory.
    pub(crate) fn nodes(&self) -> PlaceNodes {
        self.subtrees.each_ref().map(|subtree| match subtree {
            Some(Subtree::Node { node, level }) if *level == self.level => Some(Rc::clone(node)),
            _ => None,
        })
    }

    /// The pages that have to be read for the others.
    pub(crate) fn missing(&self) -> [Option<Missing>; 2] {
        self.subtrees.each_ref().map(|subtree| match subtree {
            Some(Subtree::Stored(missing)) if missing.level == self.level => Some(*missing),
            _ => None,
        })
    }

    /// The segments of the object in `slot` of a leaf, of objects of `blocks` blocks, in order.
    pub(crate) fn segments(
        &self,
        nodes: &PlaceNodes,
        slot: usize,
        blocks: u64,
        mut see: impl FnMut(Segment),
    ) {
        let [leaf, base] = nodes.each_ref().map(|node| node.as_deref().and_then(leaf));
        let first = self.object(slot) * blocks;
        let mut at = 0;
        while at < blocks {
            let look = |leaf: Option<&Leaf>| {
                let (layer, end) = leaf.map_or((None, None), |leaf| leaf.lookup(slot, small(at)));
                (layer, end.map_or(blocks, u64::from))
            };
            let ((layer, end), (base, base_end)) = (look(leaf), look(base));
            let end = end.min(base_end);
            let range = Range {
                start: first + at,
                end: first + end,
            };
            see(Segment { range, layer, base });
            at = end;
        }
    }
}

/// Objects of a leaf, whose segments are looked at one after another.
pub(crate) const SLOTS: usize = LEAF_SLOTS;

fn leaf(node: &Node) -> Option<&Leaf> {
    match &node.body {
        Body::Leaf(leaf) => Some(leaf),
        Body::Inner(_) => None,
    }
}

/// The walk.
#[derive(Debug)]
pub(crate) struct Comparison {
    todo: Vec<Place>,
    /// The first object that is looked at.
    start: u64,
}

impl Comparison {
    /// Compares `map` with `base`, both of objects of one size.
    pub(crate) fn new(map: &Tree, base: &Tree) -> Self {
        let subtrees = [map, base].map(|tree| Subtree::of(&tree.root, tree.level));
        let levels = subtrees.iter().flatten().map(Subtree::level);
        let level = levels.max().unwrap_or(0);
        let whole = Place {
            level,
            first: 0,
            subtrees,
        };
        Comparison {
            todo: vec![whole],
            start: 0,
        }
    }

    /// The same without objects before `start`.
    pub(crate) fn from(self, start: u64) -> Self {
        Comparison { start, ..self }
    }

    /// The next place in which the maps may differ; its nodes go to [`Comparison::descend`], or to [`Place::segments`].
    pub(crate) fn next_place(&mut self) -> Option<Place> {
        let is_same = |place: &Place| match &place.subtrees {
            [None, None] => true,
            [Some(map), Some(base)] => map.is_same(base),
            _ => false,
        };
        loop {
            let place = self.todo.pop()?;
            if !is_same(&place) {
                return Some(place);
            }
        }
    }

    /// Goes on with what is below `place`.
    pub(crate) fn descend(&mut self, place: &Place, nodes: &PlaceNodes) {
        let level = place.level - 1;
        let span = LEAF_OBJECTS * FAN_OUT.pow(u32::from(level));
        // The leftmost first.
        for number in (0..FAN_OUT).rev() {
            if place.first + (number + 1) * span <= self.start {
                return;
            }
            let below = |side: usize| {
                let subtree = place.subtrees[side].as_ref()?;
                if subtree.level() < place.level {
                    return (number == 0).then(|| subtree.clone());
                }
                match nodes[side].as_deref().map(Node::body) {
                    Some(Body::Inner(children)) => Subtree::of(&children[index(number)], level),
                    Some(Body::Leaf(_)) | None => None,
                }
            };
            let subtrees = [below(0), below(1)];
            if subtrees.iter().any(Option::is_some) {
                self.todo.push(Place {
                    level,
                    first: place.first + number * span,
                    subtrees,
                });
            }
        }
    }
}
