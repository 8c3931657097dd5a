//! Writes without room in the pool wait, are probed, and go on.

use std::time::Duration;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::map::MapOp;
use archipelago_protocol::object::ObjectOp;
use archipelago_protocol::volume::{OnFull, VolumeEvent, VolumeOp, Volumes};

use super::fakes::OWN;
use super::world::World;
use crate::{ControlEvent, SPACE_INTERVAL, WaitsFor};

const WRITE: VolumeOp = VolumeOp::Write { durable: false };
const TURN: Duration = SPACE_INTERVAL;
const NO_SPACE: Option<ErrorCode> = Some(ErrorCode::NoSpace);

fn waiting(limit: Option<Duration>) -> World {
    let mut world = World::opened();
    world.peer.on_full(world.handle, OnFull::Wait { limit });
    world
}

/// A write of a block at `offset` that finds no room, as far as it goes.
fn write_without_room(world: &mut World, offset: u64) {
    world.submit(WRITE, offset, 4096, &[]).unwrap();
    settle_full(world);
}

/// Everything is answered, each write of an object by a refusal, until nothing moves.
fn settle_full(world: &mut World) {
    loop {
        let mut moved = world.poll();
        if world.map_waiting() > 0 {
            world.map_step(0, None);
            moved = true;
        }
        if world.object_waiting() > 0 {
            let refused = world.object_index(ObjectOp::Write) == Some(0);
            world.object_step(0, refused.then_some(ErrorCode::NoSpace));
            moved = true;
        }
        if !moved {
            return;
        }
    }
}

/// Turn `number` at a full pool.
fn take_turn(world: &mut World, number: u32) {
    world.peer.look_for_space(TURN * number);
    settle_full(world);
}

fn parked(world: &World) -> u64 {
    let status = world.peer.status();
    let counter = status
        .counters
        .iter()
        .find(|(name, _)| name == "waiting_for_space");
    counter.unwrap().1
}

#[test]
fn writes_without_room_wait_one_is_probed_and_all_go_on_with_it() {
    let mut world = waiting(None);
    for block in 0..3 {
        world.submit(WRITE, block * 4096, 4096, &[]).unwrap();
    }
    settle_full(&mut world);
    assert_eq!((world.results.len(), parked(&world)), (0, 3));
    for turn in 1..100 {
        world.object_log.clear();
        take_turn(&mut world, turn);
        assert_eq!(world.object_log.len(), 1, "one probe a turn");
        assert_eq!((world.results.len(), parked(&world)), (0, 3));
    }
    let waits_for = WaitsFor::Writes;
    let event = ControlEvent::NoSpace {
        lineage: OWN,
        waits_for,
        policy: OnFull::default(),
    };
    assert_eq!(world.control, [event]);
    let waited: Vec<_> = world.peer.without_space(TURN * 100).collect();
    assert_eq!(waited, [(OWN, waits_for, TURN * 99)]);
    world.peer.look_for_space(TURN * 100);
    world.settle();
    assert_eq!(parked(&world), 0);
    assert_eq!(world.results.len(), 3);
    assert!(world.results.iter().all(|(_, result)| result.is_ok()));
    world.results.clear();
    assert!(world.peer.waits_for_space(), "its end is to be reported");
    (101..105).for_each(|turn| world.peer.look_for_space(TURN * turn));
    world.settle();
    assert_eq!(
        world.control.pop(),
        Some(ControlEvent::SpaceFound { lineage: OWN })
    );
    assert!(!world.peer.waits_for_space());
    world.read_all();
}

#[test]
fn a_turn_is_taken_each_interval_however_often_the_host_looks() {
    let mut world = waiting(None);
    write_without_room(&mut world, 0);
    world.object_log.clear();
    for look in 0..1000 {
        world.peer.look_for_space(TURN + TURN * look / 1000);
        settle_full(&mut world);
    }
    assert_eq!(world.object_log.len(), 1, "probes");
    // The end of a wait is not reported sooner because somebody looks more often.
    world.peer.look_for_space(TURN * 2);
    world.settle();
    world.control.clear();
    for look in 0..1000 {
        world.peer.look_for_space(TURN * 3 + TURN * look / 1000);
    }
    world.settle();
    assert_eq!(world.control, []);
}

