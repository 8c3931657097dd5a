//! A removed snapshot gives back what it had alone, and nothing else.

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::map::MapOp;
use archipelago_protocol::object::ObjectOp;
use archipelago_protocol::{Epoch, Lineage, ObjectSize};

use crate::rig::{Rig, name, small};

/// An open volume `v` of 4 GiB: two leaves.
pub(crate) fn opened() -> (Rig, Lineage, u32) {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 4 << 30, ObjectSize::DEFAULT);
    let handle = rig.open(own, true);
    (rig, own, handle)
}

/// Of the second leaf.
pub(crate) const FAR: u64 = (3 << 30) / 4096;

impl Rig {
    pub(crate) fn remove(&mut self, text: &str) {
        let removed = self.control(CatalogueRequest::Remove { name: name(text) });
        assert_eq!(removed, CatalogueReply::Done);
    }

    /// Removes `text` up to the first request of `op`, which waits in the stalled rig; the tag of the removal.
    fn remove_until(&mut self, text: &str, op: ObjectOp) -> u64 {
        self.stalled = true;
        let removal = self.send_control(CatalogueRequest::Remove { name: name(text) });
        self.serve_until(op);
        removal
    }

    pub(crate) fn write_all<const N: usize>(
        &mut self,
        own: Lineage,
        handle: u32,
        writes: [(u64, u64); N],
    ) {
        for (block, stamp) in writes {
            self.write(own, handle, block, stamp);
        }
        self.flush(handle).unwrap();
    }

    pub(crate) fn read_all<const N: usize>(&mut self, handle: u32, blocks: [u64; N]) -> [u64; N] {
        blocks.map(|block| self.read(handle, block))
    }

    /// The blocks that take space, in order, whatever their epochs.
    pub(crate) fn stored(&self, own: Lineage) -> Vec<u64> {
        let mut blocks: Vec<u64> = self
            .pool
            .blocks(own)
            .iter()
            .map(|(_, block)| *block)
            .collect();
        blocks.sort_unstable();
        blocks
    }

    fn reclaimed_blocks(&self) -> u64 {
        self.mapper.counters().reclaimed_bytes / 4096
    }
}

/// A volume of which each of three snapshots `a`, `b`, `c` has something alone, with a neighbour, and with all.
pub(crate) fn three() -> (Rig, Lineage, u32) {
    let (mut rig, own, handle) = opened();
    rig.write_all(own, handle, [(0, 1), (1, 1), (2, 1), (3, 1), (FAR, 1)]);
    rig.snapshot(handle, "v", "a");
    rig.write_all(own, handle, [(1, 2), (2, 2), (4, 2), (FAR, 2)]);
    rig.snapshot(handle, "v", "b");
    rig.write_all(own, handle, [(2, 3), (5, 3), (FAR, 3)]);
    rig.snapshot(handle, "v", "c");
    rig.write_all(own, handle, [(3, 4), (4, 4), (FAR, 4)]);
    rig.zero(handle, 5, 1).result.unwrap();
    rig.flush(handle).unwrap();
    (rig, own, handle)
}

/// Blocks that all of them read.
pub(crate) const READ: [u64; 7] = [0, 1, 2, 3, 4, 5, FAR];

pub(crate) fn check(rig: &mut Rig, text: &str, expected: [u64; 7]) {
    let lookup = CatalogueRequest::Lookup { name: name(text) };
    let lineage = rig.entry(lookup).lineage;
    let reader = rig.open(lineage, false);
    assert_eq!(rig.read_all(reader, READ), expected, "{text}");
    rig.close(reader);
}

pub(crate) const A: [u64; 7] = [1, 1, 1, 1, 0, 0, 1];
pub(crate) const B: [u64; 7] = [1, 2, 2, 1, 2, 0, 2];
pub(crate) const C: [u64; 7] = [1, 2, 3, 1, 2, 3, 3];
const V: [u64; 7] = [1, 2, 3, 4, 4, 0, 4];

