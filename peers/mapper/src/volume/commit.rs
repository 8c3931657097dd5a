//! Logging what is present, and the blocks that a small flush carries.

use std::collections::VecDeque;
use std::rc::Rc;

use archipelago_protocol::carry::Carried;
use archipelago_protocol::map::{FLAG_HOME, MapRequest};
use archipelago_protocol::{Epoch, ErrorCode};

use super::Volume;
use crate::core::Core;
use crate::failure::{Failure, Outcome};
use crate::format::Writer;
use crate::log::{Content, Log, RECORDS_PER_UNIT, Record, RecordKind, UNIT, batch_len};
use crate::task::Guard;

/// What a commit takes: what its asker has synced, or carries.
#[derive(Debug, Clone, Copy)]
pub(super) enum Select {
    /// Everything up to this sequence number.
    UpTo(u64),
    /// What belongs to this epoch and older ones, and then the freeze.
    Freeze(Epoch),
}

/// What is known of the blocks that the log carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// Nothing new.
    Unknown,
    /// All of them are durable where the map says they are.
    Synced,
}

impl Select {
    fn takes(self, record: &Record) -> bool {
        match self {
            Select::UpTo(sequence) => record.sequence <= sequence,
            Select::Freeze(epoch) => record.epoch <= epoch,
        }
    }

    /// Everything up to this sequence number is taken.
    fn cut(self) -> u64 {
        match self {
            Select::UpTo(sequence) => sequence,
            Select::Freeze(_) => 0,
        }
    }
}

impl Record {
    /// One that speaks of no blocks that became present.
    fn mark(kind: RecordKind, epoch: Epoch) -> Record {
        Record {
            kind,
            blocks: 0,
            start: 0,
            epoch,
            sequence: 0,
        }
    }
}

/// Those of the `pending` records that are to be logged, neighbours joined.
fn selected(pending: &VecDeque<Record>, select: Select) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    for record in pending.iter().filter(|record| select.takes(record)) {
        match records.last_mut() {
            Some(last)
                if last.kind == record.kind
                    && last.epoch == record.epoch
                    && last.end() == record.start
                    && last.blocks.checked_add(record.blocks).is_some() =>
            {
                last.blocks += record.blocks;
                last.sequence = record.sequence;
            }
            _ => records.push(*record),
        }
    }
    if let Select::Freeze(epoch) = select {
        records.push(Record::mark(RecordKind::Freeze, epoch));
    }
    records
}

/// Records and carried blocks as batches of at most `batch_max` bytes, carried blocks first: one whose presence is not
/// logged yet does no harm, presence without content would. Carried blocks get the sequence number `cut`: what became
/// zeros before it was written again, although its record may stand in a later batch.
fn batches(records: &[Record], carried: &Carried, cut: u64, batch_max: usize) -> Vec<Content> {
    let blocks = carried.iter().map(|(of, content)| {
        let record = Record {
            blocks: 1,
            start: of.block,
            sequence: cut,
            ..Record::mark(RecordKind::Carried, of.epoch)
        };
        (record, content)
    });
    let all = blocks.chain(records.iter().map(|record| (*record, [].as_slice())));
    let mut batches = Vec::new();
    let (mut payload, mut content) = (Writer::bare(), Vec::new());
    for (record, block) in all {
        let blocks = (content.len() + block.len()) / UNIT;
        if batch_len(payload.len() + Record::LEN, blocks) > batch_max {
            let payload = std::mem::replace(&mut payload, Writer::bare()).into_bytes();
            let blocks = std::mem::take(&mut content);
            batches.push(Content { payload, blocks });
        }
        record.encode(&mut payload);
        content.extend_from_slice(block);
    }
    if payload.len() > 0 {
        let payload = payload.into_bytes();
        batches.push(Content {
            payload,
            blocks: content,
        });
    }
    batches
}

/// A flush of the volume peer.
pub(super) async fn flush_commit(
    core: &Rc<Core>,
    volume: &Rc<Volume>,
    request: &MapRequest,
    carried: Carried,
) -> Outcome<()> {
    {
        let live = volume.live.borrow();
        let legal = carried.iter().all(|(of, _)| {
            of.block < live.blocks() && of.epoch <= live.epoch && of.epoch > live.sealed
        });
        if !legal || request.flags & FLAG_HOME != 0 && !carried.is_empty() {
            return Err(Failure::new(
                ErrorCode::Invalid,
                "carried blocks are not what this session could have written",
            ));
        }
    }
    let home = if request.flags & FLAG_HOME == 0 {
        Home::Unknown
    } else {
        Home::Synced
    };
    let select = Select::UpTo(request.operand[0]);
    commit(core, volume, select, &carried, home).await
}

