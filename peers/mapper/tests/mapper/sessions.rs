//! What a session may ask, what is refused, and what the answers say.

use archipelago_mapper::ClientId;
use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::map::{
    FLAG_DROP, FLAG_FLUSH_REQUESTED, FLAG_HOME, LOCATE_LEN_MAX, MapOp, MapRequest, Placement,
};
use archipelago_protocol::object::{ObjectKind, ObjectOp};
use archipelago_protocol::status::BlockState;
use archipelago_protocol::{Epoch, ErrorCode, Lineage, ObjectSize};

use crate::rig::{Rig, blocks_area, small};

fn volume() -> (Rig, Lineage, u32, Epoch) {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 30, ObjectSize::MAX);
    let handle = rig.open(own, true);
    let epoch = Epoch(rig.locate(handle, 0, 1, true).values[0]);
    (rig, own, handle, epoch)
}

/// A flush that carries these blocks of `epoch`; what is wrong with it.
fn flush_commit(
    rig: &mut Rig,
    handle: u32,
    flags: u8,
    epoch: Epoch,
    blocks: &[u64],
) -> Option<ErrorCode> {
    let data = match blocks {
        [] => JournaledData::default(),
        blocks => blocks_area(epoch, blocks),
    };
    rig.flush_with_data(handle, flags, data).err()
}

#[test]
fn ranges_are_whole_blocks_inside_the_volume() {
    let mut rig = Rig::new(small());
    // The last block is there in part.
    let own = rig.create("v", 3 * 4096 + 512, ObjectSize::MIN);
    let handle = rig.open(own, true);
    for (offset, len, run) in [
        (0, 4096, Some(1)),
        (0, 4 * 4096, Some(4)),
        (3 * 4096, 4096, Some(1)),
        (0, 5 * 4096, None),
        (4 * 4096, 4096, None),
        (0, 0, None),
        (0, 512, None),
        (512, 4096, None),
        (u64::MAX - 4095, 4096, None),
    ] {
        let locate = MapRequest {
            offset,
            len,
            ..MapRequest::new(MapOp::Locate, handle)
        };
        let found = rig.ask(locate).result.ok().map(|bytes| bytes / 4096);
        assert_eq!(found, run, "{len} bytes at {offset}");
    }
}

#[test]
fn a_report_is_of_an_object_and_of_an_epoch_that_may_still_change() {
    let (mut rig, _, handle, old) = volume();
    let report = |rig: &mut Rig, len: u64, epoch: u64| {
        rig.ask(MapRequest {
            len,
            operand: [epoch, 0],
            ..MapRequest::new(MapOp::Written, handle)
        })
        .result
    };
    let refused = Err(ErrorCode::Invalid);
    assert_eq!(report(&mut rig, LOCATE_LEN_MAX, old.0), Ok(0));
    assert_eq!(report(&mut rig, LOCATE_LEN_MAX + 4096, old.0), refused);
    assert_eq!(report(&mut rig, 4096, old.0 + 1), refused);
    let (token, _) = rig.prepare("v", "s");
    let begun = rig.op(MapOp::SnapshotBegin, handle, token);
    assert_eq!(begun.values[0], old.0 + 1);
    // Late ones of the old epoch come until the commit.
    assert_eq!(report(&mut rig, 4096, old.0), Ok(0));
    assert_eq!(report(&mut rig, 4096, old.0 + 1), Ok(0));
    rig.sync();
    rig.op(MapOp::SnapshotCommit, handle, token).result.unwrap();
    assert_eq!(report(&mut rig, 4096, old.0), refused);
    assert_eq!(report(&mut rig, 4096, old.0 + 1), Ok(0));
}

#[test]
fn what_a_flush_carries_is_what_the_session_could_have_written() {
    let (mut rig, _, handle, epoch) = volume();
    let last = (1 << 30) / 4096 - 1;
    let commit = |rig: &mut Rig, flags, epoch, blocks: &[u64]| {
        flush_commit(rig, handle, flags, epoch, blocks)
    };
    let refused = Some(ErrorCode::Invalid);
    assert_eq!(commit(&mut rig, 0, epoch, &[0, last]), None);
    assert_eq!(commit(&mut rig, 0, epoch, &[0, last + 1]), refused);
    assert_eq!(commit(&mut rig, 0, Epoch(epoch.0 + 1), &[0]), refused);
    assert_eq!(commit(&mut rig, FLAG_HOME, epoch, &[0]), refused);
    assert_eq!(commit(&mut rig, FLAG_HOME, epoch, &[]), None);
    rig.snapshot(handle, "v", "s");
    assert_eq!(commit(&mut rig, 0, epoch, &[0]), refused);
    assert_eq!(commit(&mut rig, 0, Epoch(epoch.0 + 1), &[0]), None);
}