#[test]
fn each_of_three_gives_back_what_it_had_alone() {
    // Which is removed, and the blocks that it had alone.
    let alone: [(&str, &[u64]); 3] = [("a", &[1, 2, FAR]), ("b", &[2, FAR]), ("c", &[5, FAR])];
    for (text, expected) in alone {
        let (mut rig, own, handle) = three();
        let mut left = rig.stored(own);
        rig.remove(text);
        for block in expected {
            let at = left.iter().position(|stored| stored == block);
            left.remove(at.unwrap());
        }
        assert_eq!(rig.stored(own), left, "{text}");
        assert_eq!(rig.reclaimed_blocks(), expected.len() as u64);
        assert_eq!(rig.read_all(handle, READ), V);
        for (other, content) in [("a", A), ("b", B), ("c", C)] {
            if other != text {
                check(&mut rig, other, content);
            }
        }
        rig.assert_clean();
        rig.close(handle);
        rig.restart();
        rig.assert_clean();
        assert_eq!(rig.stored(own), left, "{text}");
    }
}

#[test]
fn all_removed_in_any_order_leave_one_copy() {
    for order in [
        ["a", "b", "c"],
        ["c", "b", "a"],
        ["b", "a", "c"],
        ["a", "c", "b"],
    ] {
        let (mut rig, own, handle) = three();
        for text in order {
            rig.remove(text);
        }
        assert_eq!(rig.read_all(handle, READ), V);
        assert_eq!(rig.stored(own), [0, 1, 2, 3, 4, FAR], "{order:?}");
    }
}

#[test]
fn what_was_removed_together_is_given_back_together() {
    let (mut rig, own, handle) = three();
    rig.close(handle);
    // One collection has them all.
    rig.stalled = true;
    let removals =
        ["a", "b", "c"].map(|text| rig.send_control(CatalogueRequest::Remove { name: name(text) }));
    rig.stalled = false;
    rig.run();
    for tag in removals {
        assert_eq!(rig.control_reply(tag), CatalogueReply::Done);
    }
    assert_eq!(rig.stored(own), [0, 1, 2, 3, 4, FAR]);
    check(&mut rig, "v", V);
}

#[test]
fn a_clone_keeps_its_snapshot_and_what_that_shares() {
    let (mut rig, own, handle) = three();
    let clone = rig.clone_of("b", "clone", None);
    let writer = rig.open(clone, true);
    rig.write_all(clone, writer, [(2, 9)]);
    rig.remove("b");
    let before = rig.stored(own);
    assert_eq!(rig.reclaimed_blocks(), 0);
    assert_eq!(rig.read_all(writer, READ), [1, 2, 9, 1, 2, 0, 2]);
    // Its neighbours give back nothing that it has.
    rig.remove("a");
    rig.remove("c");
    assert_eq!(rig.read_all(writer, READ), [1, 2, 9, 1, 2, 0, 2]);
    assert_eq!(
        rig.stored(own).len(),
        before.len() - [1, 2, FAR, 5, FAR].len()
    );
    // The snapshot goes with its last clone.
    rig.close(writer);
    rig.remove("clone");
    assert_eq!(rig.stored(own), [0, 1, 2, 3, 4, FAR]);
    assert_eq!(rig.read_all(handle, READ), V);
}

#[test]
fn a_snapshot_of_a_clone_gives_back_nothing_of_others() {
    let (mut rig, own, handle) = three();
    rig.close(handle);
    let before = rig.stored(own);
    let clone = rig.clone_of("c", "clone", None);
    let writer = rig.open(clone, true);
    rig.write_all(clone, writer, [(0, 7), (1, 7)]);
    rig.snapshot(writer, "clone", "s");
    rig.write_all(clone, writer, [(0, 8), (2, 8)]);
    rig.remove("s");
    assert_eq!(rig.stored(clone), [0, 1, 2]);
    assert_eq!(rig.stored(own), before);
    assert_eq!(rig.read_all(writer, READ), [8, 7, 8, 1, 2, 3, 3]);
    check(&mut rig, "c", C);
}

