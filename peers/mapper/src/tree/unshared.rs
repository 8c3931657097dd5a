//! What one stored map has and others have not: a walk from the roots down that leaves out each subtree that is theirs, too.
//!
//! Pages are immutable and shared, so two maps that name the same page at the same place are the same below it. The walk reads the
//! pages that differ, and nothing else.

use archipelago_protocol::ObjectSize;

use super::leaf::Leaf;
use super::node::{Body, Child, Node};
use super::place::{FAN_OUT, FAN_SLOTS, LEAF_OBJECTS, LEAF_SLOTS, Layer, Missing, Range, Root};

/// One place in three maps: a subtree of each, if it is not empty there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Of the place. The root of a map that is not as high stands at the left end of it.
    level: u8,
    /// The first object under it.
    first: u64,
    removed: Missing,
    older: Option<Missing>,
    newer: Option<Missing>,
}

impl Part {
    /// The page of the removed map, if it is one of this place.
    pub(crate) fn removed(&self) -> Option<Missing> {
        self.at_level(Some(self.removed))
    }

    /// The page of the older map that has to be looked at, too.
    pub(crate) fn older(&self) -> Option<Missing> {
        // What older blocks a leaf has, their epochs say.
        self.at_level(self.older).filter(|_| !self.is_leaf())
    }

    /// The page of the newer map that has to be looked at, too.
    pub(crate) fn newer(&self) -> Option<Missing> {
        self.at_level(self.newer)
    }

    /// Whether it is one of objects, not of further parts.
    pub(crate) fn is_leaf(&self) -> bool {
        self.level == 0
    }

    fn at_level(&self, subtree: Option<Missing>) -> Option<Missing> {
        subtree.filter(|subtree| subtree.level == self.level)
    }
}

/// The nodes of a [`Part`], as far as it has asked for them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Nodes<'a> {
    pub(crate) removed: Option<&'a Node>,
    pub(crate) older: Option<&'a Node>,
    pub(crate) newer: Option<&'a Node>,
}

/// The walk.
#[derive(Debug)]
pub(crate) struct Unshared {
    todo: Vec<Part>,
}

impl Unshared {
    /// What the map of `removed` has, and neither that of `older` nor that of `newer`.
    pub(crate) fn new(removed: Root, older: Option<Root>, newer: Option<Root>) -> Self {
        let subtree = |root: Root| {
            let level = root.level;
            root.page.map(|page| Missing { page, level })
        };
        let older = older.and_then(subtree);
        let newer = newer.and_then(subtree);
        let level = [
            Some(removed.level),
            older.map(|of| of.level),
            newer.map(|of| of.level),
        ];
        let level = level.into_iter().flatten().max().unwrap_or(0);
        let whole = subtree(removed).map(|removed| Part {
            level,
            first: 0,
            removed,
            older,
            newer,
        });
        Unshared {
            todo: whole.into_iter().collect(),
        }
    }

    /// The next part in which the maps differ; its nodes go to [`Unshared::descend`], or to [`Part::blocks`].
    pub(crate) fn next_part(&mut self) -> Option<Part> {
        let differs = |part: &Part| {
            let removed = Some(part.removed);
            removed != part.older && removed != part.newer
        };
        loop {
            let part = self.todo.pop()?;
            if differs(&part) {
                return Some(part);
            }
        }
    }

    /// Goes on with what is below `part`.
    pub(crate) fn descend(&mut self, part: &Part, nodes: Nodes<'_>) {
        let level = part.level - 1;
        let span = LEAF_OBJECTS * FAN_OUT.pow(u32::from(level));
        // The leftmost first.
        for index in (0..FAN_SLOTS).rev() {
            let child = |subtree, node| child(subtree, node, part.level, index);
            if let Some(removed) = child(Some(part.removed), nodes.removed) {
                self.todo.push(Part {
                    level,
                    first: part.first + index as u64 * span,
                    removed,
                    older: child(part.older, nodes.older),
                    newer: child(part.newer, nodes.newer),
                });
            }
        }
    }
}

/// The subtree with number `index` below `subtree`, which stands at a place of `level`.
fn child(
    subtree: Option<Missing>,
    node: Option<&Node>,
    level: u8,
    index: usize,
) -> Option<Missing> {
    let subtree = subtree?;
    if subtree.level < level {
        return (index == 0).then_some(subtree);
    }
    let level = level - 1;
    match node.map(Node::body) {
        Some(Body::Inner(children)) => match children[index] {
            Child::Stored(page) => Some(Missing { page, level }),
            Child::Empty | Child::Node(_) => None,
        },
        Some(Body::Leaf(_)) | None => None,
    }
}

impl Part {
    /// The blocks of a leaf of the removed map that are of a `wanted` layer, and that the newer map has elsewhere or not at all; in the
    /// order of the blocks, neighbours in one layer as one range.
    pub(crate) fn blocks(
        &self,
        nodes: Nodes<'_>,
        object_size: ObjectSize,
        wanted: impl Fn(&Layer) -> bool,
    ) -> Vec<(Layer, Range)> {
        let mut found: Vec<(Layer, Range)> = Vec::new();
        let Some(removed) = leaf_of(nodes.removed) else {
            return found;
        };
        let newer = leaf_of(nodes.newer);
        for (slot, object) in (0..LEAF_SLOTS).zip(self.first..) {
            let base = object * object_size.blocks();
            for run in removed.runs(slot) {
                let layer = removed.layer(run);
                if !wanted(&layer) {
                    continue;
                }
                let mut at = run.start;
                while at < run.end() {
                    let (kept, end) = newer.map_or((None, None), |newer| newer.lookup(slot, at));
                    let end = end.map_or(run.end(), |end| end.min(run.end()));
                    if kept != Some(layer) {
                        let (start, end) = (base + u64::from(at), base + u64::from(end));
                        match found.last_mut() {
                            Some((of, last)) if *of == layer && last.end == start => last.end = end,
                            _ => found.push((layer, Range { start, end })),
                        }
                    }
                    at = end;
                }
            }
        }
        found
    }
}

fn leaf_of(node: Option<&Node>) -> Option<&Leaf> {
    match node.map(Node::body) {
        Some(Body::Leaf(leaf)) => Some(leaf),
        Some(Body::Inner(_)) | None => None,
    }
}
