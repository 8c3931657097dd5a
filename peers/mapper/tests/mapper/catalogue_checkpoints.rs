//! Checkpoints of the catalogue: written beside changes, whatever becomes of them.

use archipelago_protocol::catalogue::CatalogueReply;
use archipelago_protocol::object::{ObjectKind, ObjectOp};
use archipelago_protocol::{ErrorCode, Lineage};

use crate::catalogue::{list, names};
use crate::rig::pool::Room;
use crate::rig::{Rig, small, volume};

#[test]
fn changes_go_on_beside_a_checkpoint() {
    let mut rig = Rig::new(small());
    let mut made = 0;
    for restarts in [false, true, true] {
        let before = rig.mapper.counters().catalogue_checkpoints;
        // The last batch of the first half of the log begins a checkpoint.
        rig.stalled = true;
        while !rig.waits_for(ObjectOp::Write) {
            let tag = send_next(&mut rig, &mut made);
            rig.step(ObjectOp::Append, None);
            rig.control_reply(tag);
        }
        // Its page is in flight: a change is made and answered all the same, and is not in the checkpoint.
        let beside = send_next(&mut rig, &mut made);
        rig.step(ObjectOp::Write, None);
        rig.step(ObjectOp::Append, None);
        rig.control_reply(beside);
        assert_eq!(rig.mapper.counters().catalogue_checkpoints, before);
        let again = send_next(&mut rig, &mut made);
        rig.stalled = false;
        rig.run();
        rig.control_reply(again);
        assert_eq!(rig.mapper.counters().catalogue_checkpoints, before + 1);
        if restarts {
            rig.restart();
        }
        let expected: Vec<String> = (1..=made).map(|number| format!("v{number:03}")).collect();
        assert_eq!(names(&list(&mut rig, "", None, 1000)), expected);
        rig.assert_clean();
    }
}

#[test]
fn a_checkpoint_that_fails_leaves_nothing_behind() {
    let mut rig = Rig::new(small());
    let mut made = 0;
    rig.stalled = true;
    while !rig.waits_for(ObjectOp::Write) {
        let tag = send_next(&mut rig, &mut made);
        rig.step(ObjectOp::Append, None);
        rig.control_reply(tag);
    }
    rig.step(ObjectOp::Write, None);
    assert_eq!(rig.pool.packs(Lineage::CATALOGUE), 1);
    rig.step(ObjectOp::Sync, Some(ErrorCode::Io));
    rig.stalled = false;
    rig.run();
    assert_eq!(rig.pool.packs(Lineage::CATALOGUE), 0);
}

/// Asks for another volume.
fn send_next(rig: &mut Rig, made: &mut u128) -> u64 {
    *made += 1;
    rig.send_control(volume(&format!("v{made:03}"), Lineage(1000 + *made)))
}

#[test]
fn a_checkpoint_that_finds_no_room_is_tried_again_when_a_change_needs_it() {
    let mut rig = Rig::new(small());
    let mut made = 0;
    rig.pool.room = Room::InPlace;
    let packs = |rig: &Rig| rig.pool.count(0, ObjectOp::Write, ObjectKind::Pack);
    let refused = loop {
        made += 1;
        let create = volume(&format!("v{made:03}"), Lineage(1000 + made));
        match rig.control(create) {
            CatalogueReply::Entry(_) => {}
            CatalogueReply::Failed(error) => break error.code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused, ErrorCode::NoSpace);
    assert_eq!(
        packs(&rig),
        2,
        "beside changes, and of the change that had no room"
    );
    rig.pool.room = Room::Enough;
    rig.entry(volume("w", Lineage(999)));
    assert_eq!(rig.mapper.counters().catalogue_checkpoints, 1);
    assert_eq!(
        rig.pool.packs(Lineage::CATALOGUE),
        1,
        "what failed is deleted"
    );
    rig.restart();
    assert_eq!(list(&mut rig, "", None, 1000).entries.len() as u128, made);
}