/// Logs what `select` takes and `carried`, durably. The data of what it takes is durable already, or carried.
pub(super) async fn commit(
    core: &Rc<Core>,
    volume: &Rc<Volume>,
    select: Select,
    carried: &Carried,
    home: Home,
) -> Outcome<()> {
    let guard = volume.commit.acquire().await;
    volume.check()?;
    let (mut records, last) = {
        let live = volume.live.borrow();
        (selected(&live.pending, select), live.next_sequence)
    };
    let says_home = home == Home::Synced && volume.carries(&volume.log.borrow());
    if says_home {
        records.insert(0, Record::mark(RecordKind::Home, Epoch(0)));
    }
    if records.is_empty() && carried.is_empty() {
        return Ok(());
    }
    let batch_max = volume.log.borrow().batch_max(core.config.io_len_max);
    let contents = batches(&records, carried, select.cut(), batch_max);
    let len: usize = contents.iter().map(Content::batch_len).sum();
    let rest = {
        let live = volume.live.borrow();
        let stays = |record: &&Record| !select.takes(record);
        live.pending.iter().filter(stays).count()
    };
    // All of it or nothing, and what stays pending has room afterwards, too.
    let needed = len + rest.div_ceil(RECORDS_PER_UNIT) * UNIT;
    let most = volume.log.borrow().len_max(batch_max);
    make_room(core, volume, &guard, needed.min(most), batch_max).await?;
    for content in contents {
        make_room(core, volume, &guard, content.batch_len(), batch_max).await?;
        let appended = Log::append(&volume.log, &core.disk, &content).await;
        volume.judge(core, appended)?;
        let position = volume.log.borrow().position;
        if let Some(journal) = &mut volume.live.borrow_mut().journal {
            journal.mark(position);
        }
        core.count(|counters| {
            counters.log_batches += 1;
            counters.carried_blocks += (content.blocks.len() / UNIT) as u64;
        });
        if !content.blocks.is_empty() {
            volume.live.borrow_mut().carried_until = volume.log.borrow().position;
        }
    }
    let mut live = volume.live.borrow_mut();
    if says_home {
        live.carried_until = 0;
    }
    // What came in meanwhile stays.
    live.pending
        .retain(|record| record.sequence >= last || !select.takes(record));
    let covered = live
        .pending
        .front()
        .map_or(live.next_sequence, |record| record.sequence)
        - 1;
    if let Some(journal) = &mut live.journal {
        journal.truncate(covered);
    }
    Ok(())
}

/// Sees to it that the log has room for another record that is pending.
pub(super) async fn make_records_room(core: &Rc<Core>, volume: &Rc<Volume>) -> Outcome<()> {
    let guard = volume.commit.acquire().await;
    volume.check()?;
    let has_room = || volume.live.borrow().pending.len() < volume.records_room(core);
    checkpoint_unless(core, volume, &guard, has_room).await
}

async fn make_room(
    core: &Rc<Core>,
    volume: &Rc<Volume>,
    guard: &Guard,
    len: usize,
    batch_max: usize,
) -> Outcome<()> {
    let has_room = || volume.log.borrow().has_room(len, batch_max);
    checkpoint_unless(core, volume, guard, has_room).await
}

