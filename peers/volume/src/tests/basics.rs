//! Counts of what reaches the backends, and the usual ways through the peer.

use archipelago_protocol::handle::HandleAccess;
use archipelago_protocol::map::MapOp;
use archipelago_protocol::object::ObjectOp;
use archipelago_protocol::volume::{
    OpenMode, Segment, VolumeEvent, VolumeOp, VolumeRequest, Volumes,
};
use archipelago_protocol::{ErrorCode, Lineage};
use xseg::{Region, RegionId};

use super::world::{SIZE, World};

const WRITE: VolumeOp = VolumeOp::Write { durable: false };

fn map_ops(world: &World) -> Vec<MapOp> {
    world
        .map_log
        .iter()
        .map(|request| request.op)
        .filter(|op| *op != MapOp::Lineage)
        .collect()
}

fn object_ops(world: &World) -> Vec<(ObjectOp, u32)> {
    world
        .object_log
        .iter()
        .map(|request| (request.op, request.len))
        .collect()
}

fn forget(world: &mut World) {
    world.map_log.clear();
    world.object_log.clear();
}

#[test]
fn a_first_write_is_4096_bytes_and_the_next_one_no_metadata() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 8192, 4096), Ok(()));
    assert_eq!(map_ops(&world), [MapOp::Locate, MapOp::Written]);
    assert_eq!(object_ops(&world), [(ObjectOp::Write, 4096)]);
    forget(&mut world);
    assert_eq!(world.run(WRITE, 8192, 4096), Ok(()));
    assert_eq!(map_ops(&world), [MapOp::Locate]);
    assert_eq!(object_ops(&world), [(ObjectOp::Write, 4096)]);
    forget(&mut world);
    assert_eq!(world.run(WRITE, 8192 + 512, 1024), Ok(()));
    assert_eq!(map_ops(&world), [MapOp::Locate]);
    assert_eq!(object_ops(&world), [(ObjectOp::Write, 1024)]);
    world.read_all();
}

#[test]
fn a_flush_syncs_once_and_spares_the_mapper_without_dirty_metadata() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 8192), Ok(()));
    forget(&mut world);
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
    assert_eq!(map_ops(&world), [MapOp::FlushBegin, MapOp::FlushCommit]);
    assert_eq!(object_ops(&world), [(ObjectOp::Sync, 0)]);
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    forget(&mut world);
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
    assert_eq!(map_ops(&world), []);
    assert_eq!(object_ops(&world), [(ObjectOp::Sync, 0)]);
    forget(&mut world);
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
    assert_eq!((map_ops(&world).len(), object_ops(&world).len()), (0, 0));
}

#[test]
fn an_object_is_written_and_synced_through_one_handle() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 8192), Ok(()));
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
    let wire = world.object_port.wire.borrow();
    let written = wire
        .handles
        .values()
        .filter(|object| object.access == HandleAccess::Write);
    assert_eq!(written.count(), 1, "{:?}", wire.handles);
}

#[test]
fn a_small_write_into_a_block_of_the_parent_is_merged() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 512, 512), Ok(()));
    assert_eq!(
        object_ops(&world),
        [(ObjectOp::Read, 4096), (ObjectOp::Write, 4096)]
    );
    forget(&mut world);
    // A block that reads as zeros costs no read.
    assert_eq!(world.run(WRITE, 4096 + 512, 512), Ok(()));
    assert_eq!(object_ops(&world), [(ObjectOp::Write, 4096)]);
    // The block that is cut off by the volume's end.
    assert_eq!(world.run(WRITE, SIZE - 1536, 1536), Ok(()));
    world.read_all();
}

#[test]
fn a_large_write_is_cut_at_objects_and_goes_in_parallel() {
    let mut world = World::opened();
    let cuts: Vec<u64> = (1..126).map(|index| index * 1003).collect();
    world.submit(WRITE, 512, 128 << 10, &cuts).unwrap();
    world.settle_map();
    // 64 KiB objects: the merge of the first block comes beside the whole blocks of three objects.
    assert_eq!(world.object_waiting(), 4);
    world.settle();
    assert_eq!(world.results.pop().unwrap().1, Ok(()));
    let cuts: Vec<u64> = (1..900).map(|index| index * 37).collect();
    world.submit(VolumeOp::Read, 0, 64 << 10, &cuts).unwrap();
    world.settle();
    assert_eq!(world.results.pop().unwrap().1, Ok(()));
    world.read_all();
}

