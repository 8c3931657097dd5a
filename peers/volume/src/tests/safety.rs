//! Faults and orders that must not lose data, one by one.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::map::MapOp;
use archipelago_protocol::object::{ObjectOp, ObjectRequest};
use archipelago_protocol::volume::{VolumeEvent, VolumeOp, Volumes};
use xseg::Completion;

use super::fakes::{OWN, PARENT};
use super::world::World;
use crate::ControlEvent;

const WRITE: VolumeOp = VolumeOp::Write { durable: false };
const FUA: VolumeOp = VolumeOp::Write { durable: true };

/// Answers the first request of `op` that waits for the mapper.
fn map_answers(world: &mut World, op: MapOp) {
    world.poll();
    let index = world
        .map_index(op)
        .unwrap_or_else(|| panic!("{op:?} is asked"));
    world.map_step(index, None);
    world.poll();
}

fn object_answers(world: &mut World, op: ObjectOp) {
    world.poll();
    let index = world
        .object_index(op)
        .unwrap_or_else(|| panic!("{op:?} is asked"));
    world.object_step(index, None);
    world.poll();
}

/// Polls until nothing moves; the fakes answer nothing.
fn poll_out(world: &mut World) {
    while world.poll() {}
}

#[test]
fn a_first_write_is_acknowledged_after_written_was_answered() {
    let mut world = World::opened();
    world.submit(WRITE, 0, 8192, &[]).unwrap();
    map_answers(&mut world, MapOp::Locate);
    object_answers(&mut world, ObjectOp::Write);
    poll_out(&mut world);
    assert!(world.results.is_empty());
    while world.map_waiting() > 1 || world.object_waiting() > 0 || world.results.is_empty() {
        if world.object_waiting() > 0 {
            world.object_step(0, None);
        } else {
            assert!(world.results.is_empty());
            world.map_step(0, None);
        }
        poll_out(&mut world);
    }
    let written = world
        .map_log
        .iter()
        .filter(|request| request.op == MapOp::Written)
        .count();
    assert!(written >= 1);
    assert!(
        (0..2).all(|block| world.mapper.owns(block)),
        "acknowledged: the map knows it"
    );
}

#[test]
fn a_commit_is_sent_after_the_last_sync_and_a_sync_after_the_cut() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    world.snapshot(1);
    world.settle();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    world.submit(WRITE, 4096, 4096, &[]);
    world.settle();
    world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    poll_out(&mut world);
    assert_eq!(world.object_waiting(), 0, "no sync before the cut is known");
    map_answers(&mut world, MapOp::FlushBegin);
    poll_out(&mut world);
    assert_eq!(world.object_waiting(), 1);
    assert!(
        world.map_index(MapOp::FlushCommit).is_none(),
        "no commit before the sync"
    );
    object_answers(&mut world, ObjectOp::Sync);
    poll_out(&mut world);
    assert!(world.map_index(MapOp::FlushCommit).is_some());
    assert!(
        world.pending[0].is_some(),
        "not acknowledged before the commit"
    );
    world.settle();
    assert!(world.pending.iter().all(Option::is_none));
}

#[test]
fn what_is_dirtied_until_the_cut_is_answered_is_synced() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    // In place: nothing that could be journaled.
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    // Keeps a snapshot waiting, whose new epoch is a container of its own.
    let old = world.submit(WRITE, 4096, 4096, &[]).unwrap();
    map_answers(&mut world, MapOp::Locate);
    world.snapshot(1);
    map_answers(&mut world, MapOp::SnapshotBegin);
    world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    poll_out(&mut world);
    // Reported before the cut is taken, which knows of it.
    world.submit(WRITE, 8192, 4096, &[]).unwrap();
    map_answers(&mut world, MapOp::Locate);
    poll_out(&mut world);
    world.object_step(world.object_waiting() - 1, None);
    map_answers(&mut world, MapOp::Written);
    map_answers(&mut world, MapOp::FlushBegin);
    poll_out(&mut world);
    world.object_log.clear();
    while world.map_index(MapOp::FlushCommit).is_none() {
        object_answers(&mut world, ObjectOp::Sync);
        poll_out(&mut world);
    }
    let mut synced: Vec<u64> = world.object_log.iter().map(|sync| sync.id.number).collect();
    synced.sort_unstable();
    assert_eq!(synced, [7, 8]);
    world.settle();
    assert!(world.results.contains(&(old, Ok(()))));
    world.read_all();
}