#[test]
fn a_flush_has_something_to_do_until_all_is_logged_and_home() {
    let (mut rig, own, handle, epoch) = volume();
    let begin = |rig: &mut Rig| {
        let begun = rig.op(MapOp::FlushBegin, handle, 0);
        (begun.result.unwrap(), begun.values[0])
    };
    assert_eq!(begin(&mut rig), (0, 0));
    rig.write(own, handle, 1, 1);
    rig.write(own, handle, 3, 3);
    assert_eq!(begin(&mut rig), (1, 2));
    assert_eq!(flush_commit(&mut rig, handle, 0, epoch, &[1, 3]), None);
    assert_eq!(
        begin(&mut rig),
        (1, 2),
        "what was journaled is not written back"
    );
    let counters = rig.mapper.counters();
    assert_eq!((counters.log_batches, counters.journaled_blocks), (1, 2));
    rig.sync();
    assert_eq!(flush_commit(&mut rig, handle, FLAG_HOME, epoch, &[]), None);
    assert_eq!(begin(&mut rig), (0, 2));
    // Nothing new: nothing is appended.
    let before = rig.pool.log.len();
    assert_eq!(flush_commit(&mut rig, handle, FLAG_HOME, epoch, &[]), None);
    assert_eq!(rig.pool.log.len(), before);
}

#[test]
fn an_overwrite_that_a_flush_carried_survives_a_power_cut() {
    let (mut rig, own, handle, epoch) = volume();
    rig.write(own, handle, 5, 1);
    rig.flush(handle).unwrap();
    // In place: there is no presence to log, and nothing is synced.
    assert!(!rig.write(own, handle, 5, 5));
    assert_eq!(flush_commit(&mut rig, handle, 0, epoch, &[5]), None);
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 5), 5);
}

#[test]
fn half_of_what_may_wait_is_soon() {
    let (mut rig, _, handle, epoch) = volume();
    for records in 1..=64 {
        let reply = rig.written(handle, records * 2, 1, epoch);
        assert_eq!(reply.result, Ok(0));
        assert_eq!(
            reply.flags & FLAG_FLUSH_REQUESTED != 0,
            records >= 32,
            "{records}"
        );
    }
    assert_eq!(rig.mapper.counters().throttled, 0);
}

#[test]
fn a_reader_reads_and_nothing_else() {
    let (mut rig, own, handle, _) = volume();
    rig.write(own, handle, 1, 7);
    rig.close(handle);
    let reader = rig.open(own, false);
    let before = rig.pool.log.len();
    assert_eq!(rig.read(reader, 1), 7);
    let refused = Err(ErrorCode::ReadOnly);
    assert_eq!(rig.locate(reader, 1, 1, true).result, refused);
    for op in [
        MapOp::Written,
        MapOp::Zero,
        MapOp::FlushBegin,
        MapOp::FlushCommit,
        MapOp::SnapshotBegin,
        MapOp::SnapshotCommit,
        MapOp::SnapshotAbort,
        MapOp::Abandon,
    ] {
        assert_eq!(rig.op(op, reader, 0).result, refused, "{op:?}");
    }
    assert_eq!(rig.op(MapOp::Lineage, reader, 0).values, own.to_words());
    let unknown = rig.op(MapOp::Lineage, reader, 9).result;
    assert_eq!(unknown, Err(ErrorCode::NotFound));
    rig.close(reader);
    assert_eq!(
        rig.op(MapOp::Close, reader, 0).result,
        Err(ErrorCode::NotFound)
    );
    let read = |(op, _, _): &(ObjectOp, _, u8)| *op == ObjectOp::Read;
    assert!(rig.pool.log[before..].iter().all(read));
}