#[test]
fn snapshots_of_a_removed_volume_give_back_what_no_other_has() {
    let (mut rig, own, handle) = three();
    rig.close(handle);
    let before = rig.stored(own).len();
    rig.remove("v");
    assert_eq!(rig.stored(own).len(), before - [3, 4, FAR].len());
    for (text, content) in [("a", A), ("b", B), ("c", C)] {
        check(&mut rig, text, content);
    }
    rig.remove("c");
    check(&mut rig, "b", B);
    assert_eq!(rig.reclaimed_blocks(), [2, 5, FAR].len() as u64);
    rig.remove("a");
    check(&mut rig, "b", B);
    assert!(rig.pool.holds(own));
    rig.remove("b");
    assert!(!rig.pool.holds(own));
    rig.assert_clean();
}

#[test]
fn a_removed_volume_is_emptied_after_a_crash() {
    let (mut rig, own, handle) = three();
    rig.close(handle);
    let before = rig.stored(own).len();
    rig.remove_until("v", ObjectOp::Delete);
    rig.power_cut(|| false);
    assert_eq!(rig.stored(own).len(), before - [3, 4, FAR].len());
    check(&mut rig, "c", C);
    rig.assert_clean();
}

#[test]
fn a_late_write_of_the_snapshot_s_epoch_stays_with_the_volume() {
    let (mut rig, own, handle) = opened();
    rig.write_all(own, handle, [(1, 1)]);
    let old = rig.locate(handle, 9, 1, true).values[0];
    let (token, _) = rig.prepare("v", "s");
    rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
    // Enough for a checkpoint while the snapshot is being made: its head knows of the new epoch, and not of the late write.
    let checkpoints = rig.mapper.counters().checkpoints;
    for stamp in 0..16 {
        rig.write(own, handle, 100 + stamp, stamp);
        rig.flush(handle).unwrap();
    }
    assert!(rig.mapper.counters().checkpoints > checkpoints);
    let old = Epoch(old);
    rig.put(own, old, 9, 5);
    rig.written(handle, 9, 1, old).result.unwrap();
    rig.sync();
    rig.op(MapOp::SnapshotCommit, handle, token).result.unwrap();
    rig.flush(handle).unwrap();
    rig.remove("s");
    assert_eq!(rig.read_all(handle, [1, 9]), [1, 5]);
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    assert_eq!(rig.read_all(handle, [1, 9]), [1, 5]);
}

#[test]
fn what_is_overwritten_but_not_flushed_is_kept_until_that_is_durable() {
    let (mut rig, own, handle) = opened();
    rig.write_all(own, handle, [(1, 1)]);
    rig.snapshot(handle, "v", "s");
    // Not flushed: a crash brings back what was there before, unless the removal makes durable what is there now.
    rig.write(own, handle, 1, 2);
    rig.remove("s");
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    let found = rig.read(handle, 1);
    assert!([1, 2].contains(&found), "{found}");
}

#[test]
fn a_crash_anywhere_in_a_reclaim_is_followed_by_the_same_again() {
    // Of blocks 1 and 2, and of the far one.
    let punches = 2;
    for done in 0..=punches {
        for keep in [false, true] {
            let (mut rig, own, handle) = three();
            rig.close(handle);
            rig.remove_until("a", ObjectOp::Punch);
            for count in 1..=done {
                rig.step(ObjectOp::Punch, None);
                if count < punches {
                    rig.serve_until(ObjectOp::Punch);
                }
            }
            rig.power_cut(|| keep);
            assert_eq!(
                rig.stored(own),
                [0, 1, 2, 2, 3, 3, 4, 4, 5, FAR, FAR, FAR],
                "{done} {keep}"
            );
            for (text, content) in [("b", B), ("c", C), ("v", V)] {
                check(&mut rig, text, content);
            }
            rig.assert_clean();
        }
    }
}