#[test]
fn a_discard_clears_whole_blocks_and_writes_zeros_at_its_edges_only_if_something_is_there() {
    let mut world = World::opened();
    assert_eq!(world.run(VolumeOp::Discard, 4096 + 512, 20480), Ok(()));
    // Block 1 is zero already, blocks 2 to 5 are whole, of block 6 (in the parent) one sector goes.
    assert_eq!(
        object_ops(&world),
        [(ObjectOp::Read, 4096), (ObjectOp::Write, 4096)]
    );
    assert_eq!(
        map_ops(&world)
            .iter()
            .filter(|op| **op == MapOp::Zero)
            .count(),
        1
    );
    let zeroes = VolumeOp::WriteZeroes {
        unmap: false,
        durable: true,
    };
    assert_eq!(world.run(zeroes, 24576 + 512, 1024), Ok(()));
    assert_eq!(world.run(VolumeOp::Discard, 0, SIZE), Ok(()));
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
    world.read_all();
}

#[test]
fn wrong_requests_are_answered_and_change_nothing() {
    let mut world = World::opened();
    let segment = |region, offset, len| Segment {
        region,
        len,
        offset,
    };
    let good = segment(1, 0, 4096);
    let cases: [(u64, u64, Vec<Segment>); 10] = [
        (100, 4096, vec![good]),
        (0, 4095, vec![segment(1, 0, 4095)]),
        (0, 4096, vec![segment(1, 0, 512)]),
        (SIZE, 512, vec![segment(1, 0, 512)]),
        (u64::MAX - 511, 4096, vec![good]),
        (0, 4096, vec![segment(7, 0, 4096)]),
        (0, 4096, vec![segment(0, 0, 4096)]),
        (0, 4096, vec![segment(1, u64::MAX, 4096)]),
        (0, 4096, vec![segment(1, (4 << 20) - 4095, 4096)]),
        (0, 2048, vec![segment(1, 0, 1); 2048]),
    ];
    for (offset, len, segments) in &cases {
        for op in [VolumeOp::Read, WRITE] {
            let request = VolumeRequest {
                op,
                offset: *offset,
                len: *len,
                segments,
            };
            world.peer.submit(world.handle, 9, request).unwrap();
            let answer = world.peer.next_event(world.handle);
            assert_eq!(
                answer,
                Some(VolumeEvent::Done {
                    cookie: 9,
                    result: Err(ErrorCode::Invalid)
                }),
                "{request:?}"
            );
        }
    }
    world.settle();
    assert_eq!((world.map_log.len(), world.object_log.len()), (0, 0));
    assert_eq!(
        world
            .peer
            .add_region(RegionId::ARENA, Region::anonymous(4096).unwrap()),
        Err(ErrorCode::Invalid)
    );
}

#[test]
fn a_read_only_volume_refuses_writes_and_closes_without_a_flush() {
    let mut world = World::opened();
    world.peer.close(world.handle);
    world.settle();
    assert_eq!(
        world.events.pop(),
        Some(VolumeEvent::Closed { result: Ok(()) })
    );
    assert_eq!(map_ops(&world), [MapOp::Close]);
    assert!(world.peer.next_event(world.handle).is_none());
    let old = std::mem::replace(
        &mut world.handle,
        world.peer.open(super::fakes::OWN, OpenMode::ReadOnly),
    );
    assert_ne!(old, world.handle);
    world.settle();
    for op in [WRITE, VolumeOp::Discard] {
        assert_eq!(world.run(op, 0, 4096), Err(ErrorCode::ReadOnly));
    }
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
    world.read_all();
    world.peer.orphan(world.handle);
    world.settle();
    assert!(!world.mapper.is_open);
    assert_eq!(world.peer.status().counters[0], ("volumes".to_owned(), 0));
}

#[test]
fn a_close_waits_for_requests_and_makes_everything_durable() {
    let mut world = World::opened();
    world.submit(WRITE, 0, 4096, &[]).unwrap();
    world.peer.close(world.handle);
    world.settle();
    assert_eq!(world.results, [(0, Ok(()))]);
    assert_eq!(
        world.events.pop(),
        Some(VolumeEvent::Closed { result: Ok(()) })
    );
    let expected = [
        MapOp::Locate,
        MapOp::Written,
        MapOp::FlushBegin,
        MapOp::FlushCommit,
        MapOp::Close,
    ];
    assert_eq!(map_ops(&world), expected);
}

#[test]
fn the_volume_grows_while_it_is_open() {
    let mut world = World::opened();
    world.peer.resized(Lineage(5), 1 << 30);
    world.peer.resized(super::fakes::OWN, SIZE + 512);
    world.peer.resized(super::fakes::OWN, SIZE);
    world.poll();
    assert_eq!(world.events, [VolumeEvent::Resized { size: SIZE + 512 }]);
}

#[test]
fn the_mapper_may_ask_for_a_flush() {
    let mut world = World::opened();
    world.mapper.flush_soon = true;
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    let ops = map_ops(&world);
    assert_eq!(ops[2..], [MapOp::FlushBegin, MapOp::FlushCommit]);
}
