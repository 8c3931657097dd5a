//! The promises that a volume makes, each by what reaches the pool or is read afterwards.

use archipelago_doubles::MemoryJournals;
use archipelago_mapper::MapperConfig;
use archipelago_protocol::catalogue::CatalogueRequest;
use archipelago_protocol::map::{FLAG_FLUSH_REQUESTED, MapOp, MapRequest, Placement};
use archipelago_protocol::object::{ObjectKind, ObjectOp};
use archipelago_protocol::{Epoch, ErrorCode, ObjectSize};

use crate::rig::{Rig, blocks_area, small};

const TIB: u64 = 1 << 40;

#[test]
fn the_first_write_is_told_and_the_next_costs_no_metadata() {
    let (mut rig, own, handle) = Rig::opened();
    assert!(rig.write(own, handle, 5, 11));
    rig.flush(handle).unwrap();
    let before = rig.pool.log.len();
    assert!(!rig.write(own, handle, 5, 12));
    assert_eq!(rig.op(MapOp::FlushBegin, handle, 0).result, Ok(0));
    assert_eq!(
        rig.pool.log.len(),
        before + 1,
        "one data write, nothing else"
    );
    assert_eq!(rig.read(handle, 5), 12);
    rig.snapshot(handle, "v", "s");
    assert!(
        rig.write(own, handle, 5, 13),
        "frozen blocks are written anew"
    );
    assert_eq!(rig.read(handle, 5), 13);
    rig.close(handle);
    let handle = rig.open(own, true);
    assert!(!rig.write(own, handle, 5, 14), "owned also after a reopen");
}

#[test]
fn a_locate_is_one_run_inside_one_object() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 30, ObjectSize::MIN);
    let handle = rig.open(own, true);
    let epoch = Epoch(rig.locate(handle, 0, 16, true).values[0]);
    rig.written(handle, 2, 4, epoch).result.unwrap();
    rig.written(handle, 6, 2, epoch).result.unwrap();
    let run = |rig: &mut Rig, block, write| {
        let reply = rig.locate(handle, block, 4096, write);
        (reply.result.unwrap() / 4096, reply.placement().unwrap())
    };
    assert_eq!(run(&mut rig, 0, false), (2, Placement::Zero));
    assert_eq!(run(&mut rig, 2, false), (6, Placement::Stored));
    assert_eq!(run(&mut rig, 8, false), (8, Placement::Zero));
    assert_eq!(run(&mut rig, 16, false), (16, Placement::Zero));
    assert_eq!(run(&mut rig, 0, true), (2, Placement::First));
    assert_eq!(run(&mut rig, 3, true), (5, Placement::Stored));
    assert_eq!(
        rig.locate(handle, (1 << 30) / 4096, 1, false).result,
        Err(ErrorCode::Invalid)
    );
    assert_eq!(
        rig.locate(handle, 0, 0, false).result,
        Err(ErrorCode::Invalid)
    );
}

#[test]
fn creating_and_cloning_is_one_durable_write_at_any_size() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 10 * TIB, ObjectSize::DEFAULT);
    let handle = rig.open(own, true);
    for block in [0, 1 << 20, (10 * TIB) / 4096 - 1] {
        rig.write(own, handle, block, block + 1);
    }
    let before = rig.pool.log.len();
    rig.snapshot(handle, "v", "s");
    let pages = rig.mapper.counters().pages_written;
    assert!(pages <= 3 * 3, "{pages} pages for three leaves");
    assert!(
        rig.pool.log.len() - before < 12,
        "{:?}",
        &rig.pool.log[before..]
    );
    let before = rig.pool.log.len();
    rig.clone_of("s", "c", Some(20 * TIB));
    rig.create("w", 10 * TIB, ObjectSize::DEFAULT);
    assert_eq!(rig.pool.log.len(), before + 2);
    let before = rig.pool.log.len();
    rig.write(own, handle, 7, 1);
    rig.snapshot(handle, "v", "s2");
    assert_eq!(
        rig.mapper.counters().pages_written - pages,
        3,
        "one leaf and its parents"
    );
    assert_eq!(rig.pool.count(before, ObjectOp::Read, ObjectKind::Pack), 0);
}

