//! The tree against an array, and its pages against damage.

use std::cell::Cell;

use archipelago_protocol::{Epoch, Lineage};
use proptest::prelude::*;

use super::*;

const OWN: Lineage = Lineage(5);
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
        let (written, root) = self.tree.pages(OWN, 1, self.pack.len() as u64);
        self.pack.extend_from_slice(&written.bytes);
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

    #[test]
    fn a_flipped_bit_or_a_cut_of_a_page_is_noticed(bit in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
        let mut stored = Stored::new();
        stored.set(3, 90, Some(layer(2)));
        stored.set(10, 20, None);
        stored.store();
        let root = stored.tree.stored_root().unwrap();
        let page = root.page.unwrap();
        let good = stored.pack[..page.len as usize].to_vec();
        prop_assert!(decode(&page, root.level, ObjectSize::MIN, &good).is_ok());
        let mut bad = good.clone();
        let bit = bit.index(bad.len() * 8);
        bad[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode(&page, root.level, ObjectSize::MIN, &bad).is_err());
        prop_assert!(decode(&page, root.level, ObjectSize::MIN, &good[..cut.index(good.len())]).is_err());
        prop_assert!(decode(&page, root.level + 1, ObjectSize::MIN, &good).is_err());
        prop_assert!(decode(&page, root.level, ObjectSize::MAX, &good).is_err());
    }

    #[test]
    fn a_sealed_page_of_random_fields_never_panics(fields in prop::collection::vec(any::<u8>(), 0..300), level in 0u8..3) {
        let mut writer = crate::format::Writer::sealed(*b"ARCHPAGE", OWN);
        writer.bytes(&[level, 16, 0, 0]);
        writer.bytes(&fields);
        let bytes = writer.seal();
        let len = u32::try_from(bytes.len()).unwrap();
        let page = PageRef { lineage: OWN, pack: 1, offset: 0, len, crc: crate::format::sealed_crc(&bytes) };
        let _judged = decode(&page, level, ObjectSize::MIN, &bytes);
    }
}

#[test]
fn zeros_over_whole_nodes_read_none_of_their_pages_and_leave_none() {
    let mut stored = Stored::new();
    // A leaf of objects of 16 blocks each, the one behind it, and the rest.
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
    let (written, _) = stored.tree.pages(OWN, 1, stored.pack.len() as u64);
    assert_eq!(written.nodes.len(), 1, "the root alone");
    // Nothing is made to hold zeros where there was nothing.
    let mut empty = Tree::new(Root::default(), ObjectSize::MIN);
    empty.set(&stored.cache, Range { start: 3, end: 5 }, None);
    assert_eq!(empty.pages(OWN, 1, 0).1.page, None);
}

#[test]
fn a_stored_node_that_is_changed_is_stored_again() {
    let mut stored = Stored::new();
    stored.set(3, 90, Some(layer(2)));
    let (written, first) = stored.tree.pages(OWN, 1, 0);
    written.mark_stored(&mut stored.cache);
    assert!(stored.tree.is_stored());
    assert_eq!(stored.tree.pages(OWN, 1, 4096).0.count(), 0);
    drop(written);
    stored.cache = Cache::new(0);
    stored.set(3, 4, None);
    assert!(!stored.tree.is_stored());
    let (written, second) = stored.tree.pages(OWN, 1, 4096);
    assert!(written.count() > 0 && first != second);
}

/// Whether a page with these fields behind its envelope is taken for one of `level`.
fn checked(level: u8, fields: impl FnOnce(&mut crate::format::Writer)) -> Result<(), String> {
    let mut writer = crate::format::Writer::sealed(*b"ARCHPAGE", OWN);
    writer.bytes(&[level, 16, 0, 0]);
    fields(&mut writer);
    let bytes = writer.seal();
    let page = PageRef {
        lineage: OWN,
        pack: 1,
        offset: 0,
        len: u32::try_from(bytes.len()).unwrap(),
        crc: crate::format::sealed_crc(&bytes),
    };
    match decode(&page, level, ObjectSize::MIN, &bytes) {
        Ok(_node) => Ok(()),
        Err(problem) => Err(problem.to_string()),
    }
}

