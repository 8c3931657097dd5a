//! A snapshot between its begin and its commit: the frozen map, into which late writes of the old epoch still come.

use archipelago_protocol::Epoch;

use crate::tree::{Cache, Layer, Missing, Range, Tree};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begun,
    Committing,
}

/// A snapshot under way.
#[derive(Debug)]
pub(super) struct SnapshotInProgress {
    token: u64,
    tree: Tree,
    epoch: Epoch,
    size: u64,
    /// Zeroed in the live tree since the begin: a late write of the old epoch does not come back there.
    zeroed: Vec<Range>,
    stage: Stage,
}

/// What a commit makes durable.
#[derive(Debug)]
pub(crate) struct FrozenMap {
    pub(crate) tree: Tree,
    /// Of the writes that are in it.
    pub(crate) epoch: Epoch,
    /// Bytes.
    pub(crate) size: u64,
}

impl SnapshotInProgress {
    /// The map at this moment; `epoch` is that of the writes so far.
    pub(super) fn new(token: u64, tree: Tree, epoch: Epoch, size: u64) -> Self {
        SnapshotInProgress {
            token,
            tree,
            epoch,
            size,
            zeroed: Vec::new(),
            stage: Stage::Begun,
        }
    }

    pub(super) fn token(&self) -> u64 {
        self.token
    }

    pub(super) fn is_committing(&self) -> bool {
        self.stage == Stage::Committing
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// From now on nothing changes in it.
    pub(super) fn commit(&mut self) -> FrozenMap {
        self.stage = Stage::Committing;
        FrozenMap {
            tree: self.tree.clone(),
            epoch: self.epoch,
            size: self.size,
        }
    }

    /// A page that a write to `range` needs.
    pub(super) fn missing(&self, cache: &Cache, range: Range, layer: Layer) -> Option<Missing> {
        self.tree.missing(cache, range, Some(layer))
    }

    /// Takes a write, if it is of the old epoch.
    pub(super) fn write(&mut self, cache: &Cache, range: Range, layer: Layer) {
        if layer.epoch <= self.epoch {
            for part in self.tree.not_newer(cache, range, layer) {
                self.tree.set(cache, part, Some(layer));
            }
        }
    }

    /// The live map was zeroed in `range`.
    pub(super) fn zero(&mut self, range: Range) {
        self.zeroed.push(range);
    }

    /// Takes what was zeroed since the begin out of `parts`.
    pub(super) fn subtract_zeroed(&self, parts: &mut Vec<Range>) {
        self.zeroed
            .iter()
            .for_each(|zeroed| subtract(parts, *zeroed));
    }
}

/// Takes `zeroed` out of `parts`.
fn subtract(parts: &mut Vec<Range>, zeroed: Range) {
    let left = parts.iter().flat_map(|part| {
        let before = Range {
            start: part.start,
            end: part.end.min(zeroed.start),
        };
        let after = Range {
            start: part.start.max(zeroed.end),
            end: part.end,
        };
        [before, after]
    });
    *parts = left.filter(|part| !part.is_empty()).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_leaves_the_rest() {
        let range = |start, end| Range { start, end };
        for (gone, left) in [
            (range(0, 5), vec![range(10, 20)]),
            (range(0, 15), vec![range(15, 20)]),
            (range(12, 14), vec![range(10, 12), range(14, 20)]),
            (range(15, 30), vec![range(10, 15)]),
            (range(10, 20), vec![]),
            (range(20, 30), vec![range(10, 20)]),
        ] {
            let mut parts = vec![range(10, 20)];
            subtract(&mut parts, gone);
            assert_eq!(parts, left, "{gone:?}");
        }
    }
}
