//! The first open, and opens after an unclean end.

use archipelago_mapper::MapperConfig;
use archipelago_protocol::map::MapRequest;
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectRequest};
use archipelago_protocol::{Epoch, Lineage, ObjectSize};

use crate::rig::{Rig, small};

#[test]
fn a_first_open_that_was_cut_short_is_begun_anew_beside_other_volumes() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    // Its objects come behind those of the first in a listing.
    let other = rig.create("w", 1 << 20, ObjectSize::MIN);
    let handle = rig.open(other, true);
    rig.write(other, handle, 1, 1);
    rig.close(handle);
    rig.stalled = true;
    rig.send(MapRequest::open(own, true));
    for op in [
        ObjectOp::ReadSwapped,
        ObjectOp::Stat,
        ObjectOp::Write,
        ObjectOp::Sync,
    ] {
        rig.step(op, None);
    }
    // It has a log, and the power goes before it has a head.
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    assert!(rig.write(own, handle, 1, 7));
    rig.close(handle);
    assert_eq!(rig.mapper.counters().damages, 0);
}

#[test]
fn a_head_that_is_lost_with_what_it_led_to_is_damage() {
    for is_closed in [false, true] {
        let mut rig = Rig::new(small());
        let own = rig.create("v", 1 << 20, ObjectSize::MIN);
        let handle = rig.open(own, true);
        rig.write(own, handle, 1, 7);
        rig.flush(handle).unwrap();
        if is_closed {
            rig.close(handle);
        }
        let head = ObjectRequest::new(ObjectOp::Delete, ObjectId::head(own));
        rig.pool.serve(&head, &[]);
        rig.power_cut(|| false);
        let why = rig.damage_at_open(own);
        assert!(
            why.contains("head of") && why.contains("is missing"),
            "{why}"
        );
    }
}

fn owner(rig: &mut Rig, lineage: Lineage) -> u128 {
    let request = ObjectRequest::new(ObjectOp::ReadSwapped, ObjectId::head(lineage));
    let (_, head) = rig.pool.serve(&request, &[]);
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
    u128::from(word(56)) << 64 | u128::from(word(64))
}

#[test]
fn a_head_says_whose_session_it_is() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    let handle = rig.open(own, true);
    rig.close(handle);
    assert_eq!(
        [Lineage::CATALOGUE, own].map(|lineage| owner(&mut rig, lineage)),
        [7, 7]
    );
    rig.config = MapperConfig {
        owner: 1 << 64 | 9,
        ..small()
    };
    rig.restart();
    rig.open(own, true);
    let owners = [Lineage::CATALOGUE, own].map(|lineage| owner(&mut rig, lineage));
    assert_eq!(owners, [1 << 64 | 10; 2], "the next one");
}

#[test]
fn a_record_for_all_of_a_leaf_is_replayed_over_the_stored_one() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 30, ObjectSize::MIN);
    let handle = rig.open(own, true);
    // Two leaves, so that one of them has to be loaded when it changes.
    rig.write(own, handle, 5, 7);
    rig.write(own, handle, 16 * 512, 8);
    rig.snapshot(handle, "v", "s");
    rig.close(handle);
    let handle = rig.open(own, true);
    let epoch = Epoch(rig.locate(handle, 0, 1, true).values[0]);
    rig.put(own, epoch, 5, 9);
    rig.written(handle, 0, 16 * 512, epoch).result.unwrap();
    rig.flush(handle).unwrap();
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    let read = [4, 5, 16 * 512].map(|block| rig.read(handle, block));
    assert_eq!(read, [0, 9, 8]);
}