#[test]
fn there_is_one_writer_or_there_are_readers() {
    let (mut rig, own, writer, _) = volume();
    let open = |rig: &mut Rig, write| rig.ask(MapRequest::open(own, write)).result;
    let in_use = Err(ErrorCode::InUse);
    assert_eq!(open(&mut rig, true), in_use);
    assert_eq!(open(&mut rig, false), in_use);
    rig.close(writer);
    let readers = [false, false].map(|write| open(&mut rig, write).unwrap());
    assert_eq!(open(&mut rig, true), in_use);
    rig.close(readers[0]);
    assert_eq!(rig.read(readers[1], 0), 0);
    assert_eq!(open(&mut rig, true), in_use);
    rig.close(readers[1]);
    let writer = rig.open(own, true);
    assert!(rig.write(own, writer, 1, 1));
}

#[test]
fn what_is_frozen_is_opened_to_be_read() {
    let (mut rig, own, handle, _) = volume();
    rig.write(own, handle, 1, 7);
    let snapshot = rig.snapshot(handle, "v", "s");
    let written = rig.ask(MapRequest::open(snapshot, true)).result;
    assert_eq!(written, Err(ErrorCode::ReadOnly));
    let reader = rig.open(snapshot, false);
    assert_eq!(rig.read(reader, 1), 7);
    assert_eq!(
        rig.lineage(reader, 1),
        own,
        "the snapshot's own comes first"
    );
}

#[test]
fn sessions_are_their_client_s_and_end_with_it() {
    let (mut rig, own, handle, _) = volume();
    let other = rig.create("w", 1 << 20, ObjectSize::MIN);
    let first = rig.client;
    rig.client = ClientId(2);
    let others = rig.open(other, true);
    let foreign = rig.locate(handle, 0, 1, false).result;
    assert_eq!(foreign, Err(ErrorCode::NotFound));
    rig.mapper.client_gone(first);
    rig.run();
    assert_eq!(rig.mapper.sessions(), 1);
    assert!(rig.write(other, others, 1, 1));
    assert!(rig.open(own, true) != handle);
}

#[test]
fn a_reader_s_wish_to_drop_drops_nothing() {
    let (mut rig, own, handle, _) = volume();
    rig.write(own, handle, 1, 7);
    rig.sync();
    let client = rig.client;
    rig.mapper.client_gone(client);
    rig.run();
    rig.client = ClientId(2);
    let open = MapRequest {
        flags: FLAG_DROP,
        ..MapRequest::open(own, false)
    };
    let reader = rig.ask(open).result.unwrap();
    assert_eq!(rig.read(reader, 1), 7);
}

#[test]
fn a_new_session_writes_to_an_epoch_of_its_own() {
    let (mut rig, own, handle, epoch) = volume();
    rig.write(own, handle, 1, 7);
    let client = rig.client;
    rig.mapper.client_gone(client);
    rig.run();
    rig.client = ClientId(2);
    let handle = rig.open(own, true);
    let place = rig.locate(handle, 8, 1, true);
    assert_eq!(place.placement(), Some(Placement::First));
    assert_eq!(place.values[0], epoch.0 + 1);
}

#[test]
fn what_a_snapshot_holds_is_not_owned_after_a_close_either() {
    let (mut rig, own, handle, _) = volume();
    rig.write(own, handle, 1, 7);
    rig.write(own, handle, 2, 8);
    let snapshot = rig.snapshot(handle, "v", "s");
    rig.write(own, handle, 2, 9);
    rig.close(handle);
    let handle = rig.open(own, true);
    assert!(rig.write(own, handle, 1, 10), "the snapshot's");
    assert!(!rig.write(own, handle, 2, 11), "written since");
    rig.close(handle);
    let reader = rig.open(snapshot, false);
    assert_eq!([1, 2].map(|block| rig.read(reader, block)), [7, 8]);
}

