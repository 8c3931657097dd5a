//! A volume begins again as one of its snapshots, and nothing that another map has is lost by it.

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Entry};
use archipelago_protocol::{ErrorCode, Lineage};

use crate::rig::{Rig, name};

fn request(snapshot: &str, lineage: Lineage) -> CatalogueRequest {
    CatalogueRequest::Rollback {
        name: name("v"),
        snapshot: name(snapshot),
        lineage,
    }
}

impl Rig {
    fn rollback(&mut self, snapshot: &str, lineage: Lineage) -> CatalogueReply {
        self.control(request(snapshot, lineage))
    }

    /// Rolls `v` back and opens it: its lineage and handle.
    fn rolled_back(&mut self, snapshot: &str) -> (Lineage, u32) {
        let fresh = self.fresh();
        let reply = self.rollback(snapshot, fresh);
        let CatalogueReply::Entry(Entry { lineage, .. }) = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(lineage, fresh);
        (fresh, self.open(fresh, true))
    }

    fn rollback_refused(&mut self, snapshot: &str) -> ErrorCode {
        let lineage = self.fresh();
        self.refused(request(snapshot, lineage))
    }

    fn first_three(&mut self, handle: u32) -> [u64; 3] {
        [0, 1, 2].map(|block| self.read(handle, block))
    }

    fn of_snapshot(&mut self, text: &str) -> [u64; 3] {
        let lineage = self
            .entry(CatalogueRequest::Lookup { name: name(text) })
            .lineage;
        let handle = self.open(lineage, false);
        let content = self.first_three(handle);
        self.close(handle);
        content
    }

    fn remove_snapshot(&mut self, text: &str) {
        let removed = self.control(CatalogueRequest::Remove { name: name(text) });
        assert_eq!(removed, CatalogueReply::Done);
    }
}

/// The volume with snapshots `a` (blocks 1, 1, 1) and `b` (1, 2, 2), closed, whose own blocks are 1, 2, 3.
fn with_snapshots() -> (Rig, Lineage) {
    let (mut rig, own, handle) = Rig::opened();
    for block in 0..3 {
        rig.write(own, handle, block, 1);
    }
    rig.snapshot(handle, "v", "a");
    rig.write(own, handle, 1, 2);
    rig.write(own, handle, 2, 2);
    rig.snapshot(handle, "v", "b");
    rig.write(own, handle, 2, 3);
    rig.flush(handle).unwrap();
    rig.close(handle);
    (rig, own)
}

#[test]
fn a_volume_goes_back_and_forth_between_its_snapshots() {
    let (mut rig, _own) = with_snapshots();
    for (snapshot, content) in [("a", [1, 1, 1]), ("b", [1, 2, 2]), ("a", [1, 1, 1])] {
        let (own, handle) = rig.rolled_back(snapshot);
        assert_eq!(rig.first_three(handle), content, "{snapshot}");
        rig.write(own, handle, 0, 9);
        rig.flush(handle).unwrap();
        rig.close(handle);
        assert_eq!(rig.of_snapshot("a"), [1, 1, 1]);
        assert_eq!(rig.of_snapshot("b"), [1, 2, 2]);
        rig.assert_clean();
    }
    rig.restart();
    rig.assert_clean();
}

#[test]
fn snapshots_that_are_removed_after_a_rollback_take_nothing_from_the_volume() {
    for order in [["a", "b"], ["b", "a"]] {
        let (mut rig, _own) = with_snapshots();
        let (_again, handle) = rig.rolled_back("a");
        for snapshot in order {
            rig.remove_snapshot(snapshot);
            assert_eq!(rig.first_three(handle), [1, 1, 1], "{snapshot} removed");
        }
        rig.close(handle);
        rig.restart();
        rig.assert_clean();
    }
}

#[test]
fn what_only_the_volume_had_is_given_back() {
    let (mut rig, own) = with_snapshots();
    let before = rig.pool.blocks(own).len();
    let (_again, handle) = rig.rolled_back("b");
    assert_eq!(
        rig.pool.blocks(own).len(),
        before - 1,
        "block 2 of the last epoch"
    );
    rig.close(handle);
}

#[test]
fn only_a_closed_volume_goes_back_to_a_snapshot_of_its_own() {
    let (mut rig, own) = with_snapshots();
    let handle = rig.open(own, true);
    assert_eq!(rig.rollback_refused("a"), ErrorCode::InUse);
    rig.close(handle);
    let clone = rig.clone_of("a", "clone", None);
    let writer = rig.open(clone, true);
    rig.snapshot(writer, "clone", "other");
    rig.close(writer);
    for wrong in ["other", "clone", "v"] {
        assert_eq!(rig.rollback_refused(wrong), ErrorCode::Invalid, "{wrong}");
    }
    assert_eq!(rig.rollback_refused("none"), ErrorCode::NotFound);
    let used = rig.rollback("a", clone);
    assert!(matches!(used, CatalogueReply::Failed(_)), "{used:?}");
    let handle = rig.open(own, true);
    assert_eq!(rig.first_three(handle), [1, 2, 3]);
}

#[test]
fn a_rollback_that_is_asked_for_again_is_done() {
    let (mut rig, _own) = with_snapshots();
    let fresh = rig.fresh();
    let first = rig.rollback("a", fresh);
    assert_eq!(rig.rollback("a", fresh), first);
}