#[test]
fn flushes_that_come_during_a_round_share_the_next_one() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    poll_out(&mut world);
    world.submit(WRITE, 4096, 4096, &[]).unwrap();
    map_answers(&mut world, MapOp::FlushBegin);
    while world.object_index(ObjectOp::Write).is_none() {
        map_answers(&mut world, MapOp::Locate);
    }
    object_answers(&mut world, ObjectOp::Write);
    map_answers(&mut world, MapOp::Written);
    for _ in 0..5 {
        world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    }
    world.map_log.clear();
    world.settle();
    let begins = world
        .map_log
        .iter()
        .filter(|request| request.op == MapOp::FlushBegin)
        .count();
    assert_eq!(begins, 1);
    // What was written after the syncs of the first round were sent is synced by the second.
    assert_eq!(
        world
            .object_log
            .iter()
            .filter(|request| request.op == ObjectOp::Sync)
            .count(),
        2
    );
    assert_eq!(world.results.len(), 7);
}

#[test]
fn a_merge_waits_for_writes_in_flight_and_later_ones_wait_for_it() {
    let zeroes = VolumeOp::WriteZeroes {
        unmap: true,
        durable: false,
    };
    for (other, offset, len) in [(WRITE, 0, 4096), (WRITE, 1024, 512), (zeroes, 0, 4096)] {
        for order in 0..2 {
            let mut world = World::opened();
            let submit_other = |world: &mut World| world.submit(other, offset, len, &[]).unwrap();
            if order == 0 {
                submit_other(&mut world);
            }
            let merged = world.submit(WRITE, 512, 512, &[]).unwrap();
            if order == 0 {
                // The merge is located first, and may not read before the other is done.
                poll_out(&mut world);
                world.map_step(world.map_waiting() - 1, None);
                poll_out(&mut world);
                assert_eq!(world.map_waiting(), 1, "only the other is asked about");
                assert_eq!(world.object_index(ObjectOp::Read), None);
            } else {
                poll_out(&mut world);
                while world.object_index(ObjectOp::Read).is_none() {
                    world.map_step(0, None);
                    poll_out(&mut world);
                }
                submit_other(&mut world);
                poll_out(&mut world);
                assert_eq!(world.map_waiting(), 0, "waits for the merge");
            }
            world.settle();
            assert_eq!(world.results.len(), 2);
            assert!(world.results.contains(&(merged, Ok(()))));
            world.read_all();
        }
    }
    let mut world = World::opened();
    for area in 0..16 {
        world.submit(WRITE, 4096 * area + 512, 3584, &[]).unwrap();
    }
    world.settle();
    world.read_all();
}

#[test]
fn a_late_report_does_not_bring_back_what_was_cleared() {
    let mut world = World::opened();
    // Lands, and is not reported yet.
    let slow = world.submit(WRITE, 0, 4096, &[]).unwrap();
    map_answers(&mut world, MapOp::Locate);
    object_answers(&mut world, ObjectOp::Write);
    poll_out(&mut world);
    assert!(world.map_index(MapOp::Written).is_some());
    // Lands at the same place, and is answered.
    world.submit(WRITE, 0, 4096, &[]).unwrap();
    map_answers(&mut world, MapOp::Locate);
    object_answers(&mut world, ObjectOp::Write);
    poll_out(&mut world);
    world.map_step(world.map_waiting() - 1, None);
    poll_out(&mut world);
    assert_eq!(world.results.pop().map(|result| result.1), Some(Ok(())));
    // Would be undone by the report.
    world.submit(VolumeOp::Discard, 0, 8192, &[]).unwrap();
    poll_out(&mut world);
    assert!(world.map_index(MapOp::Zero).is_none());
    // A write that comes later waits for the clear in turn.
    let later = world.submit(WRITE, 4096, 4096, &[]).unwrap();
    poll_out(&mut world);
    assert!(world.map_index(MapOp::Locate).is_none());
    world.settle();
    assert_eq!(world.results[0], (slow, Ok(())));
    assert_eq!(world.results[2], (later, Ok(())));
    world.read_all();
}

