//! Status against an array, and how much one looks at.

use archipelago_protocol::BLOCK_SIZE;
use archipelago_protocol::status::BlockState::{self, Data, Hole};

use super::super::tests::{Stored, layer, steps_of};
use super::*;
use crate::tree::{ObjectSize, Root};

/// Runs in blocks.
type Runs = Vec<(u64, BlockState)>;

/// Blocks of a leaf of the trees here: of objects of 16 blocks.
const LEAF: u64 = 16 * 512;

impl Stored {
    /// One answer for `start .. end` of `tree`.
    fn answer(&mut self, tree: &Tree, start: u64, end: u64) -> Runs {
        loop {
            match tree.status(&self.cache, Range { start, end }) {
                Ok(runs) => {
                    let runs = runs.iter();
                    return runs.map(|run| (run.len / BLOCK_SIZE, run.state)).collect();
                }
                Err(missing) => self.load(missing),
            }
        }
    }

    fn live_answer(&mut self, start: u64, end: u64) -> Runs {
        let tree = self.tree.clone();
        self.answer(&tree, start, end)
    }

    /// All answers for `start .. end` of `tree`, which `content` describes, are right.
    pub(in crate::tree) fn check_status(
        &mut self,
        tree: &Tree,
        content: &[u64],
        start: u64,
        end: u64,
    ) {
        let mut at = start;
        while at < end {
            let runs = self.answer(tree, at, end);
            assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1));
            for (blocks, state) in runs {
                let part = usize::try_from(at).unwrap()..usize::try_from(at + blocks).unwrap();
                assert!(blocks > 0 && at + blocks <= end);
                let is_data = |epoch: &u64| *epoch != 0;
                assert!(
                    content[part]
                        .iter()
                        .all(|epoch| is_data(epoch) == (state == Data)),
                    "{blocks} blocks at {at} are called {state:?}"
                );
                at += blocks;
            }
        }
    }
}

#[test]
fn empty_subtrees_are_one_step_each_and_a_gap_of_any_height_is_one_run() {
    let mut stored = Stored::new();
    assert_eq!(stored.live_answer(3, 1 << 28), [((1 << 28) - 3, Hole)]);
    // Two blocks with everything between them, across nodes of every level.
    let far = LEAF * 256 * 256 + LEAF * 256 * 2 + 5;
    for block in [100, far] {
        stored.set(block, block + 1, Some(layer(1)));
    }
    let runs = [(99, Hole), (1, Data), (far - 101, Hole), (1, Data)];
    assert_eq!(stored.live_answer(1, far + 9), runs, "and room for no more");
    assert_eq!(stored.live_answer(100, 102), [(1, Data), (1, Hole)]);
    assert_eq!(stored.live_answer(101, far), [(far - 101, Hole)]);
    // Of the leaf only what the request covers.
    assert_eq!(stored.live_answer(far, far + 1), [(1, Data)]);
}

#[test]
fn runs_join_across_layers_objects_and_leaves() {
    let mut stored = Stored::new();
    stored.set(LEAF - 40, LEAF - 3, Some(layer(1)));
    stored.set(LEAF - 3, LEAF + 2, Some(layer(2)));
    stored.set(LEAF + 2, LEAF + 20, Some(layer(1)));
    assert_eq!(
        stored.live_answer(LEAF - 50, LEAF + 30),
        [(10, Hole), (60, Data), (10, Hole)]
    );
}

#[test]
fn a_page_that_is_not_there_ends_the_answer_before_it() {
    let mut stored = Stored::new();
    for leaf in 0..3 {
        stored.set(leaf * LEAF, (leaf + 1) * LEAF, Some(layer(1)));
    }
    stored.store();
    // The root, then the first leaf.
    assert_eq!(stored.live_answer(5, 3 * LEAF), [(LEAF - 5, Data)]);
    assert_eq!(stored.live_answer(LEAF, 3 * LEAF), [(LEAF, Data)]);
    assert_eq!(stored.live_answer(5, 2 * LEAF), [(2 * LEAF - 5, Data)]);
}

#[test]
fn an_answer_looks_at_a_bounded_part_of_a_full_volume() {
    let mut tree = Tree::new(Root::default(), ObjectSize::DEFAULT);
    let cache = Cache::new(0);
    let object = ObjectSize::DEFAULT.blocks();
    let all = Range {
        start: 0,
        end: 12_800 * object,
    };
    tree.set(&cache, all, Some(layer(1)));
    let mut answer = None;
    let steps = steps_of(|| answer = Some(tree.status(&cache, all).unwrap()));
    let covered: u64 = answer.unwrap().iter().map(|run| run.len).sum();
    let objects = covered / ObjectSize::DEFAULT.bytes();
    assert!((2000..=2048).contains(&objects), "{objects} objects");
    // Each object has one run, which is compared once and returned once.
    assert!(steps <= 2 * 2048, "{steps} steps");
}

#[test]
fn fifty_gibibytes_with_three_mebibytes_of_data_are_one_answer() {
    let mut tree = Tree::new(Root::default(), ObjectSize::DEFAULT);
    let cache = Cache::new(0);
    let (gib, mib) = (1 << 18, 1 << 8);
    let all = Range {
        start: 0,
        end: 50 * gib,
    };
    let data = Range {
        start: 20 * gib + 1,
        end: 20 * gib + 3 * mib,
    };
    tree.set(&cache, data, Some(layer(1)));
    let mut answer = None;
    let steps = steps_of(|| answer = Some(tree.status(&cache, all).unwrap()));
    assert!(steps <= 16, "{steps} steps");
    let blocks: Vec<u64> = answer
        .unwrap()
        .iter()
        .map(|run| run.len / BLOCK_SIZE)
        .collect();
    assert_eq!(
        blocks,
        [data.start, data.end - data.start, all.end - data.end]
    );
}
