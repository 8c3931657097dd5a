//! Random sequences of requests, answers in any order, faults, and deaths of the mapper, against the model in `world`.

use std::time::Duration;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::map::{MapOp, MapRequest};
use archipelago_protocol::object::ObjectOp;
use archipelago_protocol::volume::{OnFull, VolumeEvent, VolumeOp, Volumes};
use proptest::prelude::*;

use super::world::{SECTOR, SIZE, World};
use crate::{ControlEvent, SPACE_INTERVAL};

#[derive(Debug, Clone)]
enum Action {
    Submit {
        op: VolumeOp,
        sector: u64,
        sectors: u64,
        cuts: Vec<u64>,
    },
    Poll,
    Mapper {
        pick: prop::sample::Index,
        fault: bool,
    },
    Blocker {
        pick: prop::sample::Index,
        fault: bool,
    },
    Snapshot,
    KillMapper,
    ReviveMapper,
}

/// What a case allows.
#[derive(Debug, Clone, Copy)]
struct Setup {
    credits: usize,
    arena_len: usize,
    /// Flushes that may journal data at a time.
    areas: usize,
    run_max: u64,
    flush_soon: bool,
    /// Requests fail.
    faults: bool,
    /// Writes without room wait, and are probed at each poll.
    waits: bool,
    /// Syncs fail.
    sync_faults: bool,
    /// Opening after a death makes durable what was written.
    recovery_syncs: bool,
    /// Completed writes are durable.
    durable: bool,
}

fn op() -> impl Strategy<Value = VolumeOp> {
    prop_oneof![
        4 => Just(VolumeOp::Read),
        8 => Just(VolumeOp::Write { durable: false }),
        1 => Just(VolumeOp::Write { durable: true }),
        3 => Just(VolumeOp::BlockStatus),
        3 => Just(VolumeOp::Flush),
        2 => Just(VolumeOp::Discard),
        1 => Just(VolumeOp::WriteZeroes { unmap: true, durable: false }),
        1 => Just(VolumeOp::WriteZeroes { unmap: false, durable: true }),
    ]
}

fn submit() -> impl Strategy<Value = Action> {
    let total = SIZE / SECTOR;
    // Most requests meet in a few blocks, at the front and at the end.
    let place = prop_oneof![0..24u64, 120..140u64, 0..total, total - 12..total];
    let sectors = prop_oneof![Just(8u64), 1..12u64, 1..total];
    let cuts = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(1..40_000u64, 1..12)];
    (op(), place, sectors, any::<bool>(), cuts).prop_map(
        move |(op, place, sectors, whole, cuts)| {
            let (sector, sectors) = if whole {
                (place / 8 * 8, sectors.div_ceil(8) * 8)
            } else {
                (place, sectors)
            };
            let sectors = sectors.min(total - sector);
            Action::Submit {
                op,
                sector,
                sectors,
                cuts,
            }
        },
    )
}

