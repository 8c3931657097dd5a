//! Logs go round, also in batches of several units, and what stands in them is told apart.

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::check::{FindingKind, Report};
use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::log_sector::{CONTENT_LEN, sectors};
use archipelago_protocol::map::{MapOp, MapRequest};
use archipelago_protocol::object::{FLAG_DURABLE, ObjectId, ObjectKind, ObjectOp, ObjectRequest};
use archipelago_protocol::{Epoch, ErrorCode, Generation, Lineage, ObjectSize};

use crate::rig::pool::{Left, Pool};
use crate::rig::{Rig, blocks_area, small};

fn read(pool: &mut Pool, id: ObjectId, offset: u64, len: u32) -> Vec<u8> {
    let request = ObjectRequest {
        offset,
        len,
        ..ObjectRequest::new(ObjectOp::Read, id)
    };
    let (reply, data) = pool.serve(&request, &[]);
    reply.result.unwrap();
    data
}

fn write(pool: &mut Pool, id: ObjectId, offset: u64, data: &[u8]) {
    let request = ObjectRequest {
        offset,
        flags: FLAG_DURABLE,
        len: u32::try_from(data.len()).unwrap(),
        ..ObjectRequest::new(ObjectOp::Write, id)
    };
    pool.serve(&request, data).0.result.unwrap();
}

fn delete(pool: &mut Pool, id: ObjectId) {
    let request = ObjectRequest::new(ObjectOp::Delete, id);
    pool.serve(&request, &[]).0.result.unwrap();
}

#[test]
fn batches_of_every_length_go_round_the_log() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 30, ObjectSize::DEFAULT);
    let mut handle = rig.open(own, true);
    for round in 1..60 {
        // Up to three blocks: one to four units of a log of sixteen.
        let blocks: Vec<u64> = (0..round % 4).map(|index| round * 4 + index).collect();
        let epoch = Epoch(rig.locate(handle, round * 4, 1, true).values[0]);
        for block in &blocks {
            rig.put(own, epoch, *block, *block);
            rig.written(handle, *block, 1, epoch).result.unwrap();
        }
        if blocks.is_empty() {
            rig.write(own, handle, round * 4, round * 4);
            rig.flush(handle).unwrap();
        } else {
            rig.flush_with_data(handle, 0, blocks_area(epoch, &blocks))
                .unwrap();
        }
        if round % 7 == 0 {
            rig.power_cut(|| false);
            handle = rig.open(own, true);
            for block in 4..round * 4 {
                let written = block % 4 == 0 || block % 4 < block / 4 % 4;
                let expected = if written { block } else { 0 };
                assert_eq!(rig.read(handle, block), expected, "after round {round}");
            }
        }
    }
    assert!(rig.mapper.counters().checkpoints > 0);
    let stat = ObjectRequest::new(ObjectOp::Stat, ObjectId::log(own, 1));
    let (stat, _) = rig.pool.serve(&stat, &[]);
    assert_eq!(
        stat.values[1],
        64 << 10,
        "nothing was written behind its end"
    );
}

/// A batch that was read and never durable stands in front of the position that a new head names; then a power cut takes it.
#[test]
fn a_log_that_has_lost_a_batch_which_nobody_needs_is_appended_to() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 1, 7);
    rig.flush(handle).unwrap();
    rig.write(own, handle, 2, 8);
    let begun = rig.op(MapOp::FlushBegin, handle, 0);
    rig.sync();
    rig.pool.fail_done(Left::Lost);
    let failed = rig.op(MapOp::FlushCommit, handle, begun.values[0]).result;
    assert_eq!(failed, Err(ErrorCode::SyncFailed));
    rig.op(MapOp::Abandon, handle, 0).result.unwrap();
    rig.open(own, true);
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 1), 7);
    for block in 3..100 {
        rig.write(own, handle, block, block);
        rig.flush(handle).unwrap();
    }
    rig.power_cut(|| false);
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 99), 99);
    rig.close(handle);
    rig.assert_clean();
}

#[test]
fn a_batch_that_ends_with_the_circle_needs_no_padding() {
    let (mut rig, own, handle) = Rig::opened();
    let before = rig.pool.log.len();
    for block in 0..40 {
        rig.write(own, handle, block * 2, 1);
        rig.flush(handle).unwrap();
    }
    let appended = rig.pool.count(before, ObjectOp::Append, ObjectKind::Log);
    assert_eq!(appended, 40, "as many units");
}