#[test]
fn what_is_written_after_zeros_during_a_snapshot_is_there() {
    let (mut rig, own, handle, old) = volume();
    let (token, snapshot) = rig.prepare("v", "s");
    rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
    rig.zero(handle, 4, 4).result.unwrap();
    assert!(rig.write(own, handle, 5, 9), "in the new epoch");
    // A write of the old epoch that was late: the snapshot's, not the volume's.
    rig.put(own, old, 6, 8);
    rig.written(handle, 6, 1, old).result.unwrap();
    rig.sync();
    rig.op(MapOp::SnapshotCommit, handle, token).result.unwrap();
    assert_eq!([5, 6].map(|block| rig.read(handle, block)), [9, 0]);
    let reader = rig.open(snapshot, false);
    assert_eq!([5, 6].map(|block| rig.read(reader, block)), [0, 8]);
}

#[test]
fn a_snapshot_is_begun_ended_and_made_by_its_token() {
    let (mut rig, own, handle, _) = volume();
    let other = rig.create("w", 1 << 20, ObjectSize::MIN);
    let others = rig.open(other, true);
    rig.write(own, handle, 1, 1);
    let (token, _) = rig.prepare("v", "s");
    let ask = |rig: &mut Rig, op, handle, token| rig.op(op, handle, token).result;
    use MapOp::{SnapshotAbort, SnapshotBegin, SnapshotCommit};
    let not_found = Err(ErrorCode::NotFound);
    let in_use = Err(ErrorCode::InUse);
    assert_eq!(ask(&mut rig, SnapshotBegin, others, token), not_found);
    assert_eq!(ask(&mut rig, SnapshotBegin, handle, token + 9), not_found);
    assert_eq!(ask(&mut rig, SnapshotCommit, handle, token), not_found);
    assert_eq!(ask(&mut rig, SnapshotBegin, handle, token), Ok(0));
    assert_eq!(ask(&mut rig, SnapshotBegin, handle, token), in_use);
    assert_eq!(ask(&mut rig, SnapshotCommit, handle, token + 9), not_found);
    // One at a time.
    let (second, _) = rig.prepare("v", "u");
    assert_eq!(ask(&mut rig, SnapshotBegin, handle, second), in_use);
    assert_eq!(ask(&mut rig, SnapshotAbort, handle, second), Ok(0));
    // Of one that is not known: this one stays.
    assert_eq!(ask(&mut rig, SnapshotAbort, handle, token + 9), Ok(0));
    rig.stalled = true;
    let making = rig.send(MapRequest {
        operand: [token, 0],
        ..MapRequest::new(SnapshotCommit, handle)
    });
    assert_eq!(ask(&mut rig, SnapshotAbort, handle, token), in_use);
    assert_eq!(ask(&mut rig, SnapshotCommit, handle, token), in_use);
    rig.stalled = false;
    rig.run();
    assert_eq!(rig.reply(making).unwrap().result, Ok(0));
    assert_eq!(ask(&mut rig, SnapshotCommit, handle, token), not_found);
    // One that is forgotten is not made, and its name is free.
    let (token, _) = rig.prepare("v", "t");
    assert_eq!(ask(&mut rig, SnapshotBegin, handle, token), Ok(0));
    assert_eq!(ask(&mut rig, SnapshotAbort, handle, token), Ok(0));
    assert_eq!(ask(&mut rig, SnapshotCommit, handle, token), not_found);
    rig.snapshot(handle, "v", "t");
}

#[test]
fn a_failed_sync_of_the_pool_stops_no_reader() {
    let (mut rig, own, handle, _) = volume();
    rig.write(own, handle, 1, 7);
    rig.close(handle);
    let reader = rig.open(own, false);
    let other = rig.create("w", 1 << 20, ObjectSize::MIN);
    let writer = rig.open(other, true);
    rig.write(other, writer, 1, 1);
    rig.stalled = true;
    let closing = rig.send(MapRequest::new(MapOp::Close, writer));
    rig.step(ObjectOp::SyncPool, Some(ErrorCode::Io));
    rig.stalled = false;
    rig.run();
    let closed = rig.reply(closing).unwrap().result;
    assert_eq!(closed, Err(ErrorCode::SyncFailed));
    assert_eq!(rig.read(reader, 1), 7);
}