fn action() -> impl Strategy<Value = Action> {
    let pick = any::<prop::sample::Index>;
    let fault = || prop::bool::weighted(0.04);
    prop_oneof![
        12 => submit(),
        12 => Just(Action::Poll),
        14 => (pick(), fault()).prop_map(|(pick, fault)| Action::Mapper { pick, fault }),
        14 => (pick(), fault()).prop_map(|(pick, fault)| Action::Blocker { pick, fault }),
        1 => Just(Action::Snapshot),
        1 => prop::bool::weighted(0.3).prop_map(|kill| if kill { Action::KillMapper } else { Action::ReviveMapper }),
        1 => Just(Action::ReviveMapper),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let credits = prop_oneof![Just(1usize), Just(3), Just(64)];
    let arena_len = prop_oneof![Just(20_480usize), Just(40_960), Just(1 << 20)];
    let run_max = prop_oneof![Just(1u64), Just(3), Just(u64::MAX)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let areas = prop_oneof![1 => Just(0usize), 3 => Just(1)];
    (
        credits,
        arena_len,
        areas,
        run_max,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        flags,
    )
        .prop_map(
            |(
                credits,
                arena_len,
                areas,
                run_max,
                flush_soon,
                durable,
                (faults, waits, syncs, recovery_syncs),
            )| {
                Setup {
                    credits,
                    arena_len,
                    areas,
                    run_max,
                    flush_soon,
                    waits,
                    faults,
                    sync_faults: syncs && recovery_syncs,
                    recovery_syncs,
                    durable,
                }
            },
        )
}

fn map_fault(world: &World, index: usize, setup: Setup) -> Option<ErrorCode> {
    let wire = world.map_port.wire.borrow();
    match MapRequest::decode(&wire.queue[index].1).unwrap().op {
        MapOp::FlushCommit if setup.sync_faults => Some(ErrorCode::SyncFailed),
        MapOp::FlushBegin | MapOp::FlushCommit | MapOp::SnapshotBegin | MapOp::SnapshotCommit
            if setup.faults =>
        {
            Some(ErrorCode::NoSpace)
        }
        MapOp::Locate | MapOp::Status | MapOp::Lineage | MapOp::Written | MapOp::Zero
            if setup.faults =>
        {
            Some(ErrorCode::Io)
        }
        _ => None,
    }
}

fn object_fault(world: &World, index: usize, setup: Setup) -> Option<ErrorCode> {
    let wire = world.object_port.wire.borrow();
    match wire.object_request(&wire.queue[index].1).op {
        ObjectOp::Sync | ObjectOp::SyncPool => setup.sync_faults.then_some(ErrorCode::Io),
        ObjectOp::Write => setup.faults.then_some(ErrorCode::NoSpace),
        _ => setup.faults.then_some(ErrorCode::Io),
    }
}

fn play(setup: Setup, actions: &[Action]) {
    let mut world = World::with_areas(setup.credits, setup.arena_len, setup.areas);
    world.mapper.run_max = setup.run_max;
    world.mapper.flush_soon = setup.flush_soon;
    world.mapper.durable = setup.durable;
    world.recovery_syncs = setup.recovery_syncs;
    if setup.waits {
        let policy = OnFull::Wait { limit: None };
        world.peer.on_full(world.handle, policy);
    }
    world.settle();
    world.events.clear();
    let mut snapshots = 0;
    let mut now = Duration::ZERO;
    for action in actions {
        match action {
            Action::Submit {
                op,
                sector,
                sectors,
                cuts,
            } => {
                world.submit(*op, sector * SECTOR, sectors * SECTOR, cuts);
            }
            Action::Poll => {
                now += SPACE_INTERVAL;
                world.peer.look_for_space(now);
                world.poll();
            }
            Action::Mapper { pick, fault } => {
                if world.map_waiting() > 0 {
                    let index = pick.index(world.map_waiting());
                    let fault = fault.then(|| map_fault(&world, index, setup)).flatten();
                    world.map_step(index, fault);
                }
            }
            Action::Blocker { pick, fault } => {
                if world.object_waiting() > 0 {
                    let index = pick.index(world.object_waiting());
                    let fault = fault.then(|| object_fault(&world, index, setup)).flatten();
                    world.object_step(index, fault);
                }
            }
            Action::Snapshot => {
                snapshots += 1;
                world.snapshot(snapshots);
            }
            Action::KillMapper => world.kill_mapper(),
            Action::ReviveMapper => world.revive_mapper(),
        }
    }
    world.revive_mapper();
    world.settle();
    while world.peer.waits_for_space() {
        now += SPACE_INTERVAL;
        world.peer.look_for_space(now);
        world.settle();
    }
    world
        .control
        .retain(|event| matches!(event, ControlEvent::SnapshotDone { .. }));
    assert!(
        world.pending.iter().all(Option::is_none),
        "every request is answered"
    );
    let failures = world.results.iter().filter_map(|(_, result)| result.err());
    let allowed = |code| match code {
        ErrorCode::Io => setup.faults,
        ErrorCode::NoSpace => setup.faults && !setup.waits,
        ErrorCode::SyncFailed => setup.sync_faults,
        _ => false,
    };
    assert!(
        failures.clone().all(allowed),
        "only faults fail requests: {:?}",
        failures.collect::<Vec<_>>()
    );
    assert_eq!(
        world.control.len() as u64,
        snapshots,
        "every snapshot is answered"
    );
    let made =
        |event: &&ControlEvent| matches!(event, ControlEvent::SnapshotDone { result: Ok(()), .. });
    assert!(world.control.iter().filter(made).count() <= world.mapper.snapshots.len());
    world.results.clear();
    world.read_all();
    // What a failed sync lost is reported by the next flush, or by the close.
    let flushed = world.run(VolumeOp::Flush, 0, 0);
    assert!(flushed.is_ok() || setup.sync_faults, "{flushed:?}");
    world.events.clear();
    world.peer.close(world.handle);
    world.settle();
    assert_eq!(
        world.events.pop(),
        Some(VolumeEvent::Closed { result: Ok(()) })
    );
    world.check_frozen();
    if setup.durable {
        let syncs = [ObjectOp::Sync, ObjectOp::SyncPool];
        let mut asked = world.object_log.iter();
        assert!(asked.all(|request| !syncs.contains(&request.op)));
        let mut asked = world.map_log.iter();
        assert!(asked.all(|request| request.op != MapOp::FlushCommit || request.len == 0));
    }
    let idle: Vec<u64> = world
        .peer
        .status()
        .counters
        .iter()
        .map(|(_, value)| *value)
        .collect();
    assert_eq!(
        (idle[0], idle[3], idle[4]),
        (0, 0, 0),
        "nothing is left over"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_guest_reads_what_it_wrote(setup in setup(), actions in prop::collection::vec(action(), 1..400)) {
        play(setup, &actions);
    }
}
