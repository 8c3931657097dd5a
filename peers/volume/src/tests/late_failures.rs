//! Failed syncs that a mapper had reported before it died, and that the peer reads afterwards: final, whatever its successor says.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::map::{FLAG_DROP, MapOp};
use archipelago_protocol::volume::{VolumeEvent, VolumeOp, Volumes};
use xseg::Completion;

use super::world::World;
use crate::ControlEvent;

const WRITE: VolumeOp = VolumeOp::Write { durable: false };
const LOST: Result<(), ErrorCode> = Err(ErrorCode::SyncFailed);
/// More answers than a poll takes.
const MANY: usize = 300;

/// Everything is answered until the mapper is asked for `op`.
fn until_asked(world: &mut World, op: MapOp) -> usize {
    for _ in 0..1000 {
        while world.poll() {}
        if let Some(index) = world.map_index(op) {
            return index;
        }
        if world.map_waiting() > 0 {
            world.map_step(0, None);
        } else {
            world.object_step(0, None);
        }
    }
    panic!("{op:?} is not asked");
}

/// The mapper answers `op` with a failed sync and dies; nobody has read the answer yet. The successor answers everything.
fn fails_and_dies(world: &mut World, op: MapOp) {
    let index = until_asked(world, op);
    world.map_step(index, Some(ErrorCode::SyncFailed));
    world.kill_mapper();
    world.revive_mapper();
    world.map_log.clear();
}

/// That the volume was opened without what was not durable, before anything else.
fn assert_dropped(world: &World) {
    let first = &world.map_log[0];
    assert_eq!(
        (first.op, first.flags & FLAG_DROP),
        (MapOp::Open, FLAG_DROP)
    );
}

#[test]
fn a_commit_that_failed_before_the_mapper_died_does_not_succeed_with_its_successor() {
    for deaths in [1, 2] {
        let mut world = World::opened();
        assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
        let flush = world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
        fails_and_dies(&mut world, MapOp::FlushCommit);
        for _ in 1..deaths {
            world.kill_mapper();
            world.revive_mapper();
        }
        world.settle();
        assert_eq!(world.results.pop(), Some((flush, LOST)));
        assert_dropped(&world);
        world.read_all();
        assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()), "reported once");
    }
}

#[test]
fn it_is_read_before_the_successor_is_asked_however_many_answers_there_are() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    let flush = world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    let index = until_asked(&mut world, MapOp::FlushCommit);
    {
        let mut wire = world.map_port.wire.borrow_mut();
        let (cookie, _) = wire.queue[index];
        wire.in_flight += MANY;
        let others = vec![(cookie, Completion::default()); MANY];
        wire.completions.extend(others);
    }
    // No poll between these, which would read the other answers as the living mapper's.
    world.map_step(index, Some(ErrorCode::SyncFailed));
    world.kill_mapper();
    world.revive_mapper();
    world.map_log.clear();
    world.settle();
    assert_eq!(world.results.pop(), Some((flush, LOST)));
    assert_dropped(&world);
}

#[test]
fn a_snapshot_that_failed_so_fails_and_so_does_the_next_flush() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    world.snapshot(3);
    fails_and_dies(&mut world, MapOp::SnapshotCommit);
    world.settle();
    let Some(ControlEvent::SnapshotDone { result, .. }) = world.control.pop() else {
        panic!("{:?}", world.control);
    };
    assert_eq!(result.map_err(|error| error.code), LOST);
    assert_dropped(&world);
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), LOST);
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
}

#[test]
fn a_close_that_failed_so_fails() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    world.peer.close(world.handle);
    fails_and_dies(&mut world, MapOp::Close);
    world.settle();
    let closed = world.events.pop();
    let Some(VolumeEvent::Closed { result: Err(error) }) = closed else {
        panic!("{closed:?}");
    };
    assert_eq!(error.code, ErrorCode::SyncFailed);
}

#[test]
fn a_reopen_that_failed_so_fails_what_waits_for_it() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    let flush = world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    world.kill_mapper();
    world.revive_mapper();
    fails_and_dies(&mut world, MapOp::Open);
    world.settle();
    assert_eq!(world.results.pop(), Some((flush, LOST)));
    assert_dropped(&world);
}

#[test]
fn a_first_open_that_failed_so_is_asked_again() {
    let mut world = World::new(8, 1 << 20);
    fails_and_dies(&mut world, MapOp::Open);
    world.settle();
    let opened = world.events.pop();
    assert!(
        matches!(opened, Some(VolumeEvent::Opened { result: Ok(_) })),
        "{opened:?}"
    );
}
