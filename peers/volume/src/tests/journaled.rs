//! Small flushes: what is journaled, what is not, and what the mapper gets.

use archipelago_protocol::journaled::{JOURNALED_MAX, area_len};
use archipelago_protocol::map::{FLAG_HOME, MapOp};
use archipelago_protocol::object::{FLAG_DURABLE, ObjectOp, ObjectRequest};
use archipelago_protocol::volume::{VolumeEvent, VolumeOp, Volumes};
use archipelago_protocol::{BLOCK_SIZE, ErrorCode};

use super::world::World;

const WRITE: VolumeOp = VolumeOp::Write { durable: false };
const FLUSH: VolumeOp = VolumeOp::Flush;

fn opened() -> World {
    opened_on(false)
}

/// On a pool whose completed writes are `durable` or not.
fn opened_on(durable: bool) -> World {
    let mut world = World::with_areas(64, 1 << 20, 1);
    world.mapper.durable = durable;
    world.settle();
    assert!(matches!(
        world.events.pop(),
        Some(VolumeEvent::Opened { result: Ok(_) })
    ));
    world.map_log.clear();
    world
}

/// Flushes; the syncs of containers, and the journaled bytes and home mark of each commit.
fn flush(world: &mut World) -> (usize, Vec<(u64, bool)>) {
    world.map_log.clear();
    world.object_log.clear();
    assert_eq!(world.run(FLUSH, 0, 0), Ok(()));
    let is_sync = |op: ObjectOp| matches!(op, ObjectOp::Sync | ObjectOp::SyncPool);
    let syncs = world
        .object_log
        .iter()
        .filter(|request| is_sync(request.op));
    let commits = world
        .map_log
        .iter()
        .filter(|request| request.op == MapOp::FlushCommit)
        .map(|request| (request.len, request.flags & FLAG_HOME != 0));
    (syncs.count(), commits.collect())
}

#[test]
fn a_small_flush_of_first_writes_is_one_append_and_the_next_is_free() {
    let mut world = opened();
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    world.run(WRITE, 8 * BLOCK_SIZE, 2 * BLOCK_SIZE).unwrap();
    assert_eq!(flush(&mut world), (0, vec![(area_len(3), false)]));
    assert_eq!(flush(&mut world), (0, vec![]));
    assert!(world.map_log.is_empty(), "nothing is new");
}

#[test]
fn a_write_in_place_makes_the_flush_write_back_what_was_journaled() {
    let mut world = opened();
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    flush(&mut world);
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    assert_eq!(flush(&mut world), (1, vec![(0, true)]));
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    assert_eq!(
        flush(&mut world),
        (1, vec![]),
        "it is at its home location already"
    );
}

#[test]
fn merges_and_what_is_too_much_are_not_journaled() {
    let mut world = opened();
    world.run(WRITE, 512, 512).unwrap();
    assert_eq!(flush(&mut world), (1, vec![(0, true)]));
    let blocks = JOURNALED_MAX as u64;
    world
        .run(WRITE, 2 * BLOCK_SIZE, blocks * BLOCK_SIZE)
        .unwrap();
    assert_eq!(
        flush(&mut world),
        (0, vec![(area_len(JOURNALED_MAX), false)])
    );
    world
        .run(WRITE, 20 * BLOCK_SIZE, (blocks + 1) * BLOCK_SIZE)
        .unwrap();
    assert_eq!(flush(&mut world).0, 1);
}

#[test]
fn writes_that_overlap_in_flight_are_not_journaled() {
    let mut world = opened();
    world.submit(WRITE, 0, BLOCK_SIZE, &[]).unwrap();
    world.submit(WRITE, 0, BLOCK_SIZE, &[]).unwrap();
    world.settle();
    world.results.clear();
    assert_eq!(flush(&mut world), (1, vec![(0, true)]));
}

#[test]
fn a_flush_without_room_for_copies_is_ordinary() {
    let mut world = World::with_areas(64, 1 << 20, 0);
    world.settle();
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    assert_eq!(flush(&mut world), (1, vec![(0, true)]));
}