#[test]
fn the_hundredth_clone_reads_as_many_pages_as_the_first() {
    let mut rig = Rig::new(small());
    let mut own = rig.create("v0", 10 * TIB, ObjectSize::DEFAULT);
    let base = own;
    let mut costs = Vec::new();
    for depth in 1..=100 {
        let handle = rig.open(own, true);
        rig.write(own, handle, 1000 + depth, depth);
        if depth == 1 {
            rig.write(own, handle, 5, 77);
        }
        rig.close(handle);
        rig.snapshot_closed(&format!("v{}", depth - 1), &format!("s{depth}"));
        own = rig.clone_of(&format!("s{depth}"), &format!("v{depth}"), None);
        rig.restart();
        let handle = rig.open(own, true);
        let before = rig.pool.log.len();
        let place = rig.locate(handle, 5, 1, false);
        costs.push(rig.pool.count(before, ObjectOp::Read, ObjectKind::Pack));
        assert_eq!(rig.lineage(handle, place.values[1]), base);
        assert_eq!(rig.read(handle, 5), 77);
        for older in 1..=depth {
            assert_eq!(rig.read(handle, 1000 + older), older);
        }
        rig.close(handle);
    }
    assert!(costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");
}

/// A volume in use again, whose pages nobody has read yet, and the question where its block 5 is.
fn unread() -> (Rig, MapRequest) {
    let mut rig = Rig::new(small());
    let own = rig.create("v", TIB, ObjectSize::DEFAULT);
    let handle = rig.open(own, true);
    rig.write(own, handle, 5, 1);
    rig.close(handle);
    rig.restart();
    let handle = rig.open(own, true);
    let locate = MapRequest {
        offset: 5 * 4096,
        len: 4096,
        ..MapRequest::new(MapOp::Locate, handle)
    };
    (rig, locate)
}

#[test]
fn a_locate_that_waits_for_a_page_blocks_nobody() {
    let (mut rig, locate) = unread();
    rig.stalled = true;
    let slow = rig.send(locate);
    let end = rig.send(MapRequest::new(MapOp::FlushBegin, locate.handle));
    assert!(rig.reply(slow).is_none());
    assert!(rig.reply(end).is_some());
    rig.stalled = false;
    rig.run();
    assert_eq!(
        rig.reply(slow).unwrap().placement(),
        Some(Placement::Stored)
    );
}

#[test]
fn a_page_is_read_once_for_all_who_wait_for_it() {
    let pages_read = |at_once: u64| {
        let (mut rig, locate) = unread();
        rig.stalled = true;
        let waiting: Vec<u64> = (0..at_once).map(|_| rig.send(locate)).collect();
        rig.stalled = false;
        rig.run();
        for tag in waiting {
            let reply = rig.reply(tag).unwrap();
            assert_eq!(reply.placement(), Some(Placement::Stored));
        }
        rig.mapper.counters().pages_read
    };
    assert_eq!(pages_read(3), pages_read(1));
}

#[test]
fn a_snapshot_takes_late_writes_of_its_epoch_and_nothing_newer() {
    let (mut rig, own, handle) = Rig::opened();
    let old = Epoch(rig.locate(handle, 0, 1, true).values[0]);
    for block in [1, 2, 3] {
        rig.put(own, old, block, 10 + block);
    }
    let (token, snapshot) = rig.prepare("v", "s");
    assert_eq!(
        rig.op(MapOp::SnapshotBegin, handle, token).values[0],
        old.0 + 1
    );
    // A new write overtakes the old one of block 2, zeros that of block 3.
    rig.write(own, handle, 2, 22);
    rig.zero(handle, 3, 1).result.unwrap();
    for block in [1, 2, 3] {
        rig.written(handle, block, 1, old).result.unwrap();
    }
    rig.sync();
    rig.op(MapOp::SnapshotCommit, handle, token).result.unwrap();
    assert_eq!(
        rig.written(handle, 9, 1, old).result,
        Err(ErrorCode::Invalid),
        "it never changes again"
    );
    let frozen = rig.open(snapshot, false);
    let read = |rig: &mut Rig, handle| [1, 2, 3].map(|block| rig.read(handle, block));
    assert_eq!(read(&mut rig, frozen), [11, 12, 13]);
    assert_eq!(read(&mut rig, handle), [11, 22, 0]);
    rig.flush(handle).unwrap();
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    assert_eq!(
        read(&mut rig, handle),
        [11, 22, 0],
        "the log tells the same"
    );
    let frozen = rig.open(snapshot, false);
    assert_eq!(read(&mut rig, frozen), [11, 12, 13]);
}

#[test]
fn a_takeover_reads_no_more_of_a_log_than_was_appended() {
    let mut rig = Rig::new(MapperConfig {
        log_len: 256 << 10,
        io_len_max: 16 << 10,
        ..small()
    });
    let own = rig.create("v", 1 << 30, ObjectSize::DEFAULT);
    let handle = rig.open(own, true);
    let mut reads = Vec::new();
    // Of 4096 bytes each. The second takeover begins where the first one ended.
    for flushes in [3, 1] {
        for block in 0..flushes {
            rig.write(own, handle, block, 1);
            rig.flush(handle).unwrap();
        }
        rig.restart();
        let before = rig.pool.log.len();
        rig.open(own, true);
        reads.push(rig.pool.count(before, ObjectOp::Read, ObjectKind::Log));
    }
    assert_eq!(reads, [1, 1]);
    // After a power cut nothing is known of it.
    rig.power_cut(|| false);
    let before = rig.pool.log.len();
    rig.open(own, true);
    let all = rig.pool.count(before, ObjectOp::Read, ObjectKind::Log);
    assert_eq!(all, 16);
}

#[test]
fn what_was_told_survives_a_death_and_what_was_flushed_a_power_cut() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 1, 1);
    rig.flush(handle).unwrap();
    rig.write(own, handle, 2, 2);
    rig.zero(handle, 1, 1).result.unwrap();
    rig.restart();
    let handle = rig.open(own, true);
    assert_eq!([rig.read(handle, 1), rig.read(handle, 2)], [0, 2]);
    let epoch = rig.locate(handle, 3, 1, true).values[0];
    rig.write(own, handle, 3, 3);
    rig.power_cut(|| true);
    let handle = rig.open(own, true);
    assert_eq!(
        [
            rig.read(handle, 1),
            rig.read(handle, 2),
            rig.read(handle, 3)
        ],
        [0, 2, 0]
    );
    assert!(
        rig.locate(handle, 3, 1, true).values[0] > epoch,
        "what the crash left behind is not written into again"
    );
}