#[test]
fn the_entry_of_a_snapshot_goes_when_its_space_is_given_back_durably() {
    let (mut rig, own, handle) = three();
    rig.close(handle);
    let before = rig.stored(own).len();
    // The record that removes the entry is durable then.
    rig.remove_until("a", ObjectOp::DeleteLineage);
    rig.power_cut(|| false);
    assert_eq!(rig.stored(own).len(), before - [1, 2, FAR].len());
}

#[test]
fn a_node_that_stops_does_not_wait_for_a_reclaim() {
    let (mut rig, own, handle) = three();
    rig.close(handle);
    let before = rig.stored(own).len();
    let removal = rig.remove_until("a", ObjectOp::Punch);
    rig.mapper.stop_background();
    rig.stalled = false;
    rig.run();
    assert_eq!(rig.control_reply(removal), CatalogueReply::Done);
    assert!(rig.mapper.is_idle());
    assert_eq!(rig.stored(own).len(), before - 2, "one range of two");
    rig.restart();
    assert_eq!(rig.stored(own).len(), before - 3);
}

#[test]
fn of_a_volume_whose_session_did_not_end_nothing_is_given_back_until_it_is_known() {
    let (mut rig, own, handle) = three();
    rig.power_cut(|| false);
    let before = rig.stored(own);
    rig.remove("c");
    assert_eq!(rig.stored(own), before);
    // An older one has neighbours that are known.
    rig.remove("a");
    assert_eq!(rig.stored(own).len(), before.len() - [1, 2, FAR].len());
    let _ended = handle;
    let handle = rig.open(own, true);
    assert_eq!(
        rig.stored(own).len(),
        before.len() - [1, 2, FAR, 5, FAR].len()
    );
    assert_eq!(rig.read_all(handle, READ), V);
    check(&mut rig, "b", B);
}

#[test]
fn a_volume_that_has_grown_is_compared_with_its_lower_map() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    let handle = rig.open(own, true);
    rig.write_all(own, handle, [(1, 1), (2, 1)]);
    rig.snapshot(handle, "v", "low");
    let resize = CatalogueRequest::Resize {
        name: name("v"),
        size: 1 << 40,
        force: false,
    };
    rig.entry(resize);
    let far = (1 << 40) / 4096 - 1;
    rig.write_all(own, handle, [(1, 2), (far, 2)]);
    rig.snapshot(handle, "v", "high");
    rig.write_all(own, handle, [(2, 3), (far, 3)]);
    assert_eq!(rig.stored(own), [1, 1, 2, 2, far, far]);
    rig.remove("low");
    assert_eq!(rig.stored(own), [1, 2, 2, far, far]);
    rig.remove("high");
    assert_eq!(rig.stored(own), [1, 2, far]);
    assert_eq!(rig.read_all(handle, [1, 2, far]), [2, 3, 3]);
}

#[test]
fn pages_that_are_shared_are_not_read() {
    let (mut rig, own, handle) = three();
    rig.close(handle);
    rig.restart();
    let before = rig.mapper.counters().pages_read;
    rig.remove("a");
    // Its root and two leaves, and those of `b`: all changed.
    assert_eq!(rig.mapper.counters().pages_read - before, 6);
    let handle = rig.open(own, true);
    rig.write_all(own, handle, [(1, 8)]);
    rig.snapshot(handle, "v", "d");
    rig.write_all(own, handle, [(1, 9)]);
    rig.close(handle);
    rig.restart();
    let before = rig.mapper.counters().pages_read;
    rig.remove("d");
    // Roots of three maps, and the leaf that has changed, of the two newer.
    assert_eq!(rig.mapper.counters().pages_read - before, 5);
}
