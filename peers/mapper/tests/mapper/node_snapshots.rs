//! A volume that one node snapshots and another one opens: no snapshot is written over.

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::map::{MapOp, MapRequest};
use archipelago_protocol::object::ObjectOp;
use archipelago_protocol::{ErrorCode, Labels, Lineage, ObjectSize};

use crate::nodes::Nodes;
use crate::rig::{Rig, name};

/// A node with a closed volume `v` that holds a 7 in block 1, and another one.
fn with_a_closed_volume() -> (Nodes, Lineage) {
    let mut nodes = Nodes::new(2);
    let own = nodes.on(0, |rig| rig.create("v", 1 << 20, ObjectSize::MIN));
    nodes.on(0, |rig| {
        let handle = rig.open(own, true);
        rig.write(own, handle, 1, 7);
        rig.flush(handle).unwrap();
        rig.close(handle);
    });
    (nodes, own)
}

#[test]
fn a_snapshot_of_a_closed_volume_is_in_the_catalogue_before_another_node_writes() {
    for entered in [false, true] {
        let (mut nodes, own) = with_a_closed_volume();
        let lineage = nodes.rigs[0].fresh();
        let snapshot = CatalogueRequest::Snapshot {
            volume: name("v"),
            name: name("s"),
            lineage,
            created: 0,
            labels: Labels::default(),
        };
        // It is frozen, and the catalogue does not know of it.
        nodes.rigs[0].stalled = true;
        let made = nodes.on(0, |rig| {
            let made = rig.send_control(snapshot);
            rig.serve_until(ObjectOp::Append);
            made
        });
        let opened = nodes.on(1, |rig| rig.ask(MapRequest::open(own, true)).result);
        assert_eq!(opened, Err(ErrorCode::InUse));
        if entered {
            nodes.rigs[0].stalled = false;
            let reply = nodes.on(0, |rig| {
                rig.run();
                rig.control_reply(made)
            });
            assert!(matches!(reply, CatalogueReply::Entry(_)), "{reply:?}");
        } else {
            nodes.restart(0);
        }
        let handle = nodes.on(1, |rig| rig.open(own, true));
        let first = nodes.on(1, |rig| rig.write(own, handle, 1, 8));
        assert_eq!(first, entered, "the snapshot has it if it is there");
        nodes.on(1, |rig| rig.flush(handle)).unwrap();
        if entered {
            let reader = nodes.on(1, |rig| rig.open(lineage, false));
            assert_eq!(nodes.on(1, |rig| rig.read(reader, 1)), 7);
        }
        nodes.on(1, Rig::assert_clean);
    }
}

#[test]
fn a_snapshot_that_another_node_made_while_a_volume_was_opened_is_not_written_over() {
    let (mut nodes, own) = with_a_closed_volume();
    // It has read the catalogue, and not the head.
    nodes.rigs[1].stalled = true;
    let late = nodes.on(1, |rig| {
        let late = rig.send(MapRequest::open(own, true));
        rig.serve_until(ObjectOp::ReadSwapped);
        late
    });
    let lineage = nodes.on(0, |rig| rig.snapshot_closed("v", "s"));
    nodes.rigs[1].stalled = false;
    let handle = nodes.on(1, |rig| {
        rig.run();
        rig.reply(late).unwrap().result.unwrap()
    });
    assert!(nodes.on(1, |rig| rig.write(own, handle, 1, 8)));
    let reader = nodes.on(0, |rig| rig.open(lineage, false));
    assert_eq!(nodes.on(0, |rig| rig.read(reader, 1)), 7);
}

#[test]
fn a_volume_whose_snapshot_is_being_made_does_not_end_cleanly() {
    let (mut nodes, own) = with_a_closed_volume();
    let (token, lineage, handle) = nodes.on(0, |rig| {
        let handle = rig.open(own, true);
        let (token, lineage) = rig.prepare("v", "s");
        rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
        rig.sync();
        (token, lineage, handle)
    });
    // The freeze is logged, and the catalogue does not know of the snapshot, when the session is to end.
    nodes.rigs[0].stalled = true;
    nodes.on(0, |rig| {
        rig.send(MapRequest {
            operand: [token, 0],
            ..MapRequest::new(MapOp::SnapshotCommit, handle)
        });
        rig.serve_until(ObjectOp::Append);
        rig.step(ObjectOp::Append, None);
        rig.serve_until(ObjectOp::Append);
        rig.send(MapRequest::new(MapOp::Close, handle));
        rig.serve_all_but(ObjectOp::Append);
    });
    let opened = nodes.on(1, |rig| rig.ask(MapRequest::open(own, true)).result);
    assert_eq!(opened, Err(ErrorCode::InUse));
    nodes.rigs[0].stalled = false;
    nodes.on(0, Rig::run);
    let handle = nodes.on(1, |rig| rig.open(own, true));
    assert!(nodes.on(1, |rig| rig.write(own, handle, 1, 8)));
    let reader = nodes.on(1, |rig| rig.open(lineage, false));
    assert_eq!(nodes.on(1, |rig| rig.read(reader, 1)), 7);
}
