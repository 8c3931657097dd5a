//! What things take of the pool, compared with what their removal gives back.

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::usage::Usage;
use archipelago_protocol::{ErrorCode, Lineage, ObjectSize};

use crate::rig::{Rig, name, small};

/// Of the second leaf of a volume of 4 GiB.
const FAR: u64 = (3 << 30) / 4096;

fn usage(rig: &mut Rig, text: &str) -> Usage {
    match rig.control(CatalogueRequest::Usage { name: name(text) }) {
        CatalogueReply::Usage(usage) => usage,
        other => panic!("{other:?}"),
    }
}

/// Mapped and unique, in blocks.
fn blocks(rig: &mut Rig, text: &str) -> (u64, u64) {
    let found = usage(rig, text);
    assert_eq!(found.unique + found.shared, found.mapped, "{text}");
    (found.mapped / 4096, found.unique / 4096)
}

fn write_all(rig: &mut Rig, own: Lineage, handle: u32, writes: &[(u64, u64)]) {
    for (block, stamp) in writes {
        rig.write(own, handle, *block, *stamp);
    }
    rig.flush(handle).unwrap();
}

/// A volume of which each of three snapshots `a`, `b`, `c` has something alone, with a neighbour, and with all.
fn three() -> (Rig, Lineage, u32) {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 4 << 30, ObjectSize::DEFAULT);
    let handle = rig.open(own, true);
    write_all(
        &mut rig,
        own,
        handle,
        &[(0, 1), (1, 1), (2, 1), (3, 1), (FAR, 1)],
    );
    rig.snapshot(handle, "v", "a");
    write_all(&mut rig, own, handle, &[(1, 2), (2, 2), (4, 2), (FAR, 2)]);
    rig.snapshot(handle, "v", "b");
    write_all(&mut rig, own, handle, &[(2, 3), (5, 3), (FAR, 3)]);
    rig.snapshot(handle, "v", "c");
    write_all(&mut rig, own, handle, &[(3, 4), (4, 4), (FAR, 4)]);
    rig.zero(handle, 5, 1).result.unwrap();
    rig.flush(handle).unwrap();
    (rig, own, handle)
}

#[test]
fn unique_is_what_a_removal_gives_back() {
    for text in ["a", "b", "c"] {
        let (mut rig, own, _handle) = three();
        let (_, unique) = blocks(&mut rig, text);
        let before = rig.pool.blocks(own).len() as u64;
        let removed = rig.control(CatalogueRequest::Remove { name: name(text) });
        assert_eq!(removed, CatalogueReply::Done);
        assert_eq!(before - rig.pool.blocks(own).len() as u64, unique, "{text}");
        assert!(unique > 0);
    }
}

#[test]
fn what_a_removed_volume_has_left_is_stored_for_its_snapshots() {
    let (mut rig, own, handle) = three();
    rig.close(handle);
    let removed = rig.control(CatalogueRequest::Remove { name: name("v") });
    assert_eq!(removed, CatalogueReply::Done);
    let left = rig.pool.blocks(own).len() as u64;
    assert_eq!(left, 12, "but what was written since the last snapshot");
    for text in ["a", "b", "c"] {
        assert_eq!(usage(&mut rig, text).stored, Some(left * 4096), "{text}");
    }
    // The newest one has nothing newer beside it.
    assert_eq!(blocks(&mut rig, "c"), (7, 3));
}

#[test]
fn an_open_volume_a_closed_one_and_one_after_a_restart_have_the_same_figures() {
    let (mut rig, _own, handle) = three();
    let whole = usage(&mut rig, "v");
    assert_eq!(whole.provisioned, 4 << 30);
    assert_eq!(blocks(&mut rig, "v"), (6, 3));
    let of_snapshots: Vec<_> = whole
        .snapshots
        .iter()
        .map(|one| (one.name.as_str(), one.mapped / 4096, one.unique / 4096))
        .collect();
    assert_eq!(of_snapshots, [("a", 5, 3), ("b", 6, 2), ("c", 7, 2)]);
    // Every block that was written, each time: none of them is written in place.
    assert_eq!(whole.stored, Some(15 * 4096));
    assert_eq!(usage(&mut rig, "a").stored, None);
    rig.close(handle);
    assert_eq!(usage(&mut rig, "v"), whole);
    rig.restart();
    assert_eq!(usage(&mut rig, "v"), whole);
    for (text, expected) in [("a", (5, 3)), ("b", (6, 2)), ("c", (7, 2))] {
        assert_eq!(blocks(&mut rig, text), expected, "{text}");
    }
}

#[test]
fn what_is_not_flushed_counts() {
    let (mut rig, own, handle) = three();
    rig.write(own, handle, 9, 9);
    assert_eq!(blocks(&mut rig, "v"), (7, 4));
    rig.zero(handle, 9, 1).result.unwrap();
    assert_eq!(blocks(&mut rig, "v"), (6, 3));
}

#[test]
fn what_a_clone_was_made_from_is_shared() {
    let (mut rig, _own, _handle) = three();
    let clone = rig.clone_of("b", "clone", None);
    assert_eq!(blocks(&mut rig, "b"), (6, 0));
    assert_eq!(blocks(&mut rig, "clone"), (6, 0));
    let writer = rig.open(clone, true);
    write_all(&mut rig, clone, writer, &[(2, 9), (100, 9)]);
    assert_eq!(blocks(&mut rig, "clone"), (7, 2));
    assert_eq!(usage(&mut rig, "clone").stored, Some(2 * 4096));
}

#[test]
fn a_volume_whose_session_did_not_end_is_not_recovered_by_a_look() {
    let (mut rig, own, _handle) = three();
    rig.power_cut(|| false);
    let recoveries = rig.mapper.counters().recoveries;
    let refused = rig.refused(CatalogueRequest::Usage { name: name("v") });
    assert_eq!(refused, ErrorCode::InUse);
    assert_eq!(rig.mapper.counters().recoveries, recoveries);
    rig.open(own, true);
    assert_eq!(blocks(&mut rig, "v"), (6, 3));
}

#[test]
fn pages_that_neighbours_share_are_read_once() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 64 << 30, ObjectSize::DEFAULT);
    let handle = rig.open(own, true);
    let leaf = (2 << 30) / 4096;
    let all: Vec<(u64, u64)> = (0..32).map(|number| (number * leaf, 1)).collect();
    write_all(&mut rig, own, handle, &all);
    for number in 0..4 {
        rig.snapshot(handle, "v", &format!("s{number}"));
        write_all(&mut rig, own, handle, &[(0, 2)]);
    }
    rig.close(handle);
    rig.restart();
    let before = rig.mapper.counters().pages_read;
    let found = usage(&mut rig, "v");
    assert_eq!((found.mapped / 4096, found.unique / 4096), (32, 1));
    // The volume's root and 32 leaves; of each snapshot and its neighbour a root and the leaf that has changed.
    let read = rig.mapper.counters().pages_read - before;
    assert_eq!(read, 33 + 4 * 4);
}

#[test]
fn guests_are_served_between_the_steps_of_a_walk() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 30, ObjectSize::DEFAULT);
    let handle = rig.open(own, true);
    // Each other block of ten objects, in memory: a segment for each block.
    for block in (0..10 * 1024).step_by(2) {
        rig.write(own, handle, block, 1);
    }
    let before = rig.mapper.object_requests();
    assert_eq!(blocks(&mut rig, "v"), (5 * 1024, 5 * 1024));
    // After four objects, and after four more, the walk waits for the blocker.
    assert_eq!(rig.mapper.object_requests() - before, 2);
}