#[test]
fn a_snapshot_waits_for_the_writes_that_were_located_before_it() {
    let mut world = World::opened();
    let old = world.submit(WRITE, 0, 4096, &[]).unwrap();
    map_answers(&mut world, MapOp::Locate);
    world.snapshot(7);
    map_answers(&mut world, MapOp::SnapshotBegin);
    // A write of the new epoch goes on, and nobody waits for it.
    world.submit(WRITE, 4096, 4096, &[]).unwrap();
    map_answers(&mut world, MapOp::Locate);
    poll_out(&mut world);
    assert_eq!(world.object_waiting(), 2);
    assert_eq!(
        world.object_index(ObjectOp::Sync),
        None,
        "the old epoch's write is in flight"
    );
    world.object_step(0, None);
    poll_out(&mut world);
    assert_eq!(
        world.object_index(ObjectOp::Sync),
        None,
        "and not yet reported"
    );
    map_answers(&mut world, MapOp::Written);
    assert_eq!(world.results, [(old, Ok(()))]);
    poll_out(&mut world);
    let sync = world.object_index(ObjectOp::Sync).expect("now it is");
    assert!(world.map_index(MapOp::SnapshotCommit).is_none());
    world.object_step(sync, None);
    poll_out(&mut world);
    assert!(world.map_index(MapOp::SnapshotCommit).is_some());
    // A flush does not wait for the commit.
    world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    poll_out(&mut world);
    assert!(world.map_index(MapOp::FlushBegin).is_some());
    world.settle();
    assert_eq!(
        world.control,
        [ControlEvent::SnapshotDone {
            id: 107,
            token: 7,
            result: Ok(())
        }]
    );
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    world.read_all();
}

#[test]
fn a_failed_sync_fails_what_is_in_flight_and_the_volume_goes_on_from_what_is_durable() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
    assert_eq!(world.run(WRITE, 0, 8192), Ok(()));
    world.results.clear();
    let flush = world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    world.snapshot(3);
    map_answers(&mut world, MapOp::FlushBegin);
    poll_out(&mut world);
    let write = world.submit(WRITE, 0, 4096, &[]).unwrap();
    world.settle_one_locate();
    let sync = world.object_index(ObjectOp::Sync).unwrap();
    world.object_step(sync, Some(ErrorCode::Io));
    poll_out(&mut world);
    assert!(
        world.map_index(MapOp::Abandon).is_none(),
        "a write is in flight"
    );
    let later = world.submit(WRITE, 8192, 4096, &[]).unwrap();
    world.settle();
    world.results.sort_unstable_by_key(|result| result.0);
    let lost = Err(ErrorCode::SyncFailed);
    assert_eq!(
        world.results,
        [(flush, lost), (write, lost), (later, Ok(()))]
    );
    assert!(matches!(
        &world.control[..],
        [ControlEvent::SnapshotDone { result: Err(_), .. }]
    ));
    let ops: Vec<MapOp> = world.map_log.iter().map(|request| request.op).collect();
    let abandon = ops.iter().position(|op| *op == MapOp::Abandon).unwrap();
    assert_eq!(ops[abandon + 1], MapOp::Open);
    world.results.clear();
    world.read_all();
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
}