#[test]
fn a_request_that_waits_is_counted_once_and_a_volume_that_is_closed_waits_no_more() {
    let mut world = waiting(None);
    write_without_room(&mut world, 0);
    for turn in 1..10 {
        take_turn(&mut world, turn);
    }
    let status = world.peer.status();
    let waits = status
        .counters
        .iter()
        .find(|(name, _)| name == "space_waits");
    assert_eq!(waits.unwrap().1, 1);
    world.peer.close(world.handle);
    world.settle();
    assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::NoSpace));
    world.peer.look_for_space(TURN * 10);
    assert!(!world.peer.waits_for_space());
    assert_eq!(world.peer.without_space(TURN * 10).count(), 0);
}

#[test]
fn a_close_whose_flush_finds_no_room_is_asked_for_all_the_same_and_drops_nothing() {
    for refused in [MapOp::FlushBegin, MapOp::FlushCommit] {
        let mut world = waiting(None);
        assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
        world.map_log.clear();
        world.peer.close(world.handle);
        while world.events.is_empty() {
            let mut moved = world.poll();
            if world.map_waiting() > 0 {
                let without_room = world.map_index(refused) == Some(0);
                world.map_step(0, without_room.then_some(ErrorCode::NoSpace));
                if without_room {
                    // A mapper's close makes durable and logs what is not yet.
                    world.blocker.sync_all();
                    world.mapper.logged = world.mapper.live.clone();
                }
                moved = true;
            }
            if world.object_waiting() > 0 {
                world.object_step(0, None);
                moved = true;
            }
            assert!(moved, "the volume is never closed");
        }
        let closed = Some(VolumeEvent::Closed { result: Ok(()) });
        assert_eq!(world.events.pop(), closed, "{refused:?}");
        let asked: Vec<MapOp> = world.map_log.iter().map(|request| request.op).collect();
        assert_eq!(asked.last(), Some(&MapOp::Close));
        assert!(!asked.contains(&MapOp::Abandon), "{asked:?}");
    }
}

#[test]
fn probes_take_turns_since_there_may_be_room_for_one_only() {
    let mut world = waiting(None);
    for block in 0..3 {
        world.submit(WRITE, block * 4096, 4096, &[]).unwrap();
    }
    settle_full(&mut world);
    let mut probed = Vec::new();
    for turn in 1..4 {
        world.object_log.clear();
        take_turn(&mut world, turn);
        probed.push(world.object_log[0].offset);
    }
    assert_eq!(probed, [0, 4096, 8192]);
}

#[test]
fn reads_go_on_and_other_errors_are_reported_while_writes_wait() {
    let mut world = waiting(None);
    write_without_room(&mut world, 0);
    assert_eq!(world.run(VolumeOp::Read, 0, 8192), Ok(()));
    world.submit(WRITE, 4096, 4096, &[]).unwrap();
    while world.object_waiting() == 0 {
        world.poll();
        if world.map_waiting() > 0 {
            world.map_step(0, None);
        }
    }
    world.object_step(0, Some(ErrorCode::Io));
    world.settle();
    assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::Io));
    assert_eq!(parked(&world), 1);
}

#[test]
fn a_flush_whose_commit_found_no_room_waits_as_well() {
    let mut world = waiting(None);
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    world.submit(VolumeOp::Flush, 0, 0, &[]).unwrap();
    while world.map_index(MapOp::FlushCommit).is_none() {
        world.poll();
        if let Some(index) = world.map_index(MapOp::FlushBegin) {
            world.map_step(index, None);
        } else if world.object_waiting() > 0 {
            world.object_step(0, None);
        }
    }
    let commit = world.map_index(MapOp::FlushCommit).unwrap();
    world.map_step(commit, NO_SPACE);
    world.settle();
    assert_eq!((world.results.len(), parked(&world)), (0, 1));
    world.peer.look_for_space(TURN);
    world.settle();
    // That what it covers is durable now is checked by the world.
    assert_eq!(world.results.pop().unwrap().1, Ok(()));
}

#[test]
fn a_limit_ends_the_wait_and_a_driver_that_gives_up_is_answered_at_once() {
    let limit = TURN * 8;
    let mut world = waiting(Some(limit));
    write_without_room(&mut world, 0);
    for turn in 1..9 {
        take_turn(&mut world, turn);
        assert_eq!(world.results.len(), 0, "turn {turn}");
    }
    take_turn(&mut world, 9);
    assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::NoSpace));

    let mut world = waiting(None);
    write_without_room(&mut world, 0);
    world.peer.on_full(world.handle, OnFull::Report);
    settle_full(&mut world);
    assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::NoSpace));
    assert_eq!(parked(&world), 0);
}