/// What a session had in flight may land at any time, also where the log ended for it.
#[test]
fn a_session_that_was_replaced_is_sealed_off_before_its_log_is_read() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 1, 1);
    rig.flush(handle).unwrap();
    let before = rig.pool.log.len();
    rig.restart();
    rig.open(own, true);
    let requests = &rig.pool.log[before..];
    let first = requests
        .iter()
        .find(|(_, id, _)| *id == ObjectId::log(own, 1));
    assert_eq!(first.map(|(op, ..)| *op), Some(ObjectOp::Seal));
    // Two batches of the catalogue, its mapper's start and the volume. Another mapper has started since, and nothing else.
    for (lineage, position) in [(own, 4096), (Lineage::CATALOGUE, 8192)] {
        let log = ObjectId::log(lineage, 1);
        let batch = sectors(&[0; CONTENT_LEN * 8], lineage, position, Generation(1));
        let late = ObjectRequest {
            offset: position,
            len: u32::try_from(batch.len()).unwrap(),
            token: Generation(1),
            ..ObjectRequest::new(ObjectOp::Append, log)
        };
        let (reply, _) = rig.pool.serve(&late, &batch);
        assert_eq!(reply.result, Err(ErrorCode::Stale), "{log:?}");
    }
}

#[test]
fn a_log_that_is_missing_or_too_short_is_damage() {
    for kept in [0, 32 << 10, (64 << 10) - 512, 64 << 10] {
        let (mut rig, own, handle) = Rig::opened();
        rig.write(own, handle, 1, 1);
        rig.flush(handle).unwrap();
        let log = ObjectId::log(own, 1);
        let whole = read(&mut rig.pool, log, 0, 64 << 10);
        delete(&mut rig.pool, log);
        if kept > 0 {
            write(&mut rig.pool, log, 0, &whole[..kept]);
        }
        rig.power_cut(|| false);
        if kept == whole.len() {
            rig.open(own, true);
            continue;
        }
        let why = rig.damage_at_open(own);
        let expected = match kept {
            0 => "it is missing".to_owned(),
            _ => format!("it has {kept} bytes of 65536"),
        };
        assert!(why.contains(&expected), "{why}");
    }
}

#[test]
fn without_a_mark_of_its_journal_all_of_a_log_is_judged() {
    let (mut rig, own, handle) = Rig::opened();
    let log = ObjectId::log(own, 1);
    let blank = read(&mut rig.pool, log, 0, 4096);
    for block in 0..2 {
        rig.write(own, handle, block, 1);
        rig.flush(handle).unwrap();
    }
    // A lost append: nothing is wrong with what stands there, but for what follows it.
    write(&mut rig.pool, log, 0, &blank);
    rig.journals.lose_marks();
    rig.restart();
    assert!(rig.damage_at_open(own).contains("follows it"));
}

fn checked(rig: &mut Rig) -> Report {
    match rig.control(CatalogueRequest::Check { repair: false }) {
        CatalogueReply::Report(report) => report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_an_interrupted_append_left_is_a_note() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 1, 1);
    rig.flush(handle).unwrap();
    let before = rig.pool.clone();
    rig.write(own, handle, 2, 2);
    rig.flush(handle).unwrap();
    let log = ObjectId::log(own, 1);
    let second = read(&mut rig.pool, log, 4096, 512);
    rig.pool = before;
    rig.restart();
    let report = checked(&mut rig);
    assert!(report.clean && report.findings.is_empty(), "{report:?}");
    write(&mut rig.pool, log, 4096, &second);
    rig.restart();
    let report = checked(&mut rig);
    let [found] = report.findings.as_slice() else {
        panic!("{report:?}");
    };
    assert!(report.clean);
    assert_eq!(found.kind, FindingKind::Remnant);
    let place =
        "ends at position 4096, an append was interrupted: something stands at position 4096";
    assert!(found.message.contains(place), "{}", found.message);
}

#[test]
fn a_log_that_was_not_finished_is_not_taken_for_one_with_names() {
    // What a first start was writing when the power went: sectors that hold nothing yet. And what it never wrote.
    for (left, begun_anew) in [(0, true), (1, false)] {
        let mut rig = Rig::new(small());
        rig.pool.begin_catalogue(64 << 10);
        let log = ObjectId::log(Lineage::CATALOGUE, 1);
        write(&mut rig.pool, log, 8192, &[left; 1024]);
        rig.power_cut(|| false);
        assert_eq!(rig.mapper.failure().is_none(), begun_anew, "{left}");
    }
}