#[test]
fn a_session_that_was_overtaken_is_stale_for_good() {
    let (mut rig, own, handle, _) = volume();
    rig.write(own, handle, 1, 7);
    rig.stalled = true;
    let closing = rig.send(MapRequest::new(MapOp::Close, handle));
    rig.step(ObjectOp::SyncPool, None);
    rig.step(ObjectOp::Write, None);
    rig.step(ObjectOp::Sync, None);
    let locate = MapRequest {
        len: 4096,
        ..MapRequest::new(MapOp::Locate, handle)
    };
    rig.ask(locate).result.unwrap();
    rig.step(ObjectOp::CompareAndSwap, Some(ErrorCode::Stale));
    rig.stalled = false;
    rig.run();
    let closed = rig.reply(closing).unwrap().result;
    assert_eq!(closed, Err(ErrorCode::Stale));
    assert_eq!(rig.mapper.sessions(), 0);
}

#[test]
fn whatever_happens_is_counted() {
    let (mut rig, own, handle, epoch) = volume();
    let mut totals = std::collections::BTreeMap::new();
    let mut add = |rig: &Rig| {
        for (name, count) in rig.mapper.counters().list() {
            *totals.entry(name).or_insert(0) += count;
        }
    };
    for block in 0..65 {
        rig.put(own, epoch, block * 2, 1);
        // One more than may wait: held back.
        rig.written(handle, block * 2, 1, epoch).result.unwrap();
    }
    assert_eq!(rig.status(handle, 0, 1), [(1, BlockState::Data)]);
    rig.snapshot(handle, "v", "s");
    let new = Epoch(rig.locate(handle, 0, 1, true).values[0]);
    assert_eq!(flush_commit(&mut rig, handle, 0, new, &[0]), None);
    add(&rig);
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    rig.close(handle);
    add(&rig);
    rig.restart();
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 2), 1);
    // The snapshot has it alone then.
    rig.write(own, handle, 2, 2);
    rig.close(handle);
    let name = "s".parse().unwrap();
    rig.control(archipelago_protocol::catalogue::CatalogueRequest::Remove { name });
    for count in 0..20 {
        rig.create(&format!("w{count}"), 1 << 20, ObjectSize::MIN);
    }
    let name = "w1".parse().unwrap();
    rig.control(archipelago_protocol::catalogue::CatalogueRequest::Remove { name });
    rig.pool.damage(ObjectKind::Head, own, 50);
    let damaged = rig.ask(MapRequest::open(own, false)).result;
    assert_eq!(damaged, Err(ErrorCode::Damaged));
    // Another mapper has appended meanwhile.
    let mut config = rig.config.clone();
    config.owner += 1;
    rig.pool = Rig::on(config, rig.pool.clone(), rig.journals.clone()).pool;
    let name = "w2".parse().unwrap();
    rig.control(archipelago_protocol::catalogue::CatalogueRequest::Remove { name });
    add(&rig);
    let never: Vec<_> = totals.iter().filter(|(_, count)| **count == 0).collect();
    assert!(totals.len() == 19 && never.is_empty(), "{never:?}");
}

#[test]
fn what_a_snapshot_of_a_closed_volume_holds_is_not_owned() {
    let (mut rig, own, handle, _) = volume();
    rig.write(own, handle, 1, 7);
    rig.close(handle);
    let snapshot = rig.snapshot_closed("v", "s");
    let handle = rig.open(own, true);
    assert!(rig.write(own, handle, 1, 8));
    rig.close(handle);
    let reader = rig.open(snapshot, false);
    assert_eq!(rig.read(reader, 1), 7);
}

#[test]
fn a_reader_of_a_volume_that_did_not_end_cleanly_sees_what_was_flushed() {
    let (mut rig, own, handle, _) = volume();
    rig.write(own, handle, 1, 7);
    rig.flush(handle).unwrap();
    rig.power_cut(|| false);
    let reader = rig.open(own, false);
    assert_eq!(rig.read(reader, 1), 7);
    rig.close(reader);
    // And its snapshot holds it.
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    rig.write(own, handle, 2, 8);
    rig.flush(handle).unwrap();
    rig.power_cut(|| false);
    let snapshot = rig.snapshot_closed("v", "s");
    let reader = rig.open(snapshot, false);
    assert_eq!([1, 2].map(|block| rig.read(reader, block)), [7, 8]);
}

