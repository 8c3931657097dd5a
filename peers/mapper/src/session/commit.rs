//! Logging dirty metadata, and the blocks that a small flush has the log keep.

use std::rc::Rc;

use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::map::{FLAG_HOME, MapRequest};
use archipelago_protocol::{Epoch, ErrorCode};

use super::checkpoint::checkpoint_holding;
use crate::failure::{Failure, Outcome};
use crate::format::Writer;
use crate::log::{Content, RECORDS_PER_UNIT, Record, RecordKind, UNIT, batch_len};
use crate::parts::Parts;
use crate::task::Guard;
use crate::volume::{Select, Volume};

/// What is known of the home locations of the data that the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HomeLocations {
    /// Nothing new.
    Unknown,
    /// All data is durable there.
    Synced,
}

/// Records and journaled blocks as batches of at most `batch_max` bytes, journaled blocks first: one whose presence is not
/// logged yet does no harm, presence without content would. Journaled blocks get the sequence number `cut`: what became
/// zeros before it was written again, although its record may stand in a later batch.
fn batches(records: &[Record], data: &JournaledData, cut: u64, batch_max: usize) -> Vec<Content> {
    let blocks = data.iter().map(|(of, content)| {
        let record = Record {
            blocks: 1,
            start: of.block,
            sequence: cut,
            ..Record::mark(RecordKind::Journaled, of.epoch)
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
    parts: &Rc<Parts>,
    volume: &Rc<Volume>,
    request: &MapRequest,
    data: JournaledData,
) -> Outcome<()> {
    {
        let map = volume.map.borrow();
        let legal = data
            .iter()
            .all(|(of, _)| of.block < map.blocks() && map.may_be_written(of.epoch));
        if !legal || request.flags & FLAG_HOME != 0 && !data.is_empty() {
            return Err(Failure::new(
                ErrorCode::Invalid,
                "journaled blocks are not what this session could have written",
            ));
        }
    }
    let home = if request.flags & FLAG_HOME == 0 {
        HomeLocations::Unknown
    } else {
        HomeLocations::Synced
    };
    let select = Select::UpTo(request.operand[0]);
    commit(parts, volume, select, &data, home).await
}

/// Logs what `select` takes and `data`, durably. The data of what it takes is durable already, or among `data`.
pub(super) async fn commit(
    parts: &Rc<Parts>,
    volume: &Rc<Volume>,
    select: Select,
    data: &JournaledData,
    home: HomeLocations,
) -> Outcome<()> {
    let guard = volume.hold_commits().await;
    volume.check()?;
    let (mut records, last) = {
        let map = volume.map.borrow();
        (map.dirty().selected(select), map.dirty().next_sequence())
    };
    let says_written_back = home == HomeLocations::Synced && volume.log.holds_data();
    if says_written_back {
        records.insert(0, Record::mark(RecordKind::WrittenBack, Epoch(0)));
    }
    if records.is_empty() && data.is_empty() {
        return Ok(());
    }
    let batch_max = volume.log.batch_max(parts.pool.config.io_len_max);
    let contents = batches(&records, data, select.cut(), batch_max);
    let len: usize = contents.iter().map(Content::batch_len).sum();
    let rest = volume.map.borrow().dirty().count_left(select);
    // All of it or nothing, and what stays pending has room afterwards, too.
    let needed = len + rest.div_ceil(RECORDS_PER_UNIT) * UNIT;
    let most = volume.log.len_max(batch_max);
    make_room(parts, volume, &guard, needed.min(most), batch_max).await?;
    for content in contents {
        make_room(parts, volume, &guard, content.batch_len(), batch_max).await?;
        let appended = volume.log.append(&parts.pool.disk, &content).await;
        volume.stop_if_failed(&parts.pool, appended)?;
        let position = volume.log.position();
        volume.map.borrow_mut().dirty_mut().mark(position);
        parts.pool.count(|counters| {
            counters.log_batches += 1;
            counters.journaled_blocks += (content.blocks.len() / UNIT) as u64;
        });
        if !content.blocks.is_empty() {
            volume.log.data_appended();
        }
    }
    if says_written_back {
        volume.log.data_written_back();
    }
    // What came in meanwhile stays.
    let mut map = volume.map.borrow_mut();
    map.dirty_mut().logged(select, last);
    Ok(())
}

/// Logs all that is dirty, after a sync of the pool.
pub(super) async fn sync_and_commit(
    parts: &Rc<Parts>,
    volume: &Rc<Volume>,
    home: HomeLocations,
) -> Outcome<()> {
    let cut = volume.map.borrow().dirty().last_sequence();
    let synced = parts.sync_pool().await;
    volume.stop_if_failed(&parts.pool, synced)?;
    let nothing = JournaledData::default();
    commit(parts, volume, Select::UpTo(cut), &nothing, home).await
}

/// Sees to it that the log has room for another record that is pending.
pub(super) async fn make_records_room(parts: &Rc<Parts>, volume: &Rc<Volume>) -> Outcome<()> {
    let guard = volume.hold_commits().await;
    volume.check()?;
    let io_len_max = parts.pool.config.io_len_max;
    let has_room = || volume.map.borrow().dirty().len() < volume.log.records_room(io_len_max);
    checkpoint_unless(parts, volume, &guard, has_room).await
}

async fn make_room(
    parts: &Rc<Parts>,
    volume: &Rc<Volume>,
    guard: &Guard,
    len: usize,
    batch_max: usize,
) -> Outcome<()> {
    let has_room = || volume.log.has_room(len, batch_max);
    checkpoint_unless(parts, volume, guard, has_room).await
}

/// Makes a checkpoint, which empties the log, unless the log has room as it is.
async fn checkpoint_unless(
    parts: &Rc<Parts>,
    volume: &Rc<Volume>,
    guard: &Guard,
    has_room: impl Fn() -> bool,
) -> Outcome<()> {
    if has_room() {
        return Ok(());
    }
    checkpoint_holding(parts, volume, guard).await?;
    if has_room() {
        return Ok(());
    }
    let why = format!("the log of {} is too small", volume.lineage);
    Err(Failure::new(ErrorCode::Internal, why))
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::journaled::{JournaledBlockId, area_len};

    use super::*;

    fn data_of(blocks: &[u64]) -> JournaledData {
        let mut area = vec![0; usize::try_from(area_len(blocks.len())).unwrap()];
        for (index, block) in blocks.iter().enumerate() {
            let of = JournaledBlockId {
                epoch: Epoch(3),
                block: *block,
            };
            area[index * JournaledBlockId::LEN..][..JournaledBlockId::LEN]
                .copy_from_slice(&of.encode());
            area[(index + 1) * UNIT..][..UNIT].fill(u8::try_from(*block).unwrap());
        }
        JournaledData::new(area).unwrap()
    }

    /// Records and journaled blocks of each batch of at most four units.
    fn lens(records: usize, blocks: &[u64]) -> Vec<(usize, usize)> {
        let records = vec![Record::present(0, 1, 3, 1); records];
        let batches = batches(&records, &data_of(blocks), 9, 4 * UNIT);
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
        // Four units of 3904 bytes, less 72: 485 records, or three blocks with 101.
        assert_eq!(batches(&[], &JournaledData::default(), 9, 4 * UNIT), []);
        assert_eq!(lens(485, &[]), [(485, 0)]);
        assert_eq!(lens(486, &[]), [(485, 0), (1, 0)]);
        assert_eq!(lens(98, &[1, 2, 3]), [(101, 3)]);
        assert_eq!(lens(99, &[1, 2, 3]), [(101, 3), (1, 0)]);
        assert_eq!(lens(1, &[1, 2, 3, 4]), [(3, 3), (2, 1)]);
    }

    #[test]
    fn a_journaled_block_has_a_record_with_the_cut_of_its_flush() {
        let batches = batches(
            &[Record::present(5, 1, 3, 8)],
            &data_of(&[5, 7]),
            9,
            4 * UNIT,
        );
        let [content] = batches.as_slice() else {
            panic!("{}", batches.len());
        };
        let journaled = |start| Record {
            kind: RecordKind::Journaled,
            ..Record::present(start, 1, 3, 9)
        };
        assert_eq!(
            Record::decode_all(&content.payload).unwrap(),
            [journaled(5), journaled(7), Record::present(5, 1, 3, 8)]
        );
        assert_eq!(content.blocks, [[5; UNIT], [7; UNIT]].concat());
    }
}