#[test]
fn a_snapshot_after_a_loss_of_which_nobody_heard_fails_once() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    // The sync is that of a write of its own, so no flush reports the loss of the first one.
    let write = world.submit(WRITE, 8192, 4096, &[]).unwrap();
    world.settle_one_locate();
    let failed = world.object_index(ObjectOp::Write).unwrap();
    world.object_step(failed, Some(ErrorCode::SyncFailed));
    world.settle();
    assert_eq!(
        world.results.pop(),
        Some((write, Err(ErrorCode::SyncFailed)))
    );
    let made = |world: &mut World, token| {
        world.snapshot(token);
        world.settle();
        match world.control.pop() {
            Some(ControlEvent::SnapshotDone { result, .. }) => result.map_err(|error| error.code),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(made(&mut world, 1), Err(ErrorCode::SyncFailed));
    assert_eq!(made(&mut world, 2), Ok(()));
    let flushed = world.run(VolumeOp::Flush, 0, 0);
    assert_eq!(flushed, Err(ErrorCode::SyncFailed));
    assert_eq!(made(&mut world, 3), Ok(()));
}

#[test]
fn a_close_after_a_failed_sync_waits_for_what_came_meanwhile() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    world.results.clear();
    let flush = world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    map_answers(&mut world, MapOp::FlushBegin);
    poll_out(&mut world);
    let sync = world.object_index(ObjectOp::Sync).unwrap();
    world.object_step(sync, Some(ErrorCode::Io));
    poll_out(&mut world);
    assert!(world.map_index(MapOp::Abandon).is_some());
    let later = world.submit(WRITE, 8192, 4096, &[]).unwrap();
    world.peer.close(world.handle);
    world.settle();
    let lost = Err(ErrorCode::SyncFailed);
    assert_eq!(world.results, [(flush, lost), (later, Ok(()))]);
    let closed = VolumeEvent::Closed { result: Ok(()) };
    assert_eq!(world.events.pop(), Some(closed));
}

#[test]
fn a_failed_commit_fails_the_flush_only_and_the_next_one_commits_again() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    map_answers(&mut world, MapOp::FlushBegin);
    object_answers(&mut world, ObjectOp::Sync);
    poll_out(&mut world);
    let commit = world.map_index(MapOp::FlushCommit).unwrap();
    world.map_step(commit, Some(ErrorCode::NoSpace));
    world.settle();
    assert_eq!(world.results.pop(), Some((0, Err(ErrorCode::NoSpace))));
    world.map_log.clear();
    assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
    assert!(
        world
            .map_log
            .iter()
            .any(|request| request.op == MapOp::FlushBegin)
    );
}

#[test]
fn after_the_death_of_the_mapper_unfinished_requests_start_again_when_nothing_is_in_flight() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    world.submit(WRITE, 4096, 4096, &[]).unwrap();
    world.submit(WRITE, 12288, 4096, &[]).unwrap();
    map_answers(&mut world, MapOp::Locate);
    map_answers(&mut world, MapOp::Locate);
    poll_out(&mut world);
    world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    poll_out(&mut world);
    world.kill_mapper();
    poll_out(&mut world);
    // Submitted while nobody is there.
    let late = world.submit(VolumeOp::Read, 16384, 4096, &[]).unwrap();
    world.revive_mapper();
    poll_out(&mut world);
    assert_eq!(world.map_waiting(), 0, "two writes are in flight");
    world.object_step(1, None);
    world.object_step(0, None);
    poll_out(&mut world);
    assert_eq!((world.map_waiting(), world.results.len()), (1, 0));
    world.map_log.clear();
    world.map_step(0, None);
    poll_out(&mut world);
    let asked: Vec<u64> = (0..world.map_waiting())
        .map(|_| world.map_step_offset())
        .collect();
    assert_eq!(
        asked
            .iter()
            .filter(|offset| **offset > 0)
            .copied()
            .collect::<Vec<_>>(),
        [4096, 12288, 16384]
    );
    world.recovery_syncs = false;
    world.settle();
    assert_eq!(
        world
            .results
            .iter()
            .filter(|result| result.1.is_ok())
            .count(),
        4
    );
    assert!(world.results.contains(&(late, Ok(()))));
    let first_epoch =
        |request: &ObjectRequest| request.op == ObjectOp::Sync && request.id.number == 7;
    assert!(
        world.object_log.iter().any(first_epoch),
        "dirty stays dirty"
    );
    world.read_all();
}