#[test]
fn a_log_that_is_half_full_is_begun_anew_beside_the_flushes() {
    let (mut rig, own, handle) = Rig::opened();
    for units in 1..=17 {
        rig.write(own, handle, units * 2, 1);
        rig.flush(handle).unwrap();
        assert_eq!(
            rig.mapper.counters().checkpoints,
            units / 8,
            "{units} units"
        );
    }
}

#[test]
fn what_the_log_carries_is_not_missed() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 30, ObjectSize::MIN);
    let handle = rig.open(own, true);
    let epoch = Epoch(rig.locate(handle, 5, 1, true).values[0]);
    rig.written(handle, 5, 1, epoch).result.unwrap();
    rig.flush_with_data(handle, 0, blocks_area(epoch, &[5]))
        .unwrap();
    rig.power_cut(|| false);
    let report = checked(&mut rig);
    assert!(report.clean && report.findings.is_empty(), "{report:?}");
    // The same without the copy is a block that is missing.
    let handle = rig.open(own, true);
    let epoch = Epoch(rig.locate(handle, 40, 1, true).values[0]);
    rig.written(handle, 40, 1, epoch).result.unwrap();
    rig.flush_with_data(handle, 0, JournaledData::default())
        .unwrap();
    rig.power_cut(|| false);
    let report = checked(&mut rig);
    assert!(!report.clean, "{report:?}");
}

#[test]
fn a_log_of_a_durable_pool_is_made_by_its_length_and_read_as_if_it_were_blank() {
    let (mut rig, own, mut handle) = Rig::durable();
    let log = ObjectId::log(own, 1);
    let writes = |rig: &Rig| rig.pool.count(0, ObjectOp::Write, ObjectKind::Log);
    assert_eq!(writes(&rig), 2, "that of the catalogue and that of `v`");
    let stat = ObjectRequest::new(ObjectOp::Stat, log);
    assert_eq!(rig.pool.serve(&stat, &[]).0.values[1], 64 << 10);
    assert_eq!(read(&mut rig.pool, log, 0, 4096), [0; 4096]);
    // Twice round, with a power cut and a look at all of it now and then.
    for block in 0..40 {
        let before = rig.pool.log.len();
        assert!(rig.write(own, handle, block * 2, block + 1));
        rig.flush(handle).unwrap();
        let appends = rig.pool.count(before, ObjectOp::Append, ObjectKind::Log);
        assert_eq!(appends, 1, "block {block}");
        if block % 5 == 0 {
            rig.assert_clean();
            rig.power_cut(|| false);
            handle = rig.open(own, true);
        }
        for known in 0..=block {
            assert_eq!(rig.read(handle, known * 2), known + 1, "after {block}");
        }
    }
    assert_eq!(writes(&rig), 2);
    rig.close(handle);
    rig.assert_clean();
}

#[test]
fn an_open_says_whether_completed_writes_are_durable() {
    for (opened, durable) in [(Rig::durable(), true), (Rig::opened(), false)] {
        let (mut rig, own, handle) = opened;
        rig.close(handle);
        let reply = rig.ask(MapRequest::open(own, true));
        assert_eq!(reply.pool_is_durable(), durable);
    }
}

#[test]
fn a_sector_of_a_durable_pool_that_is_neither_whole_nor_zeros_is_damage() {
    let (mut rig, own, handle) = Rig::durable();
    assert!(rig.write(own, handle, 0, 7));
    rig.flush(handle).unwrap();
    rig.pool.damage(ObjectKind::Log, own, 700);
    rig.power_cut(|| false);
    let why = rig.damage_at_open(own);
    assert!(why.contains("the sector at byte 512"), "{why}");
}

#[test]
fn where_writes_have_to_be_synced_a_log_of_zeros_is_damage() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 0, 7);
    rig.flush(handle).unwrap();
    let log = ObjectId::log(own, 1);
    delete(&mut rig.pool, log);
    write(&mut rig.pool, log, (64 << 10) - 512, &[0; 512]);
    rig.power_cut(|| false);
    let why = rig.damage_at_open(own);
    assert!(why.contains("the sector at byte 0"), "{why}");
}