#[test]
fn runs_that_no_leaf_has_are_damage() {
    type Object<'a> = (u16, &'a [(u16, u16, u32)]);
    let leaf = |objects: &[Object<'_>]| {
        checked(0, |page| {
            // Two layers: epochs 0 and 1.
            [u32::try_from(objects.len()).unwrap(), 2, 0]
                .into_iter()
                .for_each(|word| page.u32(word));
            for epoch in 0..2 {
                page.lineage(OWN);
                [epoch, 0, 1].into_iter().for_each(|word| page.u64(word));
            }
            for (index, runs) in objects {
                page.u16(*index);
                page.u16(u16::try_from(runs.len()).unwrap());
                for (start, blocks, layer) in *runs {
                    page.u16(*start);
                    page.u16(*blocks);
                    page.u32(*layer);
                }
            }
        })
    };
    let one: &[_] = &[(0, 1, 0)];
    for good in [
        [(0, one), (1, one)],
        [(510, one), (511, one)],
        [(0, &[(0, 16, 1)]), (7, &[(15, 1, 0)])],
        [(0, &[(0, 3, 0), (3, 4, 1)]), (1, &[(0, 3, 0), (4, 4, 0)])],
    ] {
        assert_eq!(leaf(&good), Ok(()), "{good:?}");
    }
    for (field, bad) in [
        ("object index", [(1, one), (1, one)]),
        ("object index", [(2, one), (1, one)]),
        ("object index", [(0, one), (512, one)]),
        ("run", [(0, one), (1, &[(0, 0, 0)])]),
        ("run", [(0, one), (1, &[(15, 2, 0)])]),
        ("run", [(0, one), (1, &[(16, 1, 0)])]),
        ("run", [(0, one), (1, &[(0, 3, 0), (2, 3, 1)])]),
        ("run", [(0, one), (1, &[(3, 3, 0), (0, 3, 1)])]),
        ("run", [(0, one), (1, &[(0, 3, 0), (3, 3, 0)])]),
        ("run's layer", [(0, one), (1, &[(0, 3, 2)])]),
    ] {
        let why = leaf(&bad).unwrap_err();
        assert!(why.contains(&format!("`{field}`")), "{bad:?}: {why}");
    }
}

#[test]
fn children_that_no_inner_node_has_are_damage() {
    let inner = |children: &[u16]| {
        checked(1, |page| {
            [u32::try_from(children.len()).unwrap(), 0, 0]
                .into_iter()
                .for_each(|word| page.u32(word));
            for index in children {
                page.u16(*index);
                page.u16(0);
                page.bytes(&[0; 44]);
            }
        })
    };
    for good in [[0, 1], [254, 255]] {
        assert_eq!(inner(&good), Ok(()), "{good:?}");
    }
    for bad in [[1, 1], [2, 1], [0, 256]] {
        let why = inner(&bad).unwrap_err();
        assert!(why.contains("`child index`"), "{bad:?}: {why}");
    }
}

#[test]
fn what_a_page_must_be_is_told_apart() {
    let layer = |displacement: u64, kind: u64| {
        checked(0, |page| {
            [0, 1, 0].into_iter().for_each(|word| page.u32(word));
            page.lineage(OWN);
            [1, displacement, kind]
                .into_iter()
                .for_each(|word| page.u64(word));
        })
    };
    assert_eq!(layer(0, 1), Ok(()));
    assert!(layer(1, 1).unwrap_err().contains("displacement"));
    assert!(layer(0, 2).unwrap_err().contains("layer kind"));
    let longer = checked(0, |page| {
        [0, 0, 0].into_iter().for_each(|word| page.u32(word));
        page.u8(0);
    });
    assert!(longer.unwrap_err().contains("page end"));
}

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
        let gone = (15..3 * LEAF * 256).contains(block);
        let found = stored.at(*block);
        if gone {
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

/// Runs that `what` looks at.
pub(super) fn steps_of(what: impl FnOnce()) -> u64 {
    STEPS.set(0);
    what();
    STEPS.get()
}

/// A run was looked at.
pub(super) fn count_step() {
    STEPS.set(STEPS.get() + 1);
}

/// Where a write of `range` goes, found by looking at every run of the object.
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
fn a_write_looks_at_few_of_many_runs() {
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
    // Of a longer write each run is looked at once, and none behind it.
    let some = steps(100, 64, false);
    assert!(some <= 14 + 32, "{some} steps");
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
fn a_page_is_the_one_that_its_reference_means() {
    let mut stored = Stored::new();
    stored.set(3, 90, Some(layer(2)));
    stored.store();
    let root = stored.tree.stored_root().unwrap();
    let page = root.page.unwrap();
    let bytes = &stored.pack[..page.len as usize];
    let is_accepted =
        |page: PageRef, bytes: &[u8]| decode(&page, 0, ObjectSize::MIN, bytes).is_ok();
    assert!(is_accepted(page, bytes));
    let crc = page.crc ^ 1;
    assert!(
        !is_accepted(PageRef { crc, ..page }, bytes),
        "whole, but another one"
    );
    let lineage = Lineage(6);
    assert!(!is_accepted(PageRef { lineage, ..page }, bytes));
    assert!(
        !is_accepted(page, &[bytes, &[0; 8]].concat()),
        "and more behind it"
    );
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
        let (written, _) = stored.tree.pages(OWN, 1, offset);
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