#[test]
fn an_answer_of_a_dead_mapper_that_comes_late_is_nobodys() {
    let mut world = World::opened();
    let read = world.submit(VolumeOp::Read, 0, 4096, &[]).unwrap();
    poll_out(&mut world);
    let (cookie, _) = world.map_port.wire.borrow().queue[0];
    world.kill_mapper();
    world.revive_mapper();
    world.settle();
    assert_eq!(world.results.pop(), Some((read, Ok(()))));
    // It had answered, behind more than a poll takes.
    let late = |world: &mut World| {
        let mut wire = world.map_port.wire.borrow_mut();
        wire.in_flight += 1;
        wire.completions.push_back((cookie, Completion::default()));
    };
    late(&mut world);
    poll_out(&mut world);
    let again = world.submit(VolumeOp::Read, 0, 4096, &[]).unwrap();
    poll_out(&mut world);
    late(&mut world);
    poll_out(&mut world);
    assert_eq!(world.results, [], "not answered by that");
    world.settle();
    assert_eq!(world.results, [(again, Ok(()))]);
    world.read_all();
}

#[test]
fn a_stale_session_writes_no_more() {
    let mut world = World::opened();
    world.submit(WRITE, 0, 4096, &[]).unwrap();
    poll_out(&mut world);
    world.map_step(0, Some(ErrorCode::Stale));
    world.settle();
    world.object_log.clear();
    for op in [WRITE, FUA, VolumeOp::Discard, VolumeOp::Flush] {
        assert_eq!(world.run(op, 0, 4096), Err(ErrorCode::Stale));
    }
    assert!(world.object_log.is_empty());
    world.read_all();
}

#[test]
fn an_object_that_the_map_knows_and_the_blocker_does_not_is_damage() {
    let mut world = World::opened();
    world
        .blocker
        .containers
        .remove(&(PARENT, archipelago_protocol::Epoch(3)));
    assert_eq!(world.run(VolumeOp::Read, 0, 4096), Err(ErrorCode::Damaged));
    assert_eq!(world.run(WRITE, 512, 512), Err(ErrorCode::Damaged));
    assert_eq!(world.run(VolumeOp::Read, 4096, 4096), Ok(()));
    // And no write of a block that could not be merged.
    assert!(
        world
            .object_log
            .iter()
            .all(|request| request.op == ObjectOp::Read)
    );
}

#[test]
fn an_error_fails_its_request_only() {
    let mut world = World::opened();
    for code in [ErrorCode::Io, ErrorCode::NoSpace] {
        world.submit(WRITE, 0, 4096, &[]).unwrap();
        world.submit(WRITE, 4096, 4096, &[]).unwrap();
        map_answers(&mut world, MapOp::Locate);
        map_answers(&mut world, MapOp::Locate);
        world.object_step(0, Some(code));
        world.settle();
        world.results.sort_unstable_by_key(|result| result.0);
        assert_eq!(world.results, [(0, Err(code)), (1, Ok(()))]);
        world.results.clear();
        assert_eq!(world.run(VolumeOp::Flush, 0, 0), Ok(()));
    }
    // A write that failed was not reported.
    assert!(!world.mapper.owns(0));
    world.read_all();
}

#[test]
fn a_volume_that_cannot_be_opened_says_so_once() {
    let mut world = World::new(8, 1 << 20);
    world.poll();
    world.map_step(0, Some(ErrorCode::InUse));
    world.settle();
    let code = |event: VolumeEvent| match event {
        VolumeEvent::Opened { result: Err(error) } => error.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(world.events.pop().unwrap()), ErrorCode::InUse);
    assert_eq!(world.peer.status().counters[0].1, 0);
    // A token for a volume that is not open here.
    world.peer.snapshot(OWN, 1, 2);
    world.settle();
    assert!(matches!(
        &world.control[..],
        [ControlEvent::SnapshotDone {
            id: 2,
            result: Err(_),
            ..
        }]
    ));
}

#[test]
fn a_snapshot_beyond_those_that_may_wait_is_refused_and_the_others_are_made() {
    let mut world = World::opened();
    (0..70).for_each(|token| world.snapshot(token));
    world.poll();
    let code = |event: &ControlEvent| match event {
        ControlEvent::SnapshotDone { result, .. } => result.as_ref().err().map(|error| error.code),
        other => panic!("{other:?}"),
    };
    let refused: Vec<_> = world.control.drain(..).map(|event| code(&event)).collect();
    assert_eq!(refused, vec![Some(ErrorCode::InUse); 70 - 64]);
    world.settle();
    assert_eq!(world.control.len(), 64);
    assert!(world.control.iter().all(|event| code(event).is_none()));
}