#[test]
fn of_two_who_open_at_the_same_time_one_waits_and_is_refused() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    let other = rig.create("w", 1 << 20, ObjectSize::MIN);
    rig.stalled = true;
    let asked = [own, own, other].map(|lineage| rig.send(MapRequest::open(lineage, true)));
    rig.stalled = false;
    rig.run();
    let opened = asked.map(|tag| rig.reply(tag).unwrap().result);
    assert!(opened[0].is_ok() && opened[2].is_ok(), "{opened:?}");
    assert_eq!(opened[1], Err(ErrorCode::InUse));
    assert_eq!(rig.mapper.sessions(), 2);
}

#[test]
fn the_end_of_a_volume_that_is_shrunk_is_written_beside_what_was_there() {
    let (mut rig, own, handle, epoch) = volume();
    rig.write(own, handle, 2, 7);
    rig.close(handle);
    let before = rig.pool.log.len();
    rig.entry(archipelago_protocol::catalogue::CatalogueRequest::Resize {
        name: "v".parse().unwrap(),
        size: 2 * 4096 + 512,
        force: true,
    });
    let data: Vec<u64> = rig.pool.log[before..]
        .iter()
        .filter(|(op, id, _)| *op == ObjectOp::Write && id.kind == ObjectKind::Data)
        .map(|(_, id, _)| id.number)
        .collect();
    assert_eq!(data, [epoch.0 + 1]);
    let handle = rig.open(own, true);
    assert_eq!(rig.sectors(handle, 2), [7, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_mapper_says_whether_it_is_ready_and_what_it_does() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 30, ObjectSize::MIN);
    let handle = rig.open(own, true);
    assert!(rig.mapper.is_ready() && rig.mapper.is_idle());
    for block in 0..100 {
        rig.write(own, handle, block * 16, 1);
    }
    assert_eq!(rig.mapper.cache_bytes(), 0, "nothing is stored yet");
    rig.stalled = true;
    let closing = rig.send(MapRequest::new(MapOp::Close, handle));
    assert!(!rig.mapper.is_idle());
    rig.stalled = false;
    rig.run();
    assert_eq!(rig.reply(closing).unwrap().result, Ok(0));
    assert!(rig.mapper.is_idle());
    // One leaf: its tables, a hundred runs of one layer, and some.
    assert_eq!(rig.mapper.cache_bytes(), 512 * 24 + 100 * 8 + 24 + 64);
    let writes = 100;
    assert_eq!(
        rig.mapper.object_requests(),
        rig.pool.log.len() as u64 - writes
    );
    assert!(rig.mapper.failure().is_none() && rig.mapper.damage(own).is_none());
    let journals = archipelago_doubles::MemoryJournals::new(64);
    let mut unread = archipelago_mapper::Mapper::new(small(), Box::new(journals));
    assert!(!unread.is_ready() && unread.is_idle());
    unread.start();
    assert!(!unread.is_ready() && !unread.is_idle());
}

#[test]
fn the_mapper_s_own_commit_takes_nothing_that_came_after_its_sync_began() {
    let (mut rig, own, handle, epoch) = volume();
    for block in 0..64 {
        rig.put(own, epoch, block * 2, 1);
        rig.written(handle, block * 2, 1, epoch).result.unwrap();
    }
    // One more is held back, and the mapper syncs the pool. Meanwhile a flush makes room for it and for others.
    rig.stalled = true;
    let report = |block: u64| MapRequest {
        offset: block * 4096,
        len: 4096,
        operand: [epoch.0, 0],
        ..MapRequest::new(MapOp::Written, handle)
    };
    let held = rig.send(report(200));
    let cut = rig.op(MapOp::FlushBegin, handle, 0).values[0];
    let flushed = rig.send(MapRequest {
        operand: [cut, 0],
        ..MapRequest::new(MapOp::FlushCommit, handle)
    });
    rig.step(ObjectOp::Append, None);
    assert_eq!(rig.reply(flushed).unwrap().result, Ok(0));
    assert_eq!(rig.reply(held).unwrap().result, Ok(0));
    rig.ask(report(202)).result.unwrap();
    let before = rig.pool.log.len();
    rig.step(ObjectOp::SyncPool, None);
    rig.stalled = false;
    rig.run();
    let appended = rig.pool.count(before, ObjectOp::Append, ObjectKind::Log);
    assert_eq!(appended, 0, "their data may not be durable");
    assert_eq!(rig.op(MapOp::FlushBegin, handle, 0).result, Ok(1));
}
