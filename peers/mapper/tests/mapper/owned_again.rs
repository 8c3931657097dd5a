//! What only removed snapshots had is written in place again, and nothing that a snapshot has.

use archipelago_protocol::Epoch;
use archipelago_protocol::map::{MapOp, MapRequest};
use archipelago_protocol::object::ObjectOp;

use crate::reclaim::{A, B, C, FAR, READ, check, opened, three};
use crate::rig::blocks_area;

#[test]
fn what_only_removed_snapshots_had_is_written_in_place_again() {
    let (mut rig, own, handle) = opened();
    rig.write_all(own, handle, [(1, 1), (2, 1), (3, 1)]);
    for round in 0..10 {
        rig.snapshot(handle, "v", "s");
        assert!(rig.write(own, handle, 1, 10 + round), "the snapshot has it");
        rig.remove("s");
        for block in [1, 2, 3] {
            let first = rig.write(own, handle, block, 20 + round);
            assert!(!first, "{block} is not written in place in round {round}");
        }
        rig.flush(handle).unwrap();
        assert_eq!(rig.stored(own), [1, 2, 3], "{round}");
    }
    rig.assert_clean();
    rig.close(handle);
    rig.restart();
    let handle = rig.open(own, true);
    assert_eq!(rig.read_all(handle, [1, 2, 3]), [29, 29, 29]);
    assert!(!rig.write(own, handle, 1, 30));
}

#[test]
fn what_an_older_snapshot_has_is_not_owned_again() {
    let (mut rig, own, handle) = three();
    rig.remove("c");
    // Written after `b`.
    assert!(!rig.write(own, handle, 2, 9));
    assert!(rig.write(own, handle, 1, 9));
    rig.flush(handle).unwrap();
    rig.assert_clean();
    check(&mut rig, "b", B);
    rig.remove("b");
    assert!(!rig.write(own, handle, 1, 10));
    assert!(rig.write(own, handle, 0, 10));
    rig.flush(handle).unwrap();
    check(&mut rig, "a", A);
    rig.power_cut(|| false);
    check(&mut rig, "a", A);
    let handle = rig.open(own, true);
    assert_eq!(rig.read_all(handle, READ), [10, 10, 9, 4, 4, 0, 4]);
    rig.assert_clean();
}

#[test]
fn a_snapshot_with_a_clone_is_not_written_over() {
    let (mut rig, own, handle) = three();
    let clone = rig.clone_of("c", "clone", None);
    rig.remove("c");
    // Each session looks for what it may own again.
    rig.close(handle);
    let handle = rig.open(own, true);
    assert!(rig.write(own, handle, 2, 9));
    let reader = rig.open(clone, false);
    assert_eq!(rig.read_all(reader, READ), C);
    rig.close(reader);
    rig.remove("clone");
    assert!(!rig.write(own, handle, 4, 9));
}

#[test]
fn a_volume_that_was_closed_owns_again_what_was_removed_meanwhile() {
    for crashes in [false, true] {
        let (mut rig, own, handle) = three();
        if crashes {
            rig.power_cut(|| false);
        } else {
            rig.close(handle);
        }
        for text in ["a", "b", "c"] {
            rig.remove(text);
        }
        let handle = rig.open(own, true);
        for block in [0, 1, 2, 3, 4, FAR] {
            assert!(!rig.write(own, handle, block, 9), "{block}, {crashes}");
        }
        rig.flush(handle).unwrap();
        assert_eq!(rig.stored(own), [0, 1, 2, 3, 4, FAR], "{crashes}");
    }
}

#[test]
fn a_snapshot_in_progress_is_not_written_over() {
    let (mut rig, own, handle) = opened();
    rig.write_all(own, handle, [(1, 1)]);
    rig.snapshot(handle, "v", "s");
    let (token, lineage) = rig.prepare("v", "t");
    rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
    rig.remove("s");
    assert!(rig.write(own, handle, 1, 2));
    rig.sync();
    rig.op(MapOp::SnapshotCommit, handle, token).result.unwrap();
    let reader = rig.open(lineage, false);
    assert_eq!(rig.read(reader, 1), 1);
    rig.close(reader);
    assert!(!rig.write(own, handle, 1, 3));
    // Another one is given up: what it would have had is owned again.
    let (token, _) = rig.prepare("v", "u");
    rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
    rig.op(MapOp::SnapshotAbort, handle, token).result.unwrap();
    assert!(!rig.write(own, handle, 1, 4));
}

#[test]
fn a_snapshot_whose_session_ended_before_it_was_made_is_not_written_over() {
    let (mut rig, own, handle) = opened();
    rig.write_all(own, handle, [(1, 1)]);
    let (token, lineage) = rig.prepare("v", "s");
    rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
    rig.sync();
    // Up to the append to the catalogue: the second after the one to the volume's log.
    rig.stalled = true;
    let commit = rig.send(MapRequest {
        operand: [token, 0],
        ..MapRequest::new(MapOp::SnapshotCommit, handle)
    });
    rig.serve_until(ObjectOp::Append);
    rig.step(ObjectOp::Append, None);
    rig.serve_until(ObjectOp::Append);
    rig.replace_client();
    let open = rig.send(MapRequest::open(own, true));
    rig.serve_all_but(ObjectOp::Append);
    rig.stalled = false;
    rig.run();
    let _ended = rig.reply(commit);
    let handle = rig.reply(open).unwrap().result.unwrap();
    assert!(rig.write(own, handle, 1, 2), "the snapshot has it");
    let reader = rig.open(lineage, false);
    assert_eq!(rig.read(reader, 1), 1);
}

#[test]
fn what_is_written_in_place_again_survives_a_power_cut_in_the_log_alone() {
    let (mut rig, own, handle) = opened();
    rig.write_all(own, handle, [(1, 1), (2, 1)]);
    rig.snapshot(handle, "v", "s");
    rig.remove("s");
    let place = rig.locate(handle, 2, 1, true);
    let epoch = Epoch(place.values[0]);
    assert!(!rig.write(own, handle, 2, 2));
    // The flush carries the block, which says 2.
    let area = blocks_area(epoch, &[2]);
    rig.flush_with_data(handle, 0, area).unwrap();
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    assert_eq!(rig.read_all(handle, [1, 2]), [1, 2]);
}