#[test]
fn a_failed_commit_of_journaled_data_is_followed_by_a_round_that_writes_back() {
    let mut world = opened();
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    world.submit(FLUSH, 0, 0, &[]).unwrap();
    while world.map_index(MapOp::FlushCommit).is_none() {
        world.poll();
        if let Some(index) = world.map_index(MapOp::FlushBegin) {
            world.map_step(index, None);
        }
    }
    let index = world.map_index(MapOp::FlushCommit).unwrap();
    world.map_step(index, Some(ErrorCode::NoSpace));
    world.settle();
    assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::NoSpace));
    assert_eq!(flush(&mut world), (1, vec![(0, true)]));
}

#[test]
fn a_failure_that_no_flush_has_reported_fails_the_next_one() {
    let mut world = opened();
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    // The mapper's own sync failed: a write gets the error, and the one before it is lost.
    world.submit(WRITE, BLOCK_SIZE, BLOCK_SIZE, &[]).unwrap();
    while world.map_index(MapOp::Written).is_none() {
        world.poll();
        if world.object_waiting() > 0 {
            world.object_step(0, None);
        } else if let Some(index) = world.map_index(MapOp::Locate) {
            world.map_step(index, None);
        }
    }
    let index = world.map_index(MapOp::Written).unwrap();
    world.map_step(index, Some(ErrorCode::SyncFailed));
    world.settle();
    assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::SyncFailed));
    assert_eq!(world.run(FLUSH, 0, 0), Err(ErrorCode::SyncFailed));
    assert_eq!(world.run(FLUSH, 0, 0), Ok(()), "once");
    world.read_all();
}

#[test]
fn a_write_in_place_that_completes_before_the_cut_is_answered_is_synced() {
    let mut world = opened();
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    flush(&mut world);
    world.run(WRITE, 8 * BLOCK_SIZE, BLOCK_SIZE).unwrap();
    // In place, on its way when the flush comes.
    world.submit(WRITE, 0, BLOCK_SIZE, &[]).unwrap();
    world.settle_map();
    assert!(world.object_index(ObjectOp::Write).is_some());
    world.submit(FLUSH, 0, 0, &[]).unwrap();
    for _ in 0..10 {
        world.poll();
    }
    assert!(world.map_index(MapOp::FlushBegin).is_some());
    world.object_step(0, None);
    world.poll();
    world.object_log.clear();
    world.settle();
    assert!(world.results.drain(..).all(|(_, result)| result.is_ok()));
    let synced = |world: &World| {
        let mut log = world.object_log.iter();
        log.any(|request| request.op == ObjectOp::Sync)
    };
    assert!(synced(&world), "the round knows of the write in place");
    assert_eq!(world.run(FLUSH, 0, 0), Ok(()));
}

#[test]
fn where_writes_are_durable_a_flush_is_one_append_if_anything_is_new_and_nothing_otherwise() {
    let mut world = opened_on(true);
    // First writes, a merge and more than is ever journaled, in one flush.
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    world.run(WRITE, 2 * BLOCK_SIZE + 512, 512).unwrap();
    world.run(WRITE, 4 * BLOCK_SIZE, 20 * BLOCK_SIZE).unwrap();
    let is_write = |request: &&ObjectRequest| request.op == ObjectOp::Write;
    let mut writes = world.object_log.iter().filter(is_write);
    assert!(writes.all(|write| write.flags == FLAG_DURABLE));
    assert_eq!(flush(&mut world), (0, vec![(0, false)]));
    assert_eq!(flush(&mut world), (0, vec![]));
    // In place: nothing is new to the map.
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    world.map_log.clear();
    assert_eq!(flush(&mut world), (0, vec![]));
    assert!(world.map_log.is_empty(), "{:?}", world.map_log);
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    world.peer.close(world.handle);
    world.settle();
    let asked: Vec<MapOp> = world.map_log.iter().map(|request| request.op).collect();
    assert_eq!(asked.last(), Some(&MapOp::Close));
    assert!(!asked.contains(&MapOp::FlushBegin), "{asked:?}");
}

#[test]
fn a_durable_pool_stays_one_when_the_mapper_dies() {
    let mut world = opened_on(true);
    world.run(WRITE, 0, BLOCK_SIZE).unwrap();
    world.kill_mapper();
    world.revive_mapper();
    world.settle();
    world.run(WRITE, 8 * BLOCK_SIZE, BLOCK_SIZE).unwrap();
    assert_eq!(flush(&mut world).0, 0);
    world.run(WRITE, 16 * BLOCK_SIZE, BLOCK_SIZE).unwrap();
    assert_eq!(flush(&mut world), (0, vec![(0, false)]));
}