#[test]
fn a_mapper_without_room_for_the_session_is_asked_again() {
    let mut world = waiting(None);
    write_without_room(&mut world, 0);
    world.kill_mapper();
    world.poll();
    world.revive_mapper();
    for turn in 1..4 {
        while world.poll() {}
        let open = world.map_index(MapOp::Open).expect("asked once a turn");
        world.map_step(open, NO_SPACE);
        while world.poll() {}
        assert_eq!((world.results.len(), world.map_waiting()), (0, 0));
        world.peer.look_for_space(TURN * turn);
    }
    world.settle();
    assert_eq!(world.results.pop().unwrap().1, Ok(()));
    (4..9).for_each(|turn| world.peer.look_for_space(TURN * turn));
    assert!(!world.peer.waits_for_space());
}

/// The session's begin is refused once more: requests that come meanwhile wait for it.
fn refuse_open(world: &mut World) {
    while world.poll() {}
    let open = world.map_index(MapOp::Open).expect("asked");
    world.map_step(open, NO_SPACE);
    while world.poll() {}
    assert_eq!(world.map_waiting(), 0);
}

#[test]
fn a_volume_that_reports_goes_on_when_there_is_room_for_its_session() {
    let mut world = World::opened();
    world.kill_mapper();
    world.poll();
    world.revive_mapper();
    world.submit(WRITE, 0, 4096, &[]).unwrap();
    refuse_open(&mut world);
    assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::NoSpace));
    for turn in 1..20 {
        // Between two turns nothing is asked of the mapper, and while it is asked nothing waits.
        assert_eq!(world.run(WRITE, 0, 4096), Err(ErrorCode::NoSpace));
        assert_eq!(world.run(VolumeOp::Read, 0, 4096), Err(ErrorCode::NoSpace));
        world.peer.look_for_space(TURN * turn);
        world.submit(WRITE, 4096, 4096, &[]).unwrap();
        refuse_open(&mut world);
        assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::NoSpace));
    }
    let without: Vec<_> = world.peer.without_space(TURN * 21).collect();
    assert_eq!(without, [(OWN, WaitsFor::Nothing, TURN * 20)]);
    assert_eq!(world.control.len(), 1, "{:?}", world.control);
    world.peer.look_for_space(TURN * 21);
    world.settle();
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    let found = ControlEvent::SpaceFound { lineage: OWN };
    assert_eq!(world.control.pop(), Some(found));
    world.peer.look_for_space(TURN * 22);
    assert!(!world.peer.waits_for_space());
    world.read_all();
}

/// A write that finds no room is answered at once, without a turn.
fn fails_at_once(world: &mut World) {
    write_without_room(world, 8192);
    assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::NoSpace));
    assert_eq!(parked(world), 0);
}

#[test]
fn after_its_limit_a_volume_reports_until_something_finds_room() {
    let limit = TURN * 8;
    let mut world = waiting(Some(limit));
    write_without_room(&mut world, 0);
    for turn in 1..9 {
        take_turn(&mut world, turn);
    }
    // One that came late waits for what is left of the limit.
    write_without_room(&mut world, 4096);
    assert_eq!(world.results, []);
    take_turn(&mut world, 9);
    assert_eq!(world.results.len(), 2);
    world.results.clear();
    let event = |waits_for| ControlEvent::NoSpace {
        lineage: OWN,
        waits_for,
        policy: OnFull::Wait { limit: Some(limit) },
    };
    let events = [event(WaitsFor::Writes), event(WaitsFor::Nothing)];
    assert_eq!(world.control, events);
    // However long after, and however often.
    for turn in 10..100 {
        fails_at_once(&mut world);
        world.peer.look_for_space(TURN * turn);
        let without: Vec<_> = world.peer.without_space(TURN * turn).collect();
        assert_eq!(without, [(OWN, WaitsFor::Nothing, TURN * (turn - 1))]);
    }
    assert!(
        !world.peer.waits_for_space(),
        "nothing is left to be looked for"
    );
    assert_eq!(world.control, events);
    // A write that needs no room tells nothing; one that needed some does.
    world.results.clear();
    assert_eq!(world.run(VolumeOp::Read, 0, 4096), Ok(()));
    fails_at_once(&mut world);
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    let found = ControlEvent::SpaceFound { lineage: OWN };
    assert_eq!(world.control.pop(), Some(found));
    assert_eq!(world.peer.without_space(TURN * 100).count(), 0);
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()), "an owned block");
    // And the next shortage is another one.
    write_without_room(&mut world, 8192);
    assert_eq!((world.results.len(), parked(&world)), (0, 1));
}