/// Makes a checkpoint, which empties the log, unless the log has room as it is.
async fn checkpoint_unless(
    core: &Rc<Core>,
    volume: &Rc<Volume>,
    guard: &Guard,
    has_room: impl Fn() -> bool,
) -> Outcome<()> {
    if has_room() {
        return Ok(());
    }
    volume.checkpoint_holding(core, guard).await?;
    if has_room() {
        return Ok(());
    }
    let why = format!("the log of {} is too small", volume.lineage);
    Err(Failure::new(ErrorCode::Internal, why))
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::carry::{CarriedBlock, area_len};

    use super::*;

    fn present(start: u64, blocks: u32, epoch: u64, sequence: u64) -> Record {
        Record {
            kind: RecordKind::Present,
            blocks,
            start,
            epoch: Epoch(epoch),
            sequence,
        }
    }

    #[test]
    fn neighbours_of_a_kind_and_epoch_become_one_record() {
        let zero = |record: Record| Record {
            kind: RecordKind::Zero,
            ..record
        };
        let join = |first: Record, second: Record| {
            let pending = VecDeque::from([first, second]);
            selected(&pending, Select::UpTo(9))
        };
        let first = present(4, 2, 1, 1);
        assert_eq!(join(first, present(6, 3, 1, 2)), [present(4, 5, 1, 2)]);
        let most = present(0, u32::MAX - 1, 1, 1);
        let end = most.end();
        assert_eq!(join(most, present(end, 1, 1, 2)).len(), 1);
        for (first, second) in [
            (first, present(7, 3, 1, 2)),
            (first, present(5, 3, 1, 2)),
            (first, present(6, 3, 2, 2)),
            (first, zero(present(6, 3, 1, 2))),
            (most, present(end, 2, 1, 2)),
        ] {
            assert_eq!(join(first, second), [first, second]);
        }
    }

    #[test]
    fn a_commit_takes_up_to_its_cut_or_of_its_epoch() {
        let pending = VecDeque::from([
            present(0, 1, 2, 1),
            present(10, 1, 1, 2),
            present(20, 1, 3, 3),
            present(30, 1, 2, 4),
        ]);
        let taken = |select| -> Vec<u64> {
            let records = selected(&pending, select);
            records.iter().map(|record| record.sequence).collect()
        };
        assert_eq!(taken(Select::UpTo(2)), [1, 2]);
        // The freeze itself comes last, without a number.
        assert_eq!(taken(Select::Freeze(Epoch(2))), [1, 2, 4, 0]);
        let freeze = selected(&pending, Select::Freeze(Epoch(2)))[3];
        assert_eq!((freeze.kind, freeze.epoch), (RecordKind::Freeze, Epoch(2)));
        assert_eq!(Select::UpTo(7).cut(), 7);
    }

    fn carrying(blocks: &[u64]) -> Carried {
        let mut area = vec![0; usize::try_from(area_len(blocks.len())).unwrap()];
        for (index, block) in blocks.iter().enumerate() {
            let of = CarriedBlock {
                epoch: Epoch(3),
                block: *block,
            };
            area[index * CarriedBlock::LEN..][..CarriedBlock::LEN].copy_from_slice(&of.encode());
            area[(index + 1) * UNIT..][..UNIT].fill(u8::try_from(*block).unwrap());
        }
        Carried::new(area).unwrap()
    }

    /// Records and carried blocks of each batch of at most four units.
    fn lens(records: usize, blocks: &[u64]) -> Vec<(usize, usize)> {
        let records = vec![present(0, 1, 3, 1); records];
        let batches = batches(&records, &carrying(blocks), 9, 4 * UNIT);
        let len = |content: &Content| {
            assert!(content.batch_len() <= 4 * UNIT);
            (
                content.payload.len() / Record::LEN,
                content.blocks.len() / UNIT,
            )
        };
        batches.iter().map(len).collect()
    }

    #[test]
    fn a_batch_is_filled_before_another_is_begun() {
        // Four units of 3904 bytes, less 64: 486 records, or three blocks with 102.
        assert_eq!(batches(&[], &Carried::default(), 9, 4 * UNIT), []);
        assert_eq!(lens(486, &[]), [(486, 0)]);
        assert_eq!(lens(487, &[]), [(486, 0), (1, 0)]);
        assert_eq!(lens(99, &[1, 2, 3]), [(102, 3)]);
        assert_eq!(lens(100, &[1, 2, 3]), [(102, 3), (1, 0)]);
        assert_eq!(lens(1, &[1, 2, 3, 4]), [(3, 3), (2, 1)]);
    }

    #[test]
    fn a_carried_block_has_a_record_with_the_cut_of_its_flush() {
        let batches = batches(&[present(5, 1, 3, 8)], &carrying(&[5, 7]), 9, 4 * UNIT);
        let [content] = batches.as_slice() else {
            panic!("{}", batches.len());
        };
        let carried = |start| Record {
            kind: RecordKind::Carried,
            ..present(start, 1, 3, 9)
        };
        assert_eq!(
            Record::decode_all(&content.payload).unwrap(),
            [carried(5), carried(7), present(5, 1, 3, 8)]
        );
        assert_eq!(content.blocks, [[5; UNIT], [7; UNIT]].concat());
    }
}
