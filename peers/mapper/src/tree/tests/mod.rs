//! The tree against an array, and what of it is stored.

mod lookups;
mod pages;

use archipelago_protocol::{Epoch, Lineage};
use proptest::prelude::*;

use super::*;
pub(super) use lookups::{count_step, steps_of};

const OWN: Lineage = Lineage(5);

/// Behind so many bytes of pack 1.
fn place(offset: u64) -> PackPlace {
    PackPlace {
        number: 1,
        offset,
        len_max: 1 << 30,
    }
}

/// Two leaves and a bit of objects of 16 blocks.
const BLOCKS: u64 = 16 * 1100;

#[derive(Debug, Clone)]
enum Step {
    Set {
        start: u64,
        len: u64,
        epoch: u64,
    },
    Zero {
        start: u64,
        len: u64,
    },
    /// Keeps a copy that must never change.
    Freeze,
    /// Stores everything and forgets the nodes.
    Store,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..BLOCKS, prop_oneof![4 => 1u64..40, 1 => 1..BLOCKS]);
    prop_oneof![
        6 => (range(), 1u64..6).prop_map(|((start, len), epoch)| Step::Set { start, len, epoch }),
        3 => range().prop_map(|(start, len)| Step::Zero { start, len }),
        1 => Just(Step::Freeze),
        1 => Just(Step::Store),
    ]
}

pub(super) fn layer(epoch: u64) -> Layer {
    Layer {
        lineage: OWN,
        epoch: Epoch(epoch),
    }
}

/// A tree whose pages are kept as bytes.
pub(super) struct Stored {
    pub(super) tree: Tree,
    pub(super) cache: Cache,
    pack: Vec<u8>,
}

impl Stored {
    pub(super) fn new() -> Self {
        let tree = Tree::new(Root::default(), ObjectSize::MIN);
        Stored {
            tree,
            cache: Cache::new(1 << 20),
            pack: Vec::new(),
        }
    }

    pub(super) fn set(&mut self, start: u64, end: u64, layer: Option<Layer>) {
        let range = Range { start, end };
        while let Some(missing) = self.tree.missing(&self.cache, range, layer) {
            self.load(missing);
        }
        self.tree.set(&self.cache, range, layer);
    }

    pub(super) fn load(&mut self, missing: Missing) {
        let page = missing.page;
        let from = usize::try_from(page.offset).unwrap();
        let bytes = &self.pack[from..from + page.len as usize];
        let node = decode(&page, missing.level, ObjectSize::MIN, bytes).unwrap();
        self.cache.insert(page, node);
    }

    pub(super) fn store(&mut self) {
        let place = place(self.pack.len() as u64);
        let (written, root, _) = self.tree.pages(OWN, place);
        for piece in &written.pieces {
            self.pack.extend_from_slice(&piece.bytes);
        }
        self.tree = Tree::new(root, ObjectSize::MIN);
        self.cache = Cache::new(1 << 20);
    }