#[test]
fn the_limit_begins_again_when_something_finds_room() {
    let limit = TURN * 8;
    let mut world = waiting(Some(limit));
    for block in 0..2 {
        world.submit(WRITE, block * 4096, 4096, &[]).unwrap();
    }
    settle_full(&mut world);
    for turn in 1..=8 {
        take_turn(&mut world, turn);
    }
    // Room for one block, taken by a write that has not waited.
    assert_eq!(world.run(WRITE, 8192, 4096), Ok(()));
    for turn in 9..17 {
        take_turn(&mut world, turn);
        assert_eq!((world.results.len(), parked(&world)), (0, 2), "turn {turn}");
    }
    take_turn(&mut world, 17);
    assert_eq!((world.results.len(), parked(&world)), (2, 0));
}

#[test]
fn a_policy_that_is_set_applies_to_what_waits_and_to_what_comes() {
    // Shorter than what has been waited: over with the next turn.
    let mut world = waiting(None);
    write_without_room(&mut world, 0);
    for turn in 1..20 {
        take_turn(&mut world, turn);
    }
    let limit = |turns| OnFull::Wait {
        limit: Some(TURN * turns),
    };
    world.peer.on_full(world.handle, limit(40));
    take_turn(&mut world, 20);
    assert_eq!(world.results, []);
    world.peer.on_full(world.handle, limit(4));
    take_turn(&mut world, 21);
    assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::NoSpace));
    fails_at_once(&mut world);
    // The same again is no change; another one is, for those to come.
    world.peer.on_full(world.handle, limit(4));
    fails_at_once(&mut world);
    world.peer.on_full(world.handle, OnFull::default());
    write_without_room(&mut world, 0);
    assert_eq!((world.results.len(), parked(&world)), (0, 1));
    take_turn(&mut world, 22);
    // Whoever reports answers what waits, at once.
    world.peer.on_full(world.handle, OnFull::Report);
    settle_full(&mut world);
    assert_eq!(world.results.pop().unwrap().1, Err(ErrorCode::NoSpace));
    fails_at_once(&mut world);
    assert_eq!(world.run(WRITE, 0, 4096), Ok(()));
    assert_eq!(world.peer.without_space(TURN * 23).count(), 0);
    world.peer.on_full(world.handle, OnFull::default());
    write_without_room(&mut world, 8192);
    assert_eq!((world.results.len(), parked(&world)), (0, 1));
}

#[test]
fn an_open_without_room_waits_as_its_policy_says_and_no_longer() {
    for (policy, turns) in [
        (OnFull::Report, 0),
        (
            OnFull::Wait {
                limit: Some(TURN * 4),
            },
            5,
        ),
    ] {
        let mut world = World::new(64, 1 << 20);
        world.peer.on_full(world.handle, policy);
        for turn in 0..turns {
            refuse_open(&mut world);
            assert_eq!(world.events, []);
            world.peer.look_for_space(TURN * (turn + 1));
        }
        refuse_open(&mut world);
        let [VolumeEvent::Opened { result: Err(error) }] = &world.events[..] else {
            panic!("{policy}: {:?}", world.events);
        };
        assert_eq!(error.code, ErrorCode::NoSpace);
        world.peer.look_for_space(TURN * 10);
        assert!(!world.peer.waits_for_space());
        assert_eq!(world.peer.without_space(TURN * 10).count(), 0);
    }
}

#[test]
fn what_waits_starts_again_with_the_next_mapper() {
    let mut world = waiting(None);
    write_without_room(&mut world, 0);
    assert_eq!(parked(&world), 1);
    world.kill_mapper();
    world.poll();
    world.peer.look_for_space(TURN);
    world.revive_mapper();
    world.settle();
    assert_eq!(world.results.pop().unwrap().1, Ok(()));
    assert_eq!(parked(&world), 0);
    world.read_all();
}
