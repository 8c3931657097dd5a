//! Lookups: what they find, and how many runs they examine.

use std::cell::Cell;

use archipelago_protocol::Epoch;
use proptest::prelude::*;

use super::super::*;
use super::{Stored, layer};

impl Stored {
    /// Epoch of a block, 0 for zeros, and where its run ends.
    fn at(&mut self, block: u64) -> (u64, u64) {
        loop {
            match self.tree.lookup(&self.cache, block) {
                Ok((layer, end)) => return (layer.map_or(0, |layer| layer.epoch.0), end),
                Err(missing) => self.load(missing),
            }
        }
    }
}

#[test]
fn a_tree_of_every_height_finds_its_blocks() {
    // The first and last block of a leaf, of an inner node of each level, and of the largest volume.
    const LEAF: u64 = 16 * 512;
    const END: u64 = 1 << 38;
    let mut edges = vec![0, 15, 16, END - 1];
    for level in 0..4 {
        let span = LEAF * 256_u64.pow(level);
        edges.extend([span - 1, span, 3 * span - 1, 3 * span]);
    }
    edges.retain(|block| *block < END);
    edges.sort_unstable();
    edges.dedup();
    let mut stored = Stored::new();
    let mut expected = Vec::new();
    for (epoch, block) in (1..).zip(&edges) {
        // What is beyond what was ever written reads as zeros, to the end of its object.
        assert_eq!(stored.at(*block).0, 0, "{block}");
        stored.set(*block, block + 1, Some(layer(epoch)));
        expected.push((epoch, block + 1));
        if epoch % 3 == 0 {
            stored.store();
        }
        for (block, expected) in edges.iter().zip(&expected) {
            assert_eq!(stored.at(*block), *expected, "{block} at epoch {epoch}");
        }
    }
    assert_eq!(stored.at(END - 17), (0, END - 16));
    assert_eq!(stored.at(END / 2 + 16), (0, END / 2 + 32));
    // Zeros from inside of one leaf to inside of another one far away.
    stored.set(15, 3 * LEAF * 256, None);
    stored.store();
    for (block, (epoch, end)) in edges.iter().zip(expected) {
        let is_zeroed = (15..3 * LEAF * 256).contains(block);
        let found = stored.at(*block);
        if is_zeroed {
            assert_eq!(found.0, 0, "{block}");
        } else {
            assert_eq!(found, (epoch, end), "{block}");
        }
    }
    stored.set(0, END, None);
    assert_eq!(stored.tree.stored_root().map(|root| root.page), Some(None));
}

thread_local! {
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// Runs that `what` examines.
pub(in crate::tree) fn steps_of(what: impl FnOnce()) -> u64 {
    STEPS.set(0);
    what();
    STEPS.get()
}

/// A run was examined.
pub(in crate::tree) fn count_step() {
    STEPS.set(STEPS.get() + 1);
}

/// Where a write of `range` goes, found by examining every run of the object.
fn place_by_all_runs(tree: &Tree, range: Range, owned: impl Fn(&Layer) -> bool) -> WritePlace {
    let first = range.start / tree.object_blocks * tree.object_blocks;
    let limit = range.end.min(first + tree.object_blocks);
    let place = tree.with_object(&Cache::new(0), range.start, |found| {
        let (leaf, object) = found?;
        let block = small(range.start - first);
        let mut runs = leaf.runs(object).iter();
        let next = runs.find(|run| run.end() > block && owned(&leaf.layer(run)))?;
        let start = first + u64::from(next.start);
        Some(if start <= range.start {
            WritePlace::Owned {
                epoch: leaf.layer(next).epoch,
                end: limit.min(first + u64::from(next.end())),
            }
        } else {
            WritePlace::Unowned {
                end: limit.min(start),
            }
        })
    });
    let none = WritePlace::Unowned { end: limit };
    place.unwrap().unwrap_or(none)
}

#[test]
fn what_is_not_owned_ends_where_a_run_that_is_begins() {
    let mut stored = Stored::new();
    for (start, end, epoch) in [(18, 20, 1), (20, 23, 2), (25, 30, 3)] {
        stored.set(start, end, Some(layer(epoch)));
    }
    let place = |start, end, from: u64| {
        let range = Range { start, end };
        let owned = |layer: &Layer| layer.epoch.0 >= from;
        let found = stored.tree.write_place(&stored.cache, range, owned);
        found.unwrap()
    };
    let unowned = |end| WritePlace::Unowned { end };
    let owned = |epoch, end| WritePlace::Owned {
        epoch: Epoch(epoch),
        end,
    };
    for (block, from, expected) in [
        (16, 1, unowned(18)),
        (18, 1, owned(1, 20)),
        (19, 1, owned(1, 20)),
        (18, 2, unowned(20)),
        (22, 2, owned(2, 23)),
        (23, 2, unowned(25)),
        (16, 3, unowned(25)),
        (16, 4, unowned(32)),
        (30, 1, unowned(32)),
        (31, 1, unowned(32)),
        (0, 1, unowned(16)),
        (1 << 30, 1, unowned((1 << 30) + 16)),
    ] {
        let found = place(block, block + 99, from);
        assert_eq!(found, expected, "{block}, epochs from {from}");
    }
    // A write that ends earlier.
    assert_eq!(place(18, 19, 1), owned(1, 19));
    assert_eq!(place(16, 18, 3), unowned(18));
    assert_eq!(place(23, 26, 3), unowned(25));
    assert_eq!(place(16, 17, 1), unowned(17));
}

proptest! {
    #[test]
    fn a_write_goes_where_a_look_at_all_runs_says(
        sets in prop::collection::vec((0_u64..160, 1_u64..9, 1_u64..6), 0..60),
        asked in prop::collection::vec((0_u64..176, 1_u64..40, 1_u64..7), 1..40),
    ) {
        let mut stored = Stored::new();
        for (start, len, epoch) in sets {
            stored.set(start, start + len, Some(layer(epoch)));
        }
        for (start, len, from) in asked {
            let range = Range { start, end: start + len };
            let owned = |layer: &Layer| layer.epoch.0 >= from;
            let found = stored.tree.write_place(&stored.cache, range, owned).unwrap();
            prop_assert_eq!(found, place_by_all_runs(&stored.tree, range, owned));
        }
    }
}

#[test]
fn a_write_examines_few_of_many_runs() {
    // Each second block of the largest object in another layer: 4,096 runs.
    let mut tree = Tree::new(Root::default(), ObjectSize::MAX);
    let cache = Cache::new(0);
    for start in (0..8192).step_by(2) {
        let end = start + 1;
        tree.set(&cache, Range { start, end }, Some(layer(1 + start % 4)));
    }
    let steps = |start: u64, len: u64, owned: bool| {
        STEPS.set(0);
        let asked = Cell::new(0);
        let end = start + len;
        let place = tree.write_place(&cache, Range { start, end }, |_layer| {
            asked.set(asked.get() + 1);
            owned
        });
        assert!(place.is_ok());
        STEPS.get() + asked.get()
    };
    for start in [0, 1, 4_000, 4_001, 8_190, 8_191] {
        for owned in [true, false] {
            // log2 of 4,096 are 12; then the run itself, and its end.
            let one = steps(start, 1, owned);
            assert!(one <= 16, "{one} steps for block {start}");
        }
    }
    // For a longer write each run is examined once, and none after it.
    let some = steps(100, 64, false);
    assert!(some <= 14 + 32, "{some} steps");
}