#[test]
fn a_client_that_vanishes_leaves_what_it_told() {
    let (mut rig, own, handle) = Rig::opened();
    assert_eq!(
        rig.ask(MapRequest::open(own, true)).result,
        Err(ErrorCode::InUse)
    );
    assert_eq!(
        rig.ask(MapRequest::open(own, false)).result,
        Err(ErrorCode::InUse)
    );
    rig.write(own, handle, 1, 1);
    let gone = rig.client;
    rig.mapper.client_gone(gone);
    rig.client = archipelago_mapper::ClientId(2);
    assert_eq!(
        rig.locate(handle, 1, 1, false).result,
        Err(ErrorCode::NotFound)
    );
    let handle = rig.open(own, true);
    rig.power_cut(|| false);
    let handle = {
        let _old = handle;
        rig.open(own, true)
    };
    assert_eq!(
        rig.read(handle, 1),
        1,
        "made durable before the successor was let in"
    );
    assert_eq!(rig.mapper.counters().recoveries, 1);
}

#[test]
fn too_much_unlogged_is_warned_of_then_held_back_never_lost() {
    let (mut rig, own, handle) = Rig::opened();
    let epoch = Epoch(rig.locate(handle, 0, 1, true).values[0]);
    let mut wanted = 0;
    for block in 0..200 {
        rig.put(own, epoch, block * 2, block + 1);
        let reply = rig.written(handle, block * 2, 1, epoch);
        assert!(reply.result.is_ok());
        wanted += u32::from(reply.flags & FLAG_FLUSH_REQUESTED != 0);
    }
    assert!(wanted > 30, "{wanted}");
    assert!(rig.mapper.counters().throttled > 0);
    rig.restart();
    let handle = rig.open(own, true);
    for block in 0..200 {
        assert_eq!(rig.read(handle, block * 2), block + 1);
    }
}

#[test]
fn what_a_flush_carries_while_the_mapper_relieves_itself_is_not_taken_for_home() {
    let (mut rig, own, handle) = Rig::opened();
    let epoch = Epoch(rig.locate(handle, 0, 1, true).values[0]);
    for block in 0..64 {
        rig.put(own, epoch, block * 2, 1);
        rig.written(handle, block * 2, 1, epoch).result.unwrap();
    }
    // One more is too much: it is held back, and the mapper syncs the pool.
    rig.stalled = true;
    rig.put(own, epoch, 200, 200);
    let report = |block: u64| MapRequest {
        offset: block * 4096,
        len: 4096,
        operand: [epoch.0, 0],
        ..MapRequest::new(MapOp::Written, handle)
    };
    let commit = |cut: u64| MapRequest {
        operand: [cut, 0],
        ..MapRequest::new(MapOp::FlushCommit, handle)
    };
    let held = rig.send(report(200));
    // Meanwhile an ordinary flush makes room, and another one carries what was written after that sync had begun.
    let cut = rig.op(MapOp::FlushBegin, handle, 0).values[0];
    rig.send(commit(cut));
    rig.step(ObjectOp::Append, None);
    rig.reply(held).unwrap().result.unwrap();
    rig.ask(report(202)).result.unwrap();
    let cut = rig.op(MapOp::FlushBegin, handle, 0).values[0];
    let flushed = rig.send_with_data(commit(cut), blocks_area(epoch, &[200, 202]));
    rig.step(ObjectOp::SyncPool, None);
    rig.put(own, epoch, 202, 202);
    rig.stalled = false;
    rig.run();
    rig.reply(flushed).unwrap().result.unwrap();
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    assert_eq!((rig.read(handle, 200), rig.read(handle, 202)), (200, 202));
}

