//! Which blocks hold data, over whole subtrees that are empty and with bounded work.

use archipelago_protocol::status::{BlockState, MapRuns};

use super::Tree;
use super::cache::Cache;
use super::leaf::Leaf;
use super::node::{Body, Child};
use super::place::{FAN_OUT, LEAF_OBJECTS, Missing, Range, index};

/// Runs, objects without any and empty children that one status looks at, and then to the end of an inner node: some 10 us
/// of work. A leaf of whole objects is 512 of them.
pub(super) const STEPS_MAX: u32 = 2048;

/// A part of a tree that is in one state.
#[derive(Debug, Clone, Copy)]
struct Extent {
    state: BlockState,
    /// The block behind it.
    end: u64,
}

impl Tree {
    /// The states of the blocks of `range`, which is not empty: from its first block on, as far as an answer has room and
    /// [`STEPS_MAX`] go. Neighbours differ in their state, but for a run that is longer than one entry of the answer.
    ///
    /// # Errors
    /// The page of the first block has to be loaded first. A page further on only ends the answer before it.
    pub(crate) fn status(&self, cache: &Cache, range: Range) -> Result<MapRuns, Missing> {
        let mut steps = STEPS_MAX;
        let mut runs = MapRuns::default();
        let mut run = self.extent(cache, range.start, &mut steps)?;
        let mut start = range.start;
        while run.end < range.end && steps > 0 {
            let Ok(next) = self.extent(cache, run.end, &mut steps) else {
                break;
            };
            if next.state != run.state {
                if !runs.push(run.state, run.end - start) {
                    return Ok(runs);
                }
                start = run.end;
            }
            run = next;
        }
        runs.push(run.state, run.end.min(range.end) - start);
        Ok(runs)
    }

    /// The extent that begins at `block`, inside the node that says what `block` holds.
    fn extent(&self, cache: &Cache, block: u64, steps: &mut u32) -> Result<Extent, Missing> {
        let mut hole = Extent {
            state: BlockState::Hole,
            end: u64::MAX,
        };
        let (mut child, mut level) = (&self.root, self.level);
        *steps = steps.saturating_sub(1);
        if block >= self.span(level) {
            return Ok(hole);
        }
        loop {
            let node = match child {
                Child::Empty => return Ok(hole),
                Child::Stored(page) => cache.get(page).ok_or(Missing { page: *page, level })?,
                Child::Node(node) => node,
            };
            match &node.body {
                Body::Leaf(leaf) => return Ok(self.leaf_extent(leaf, block, steps)),
                Body::Inner(children) => {
                    level -= 1;
                    let span = self.span(level);
                    let at = index(block / span % FAN_OUT);
                    let empty = children[at..]
                        .iter()
                        .take_while(|child| matches!(child, Child::Empty))
                        .count();
                    *steps = steps.saturating_sub(u32::try_from(empty).expect("children"));
                    hole.end = (block / span + empty as u64) * span;
                    child = &children[at];
                }
            }
        }
    }

    fn leaf_extent(&self, leaf: &Leaf, block: u64, steps: &mut u32) -> Extent {
        let leaf_blocks = self.object_blocks * LEAF_OBJECTS;
        let leaf_end = (block / leaf_blocks + 1) * leaf_blocks;
        let mut found = self.leaf_run(leaf, block);
        while found.end < leaf_end && *steps > 0 {
            *steps -= 1;
            let next = self.leaf_run(leaf, found.end);
            if next.state != found.state {
                break;
            }
            found = next;
        }
        found
    }

    fn leaf_run(&self, leaf: &Leaf, block: u64) -> Extent {
        let (layer, end) = self.leaf_lookup(leaf, block);
        let state = match layer {
            Some(_) => BlockState::Data,
            None => BlockState::Hole,
        };
        Extent { state, end }
    }
}

#[cfg(test)]
mod tests;
