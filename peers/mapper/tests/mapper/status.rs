//! Which blocks hold data, as a session sees it.

use archipelago_protocol::catalogue::CatalogueRequest;
use archipelago_protocol::map::{MapOp, MapRequest};
use archipelago_protocol::object::ObjectKind;
use archipelago_protocol::status::BlockState::{Data, Hole};
use archipelago_protocol::{Epoch, ErrorCode, ObjectSize};

use crate::rig::{Rig, small};

const GIB: u64 = (1 << 30) / 4096;

fn ask(rig: &mut Rig, handle: u32, offset: u64, len: u64) -> Result<u32, ErrorCode> {
    let request = MapRequest {
        offset,
        len,
        ..MapRequest::new(MapOp::Status, handle)
    };
    rig.ask(request).result
}

#[test]
fn a_range_of_any_length_is_whole_blocks_inside_the_volume() {
    let mut rig = Rig::new(small());
    // The last block is there in part.
    let own = rig.create("v", (1 << 50) - 512, ObjectSize::MIN);
    let handle = rig.open(own, false);
    assert_eq!(ask(&mut rig, handle, 0, 1 << 50), Ok(4));
    assert_eq!(ask(&mut rig, handle, 4096, 4096), Ok(1));
    for (offset, len) in [(4096, 1 << 50), (0, 0), (0, 512), (512, 4096)] {
        let refused = Err(ErrorCode::Invalid);
        assert_eq!(ask(&mut rig, handle, offset, len), refused);
    }
    assert_eq!(
        rig.status(handle, 0, (1 << 50) / 4096),
        [((1 << 50) / 4096, Hole)]
    );
    assert_eq!(ask(&mut rig, handle + 1, 0, 4096), Err(ErrorCode::NotFound));
}

#[test]
fn behind_the_end_of_its_parent_a_grown_clone_is_a_hole() {
    let mut rig = Rig::new(small());
    let parent = rig.create("v", 10 * 4096 + 512, ObjectSize::MIN);
    let handle = rig.open(parent, true);
    for block in [3, 10] {
        rig.write(parent, handle, block, 7);
    }
    rig.flush(handle).unwrap();
    rig.close(handle);
    rig.snapshot_closed("v", "s");
    let clone = rig.clone_of("s", "w", Some(GIB * 4096));
    let handle = rig.open(clone, true);
    let of_parent = [(3, Hole), (1, Data), (6, Hole), (1, Data), (GIB - 11, Hole)];
    assert_eq!(rig.status(handle, 0, GIB), of_parent);
    // Its own blocks, of which one hides a block of the parent.
    rig.zero(handle, 3, 1).result.unwrap();
    rig.write(clone, handle, GIB - 1, 9);
    assert_eq!(
        rig.status(handle, 0, GIB),
        [(10, Hole), (1, Data), (GIB - 12, Hole), (1, Data)]
    );
    let entry = rig.entry(CatalogueRequest::Resize {
        name: "w".parse().unwrap(),
        size: 2 * GIB * 4096,
        force: false,
    });
    assert_eq!(entry.size, 2 * GIB * 4096);
    assert_eq!(
        rig.status(handle, GIB - 1, GIB + 1),
        [(1, Data), (GIB, Hole)]
    );
}

#[test]
fn what_a_shrink_dropped_is_a_hole_when_the_volume_grows_again() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 100 * 4096, ObjectSize::MIN);
    let handle = rig.open(own, true);
    for block in [2, 50, 99] {
        rig.write(own, handle, block, 7);
    }
    rig.flush(handle).unwrap();
    rig.close(handle);
    for size in [50 * 4096 + 512, GIB * 4096] {
        rig.entry(CatalogueRequest::Resize {
            name: "v".parse().unwrap(),
            size,
            force: true,
        });
    }
    let handle = rig.open(own, true);
    assert_eq!(
        rig.status(handle, 0, GIB),
        [
            (2, Hole),
            (1, Data),
            (47, Hole),
            (1, Data),
            (GIB - 51, Hole)
        ]
    );
}

#[test]
fn a_late_write_of_the_old_epoch_is_data_as_soon_as_it_is_reported() {
    let (mut rig, own, handle) = Rig::opened();
    let old = Epoch(rig.locate(handle, 5, 1, true).values[0]);
    let (token, _) = rig.prepare("v", "s");
    rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
    assert_eq!(rig.status(handle, 5, 1), [(1, Hole)]);
    rig.put(own, old, 5, 7);
    rig.written(handle, 5, 1, old).result.unwrap();
    assert_eq!(rig.status(handle, 4, 3), [(1, Hole), (1, Data), (1, Hole)]);
}

#[test]
fn a_damaged_page_fails_the_status_and_is_no_hole() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 30, ObjectSize::MIN);
    let handle = rig.open(own, true);
    rig.write(own, handle, 5, 7);
    rig.flush(handle).unwrap();
    rig.close(handle);
    rig.restart();
    let handle = rig.open(own, false);
    rig.pool.damage(ObjectKind::Pack, own, 50);
    assert_eq!(ask(&mut rig, handle, 0, 1 << 30), Err(ErrorCode::Damaged));
}