#[test]
fn a_first_write_stays_in_the_journal_until_it_is_logged_itself() {
    let (mut rig, own, handle) = Rig::opened();
    let old = Epoch(rig.locate(handle, 0, 1, true).values[0]);
    let (token, _) = rig.prepare("v", "s");
    let begun = rig.op(MapOp::SnapshotBegin, handle, token);
    let new = Epoch(begun.values[0]);
    let first = |rig: &mut Rig, epoch: Epoch, block: u64| {
        rig.put(own, epoch, block, block);
        rig.written(handle, block, 1, epoch).result.unwrap();
    };
    // The snapshot logs what came after this one, and not this one.
    first(&mut rig, new, 1000);
    for block in 1..64 {
        first(&mut rig, old, block * 2);
    }
    rig.sync();
    let committed = rig.op(MapOp::SnapshotCommit, handle, token);
    committed.result.unwrap();
    // The next record's slot is that of the first.
    first(&mut rig, new, 2000);
    rig.restart();
    let handle = rig.open(own, true);
    for block in [1000, 2000, 2, 126] {
        assert_eq!(rig.read(handle, block), block);
    }
}

#[test]
fn a_journal_says_nothing_of_what_another_node_wrote_since() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    let handle = rig.open(own, true);
    rig.write(own, handle, 3, 7);
    rig.flush(handle).unwrap();
    rig.zero(handle, 3, 1).result.unwrap();
    // The node is cut off. Another one takes the volume, writes, and dies; then the first is there again, not rebooted.
    let pool = std::mem::take(&mut rig.pool);
    let mut other = Rig::on(small(), pool, MemoryJournals::new(64));
    let handle = other.open(own, true);
    assert_eq!(other.read(handle, 3), 7);
    other.write(own, handle, 3, 8);
    other.sync();
    let pool = std::mem::take(&mut other.pool);
    let mut rig = Rig::on(small(), pool, rig.journals.clone());
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 3), 8);
}

#[test]
fn the_log_goes_round_and_a_reopen_reads_little() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 30, ObjectSize::MIN);
    let handle = rig.open(own, true);
    for round in 0..200 {
        rig.write(own, handle, round * 3, round + 1);
        rig.flush(handle).unwrap();
    }
    assert!(rig.mapper.counters().checkpoints > 5);
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    for round in 0..200 {
        assert_eq!(rig.read(handle, round * 3), round + 1);
    }
    rig.close(handle);
    let before = rig.pool.log.len();
    rig.open(own, true);
    assert_eq!(
        rig.pool.log.len() - before,
        2,
        "read the head, swap the head"
    );
}

#[test]
fn shrinking_drops_what_lies_beyond_for_good() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    let name = || "v".parse().unwrap();
    let handle = rig.open(own, true);
    for block in [0, 2, 3, 100] {
        rig.write(own, handle, block, 0x0101_0101_0101_0101 * (block + 1));
    }
    let shrink = CatalogueRequest::Resize {
        name: name(),
        size: 3 * 4096 + 512,
        force: true,
    };
    assert_eq!(rig.refused(shrink.clone()), ErrorCode::InUse);
    rig.close(handle);
    let mild = CatalogueRequest::Resize {
        name: name(),
        size: 3 * 4096 + 512,
        force: false,
    };
    assert_eq!(rig.refused(mild), ErrorCode::Invalid);
    rig.entry(shrink);
    let handle = rig.open(own, true);
    assert_eq!(
        rig.locate(handle, 4, 1, false).result,
        Err(ErrorCode::Invalid)
    );
    let grown = rig.entry(CatalogueRequest::Resize {
        name: name(),
        size: TIB,
        force: false,
    });
    assert_eq!(grown.size, TIB);
    assert_eq!(rig.read(handle, 2), 0x0303_0303_0303_0303);
    assert_eq!(rig.read(handle, 100), 0);
    let place = rig.locate(handle, 3, 1, false);
    let id = archipelago_protocol::object::ObjectId::data(own, Epoch(place.values[0]));
    let request = archipelago_protocol::object::ObjectRequest {
        offset: 3 * 4096,
        len: 4096,
        ..archipelago_protocol::object::ObjectRequest::new(ObjectOp::Read, id)
    };
    let (_, bytes) = rig.pool.serve(&request, &[]);
    assert!(
        bytes[..512].iter().all(|byte| *byte == 4) && bytes[512..].iter().all(|byte| *byte == 0)
    );
    rig.write(own, handle, TIB / 4096 - 1, 9);
    assert_eq!(rig.read(handle, TIB / 4096 - 1), 9);
}