    fn content(&mut self, tree: &Tree) -> Vec<u64> {
        let mut content = Vec::new();
        let mut at = 0;
        while at < BLOCKS {
            match tree.lookup(&self.cache, at) {
                Ok((layer, end)) => {
                    assert!(
                        end > at && end <= (at / 16 + 1) * 16,
                        "a run stays inside its object"
                    );
                    let epoch = layer.map_or(0, |layer| layer.epoch.0);
                    content.extend((at..end.min(BLOCKS)).map(|_| epoch));
                    at = end;
                }
                Err(missing) => self.load(missing),
            }
        }
        content
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_is_an_array_and_a_copy_never_changes(
        steps in prop::collection::vec(step(), 1..40),
        asked in prop::collection::vec((0..BLOCKS, 1..BLOCKS), 1..9),
    ) {
        let mut stored = Stored::new();
        let mut model = vec![0; usize::try_from(BLOCKS).unwrap()];
        let mut frozen: Vec<(Tree, Vec<u64>)> = Vec::new();
        for step in steps {
            match step {
                Step::Set { start, len, epoch } => {
                    let end = BLOCKS.min(start + len);
                    stored.set(start, end, Some(layer(epoch)));
                    model[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].fill(epoch);
                }
                Step::Zero { start, len } => {
                    let end = BLOCKS.min(start + len);
                    stored.set(start, end, None);
                    model[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].fill(0);
                }
                Step::Freeze => frozen.push((stored.tree.clone(), model.clone())),
                Step::Store => stored.store(),
            }
        }
        let live = stored.tree.clone();
        frozen.push((live, model));
        for (tree, content) in frozen {
            prop_assert_eq!(&stored.content(&tree), &content);
            for (start, len) in &asked {
                stored.check_status(&tree, &content, *start, BLOCKS.min(start + len));
            }
            stored.check_status(&tree, &content, 0, BLOCKS);
        }
    }
}

#[test]
fn zeros_over_whole_nodes_read_none_of_their_pages_and_leave_none() {
    let mut stored = Stored::new();
    // A leaf of objects of 16 blocks each, the next one, and the rest.
    let leaf = LEAF_OBJECTS * 16;
    for start in [0, leaf, 2 * leaf] {
        stored.set(start, start + 8, Some(layer(1)));
    }
    stored.store();
    let zeros = Range {
        start: leaf,
        end: 3 * leaf,
    };
    let first = stored.tree.missing(&stored.cache, zeros, None);
    stored.load(first.expect("the root is not there yet"));
    assert_eq!(stored.tree.missing(&stored.cache, zeros, None), None);
    stored.tree.set(&stored.cache, zeros, None);
    let (written, ..) = stored.tree.pages(OWN, place(stored.pack.len() as u64));
    assert_eq!(written.nodes.len(), 1, "the root alone");
    // Nothing is made to hold zeros where there was nothing.
    let mut empty = Tree::new(Root::default(), ObjectSize::MIN);
    empty.set(&stored.cache, Range { start: 3, end: 5 }, None);
    assert_eq!(empty.pages(OWN, place(0)).1.page, None);
}

#[test]
fn pages_go_to_the_next_pack_when_one_is_full() {
    let mut stored = Stored::new();
    // Leaves of 128 bytes in their packs, and a root.
    for leaf in 0..5 {
        stored.set(leaf * 8192, leaf * 8192 + 8, Some(layer(1)));
    }
    let places = |len_max, offset| {
        let place = PackPlace {
            len_max,
            ..place(offset)
        };
        let (written, root, end) = stored.tree.pages(OWN, place);
        let pieces = written.pieces.iter();
        let found: Vec<_> = pieces
            .map(|piece| (piece.pack.number, piece.offset, piece.bytes.len()))
            .collect();
        let page = root.page.unwrap();
        assert_eq!(
            (page.pack, end.number),
            (end.number, found.last().unwrap().0)
        );
        assert_eq!(
            end.offset,
            page.offset + u64::from(page.len).next_multiple_of(64)
        );
        found
    };
    let root = 320;
    assert_eq!(places(1 << 20, 0), [(1, 0, 640 + root)]);
    assert_eq!(places(640 + root as u64, 0), [(1, 0, 640 + root)]);
    assert_eq!(places(640, 0), [(1, 0, 640), (2, 0, root)]);
    let found = places(384, 256);
    assert_eq!(
        found,
        [(1, 256, 128), (2, 0, 384), (3, 0, 128), (4, 0, root)]
    );
    // Longer than a pack may be: alone in one.
    let alone = [
        (1, 0, 128),
        (2, 0, 128),
        (3, 0, 128),
        (4, 0, 128),
        (5, 0, 128),
        (6, 0, root),
    ];
    assert_eq!(places(64, 0), alone);
}

#[test]
fn a_stored_node_that_is_changed_is_stored_again() {
    let mut stored = Stored::new();
    stored.set(3, 90, Some(layer(2)));
    let (written, first, _) = stored.tree.pages(OWN, place(0));
    written.mark_stored(&mut stored.cache);
    assert!(stored.tree.is_stored());
    assert_eq!(stored.tree.pages(OWN, place(4096)).0.count(), 0);
    drop(written);
    stored.cache = Cache::new(0);
    stored.set(3, 4, None);
    assert!(!stored.tree.is_stored());
    let (written, second, _) = stored.tree.pages(OWN, place(4096));
    assert!(written.count() > 0 && first != second);
}

#[test]
fn only_a_newer_epoch_of_the_same_lineage_stays() {
    let mut stored = Stored::new();
    let foreign = Layer {
        lineage: Lineage(6),
        epoch: Epoch(9),
    };
    for (start, end, layer) in [
        (2, 4, layer(1)),
        (4, 6, layer(3)),
        (6, 8, layer(2)),
        (8, 10, foreign),
    ] {
        stored.set(start, end, Some(layer));
    }
    let older = |start, end| -> Vec<(u64, u64)> {
        let range = Range { start, end };
        let parts = stored.tree.not_newer(&stored.cache, range, layer(2));
        parts.iter().map(|part| (part.start, part.end)).collect()
    };
    assert_eq!(older(0, 40), [(0, 4), (6, 40)]);
    assert_eq!(older(4, 6), []);
    assert_eq!(older(5, 7), [(6, 7)]);
    assert_eq!(older(3, 5), [(3, 4)]);
}

#[test]
fn a_tree_is_no_higher_than_its_blocks_need() {
    for (end, level) in [
        (1, 0),
        (8192, 0),
        (8193, 1),
        (8192 * 256, 1),
        (8192 * 256 + 1, 2),
    ] {
        let mut stored = Stored::new();
        stored.set(end - 1, end, Some(layer(1)));
        stored.store();
        assert_eq!(stored.tree.stored_root().unwrap().level, level, "{end}");
    }
}

#[test]
fn nodes_that_are_stored_are_released_also_below_one_that_is_not() {
    let mut stored = Stored::new();
    stored.set(0, 1, Some(layer(1)));
    stored.set(8192, 8193, Some(layer(1)));
    let store = |stored: &mut Stored, offset| {
        let (written, ..) = stored.tree.pages(OWN, place(offset));
        written.mark_stored(&mut stored.cache);
        written.count()
    };
    assert_eq!(store(&mut stored, 0), 3);
    // The second leaf and the root change, the first leaf is as it is stored.
    stored.set(8193, 8194, Some(layer(2)));
    let in_memory =
        |stored: &Stored| [0, 8192].map(|block| stored.tree.lookup(&stored.cache, block).is_ok());
    stored.cache = Cache::new(0);
    assert_eq!(in_memory(&stored), [true, true]);
    stored.tree.release_stored();
    assert_eq!(in_memory(&stored), [false, true]);
    assert_eq!(store(&mut stored, 4096), 2);
    stored.tree.release_stored();
    stored.cache = Cache::new(0);
    assert_eq!(in_memory(&stored), [false, false]);
}
