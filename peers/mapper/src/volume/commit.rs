//! Logging what is present.

use std::rc::Rc;

use archipelago_protocol::{Epoch, ErrorCode};

use super::{Live, Volume};
use crate::core::Core;
use crate::failure::{Failure, Outcome};
use crate::format::Writer;
use crate::log::{Log, Record, RecordKind};
use crate::task::Guard;

/// What a commit takes: what its asker has synced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Select {
    /// Everything up to this sequence number.
    UpTo(u64),
    /// What belongs to this epoch and older ones, and then the freeze.
    Freeze(Epoch),
}

impl Select {
    fn takes(self, record: &Record) -> bool {
        match self {
            Select::UpTo(sequence) => record.sequence <= sequence,
            Select::Freeze(epoch) => record.epoch <= epoch,
        }
    }
}

impl Live {
    /// The records to be logged, neighbours joined.
    fn selected(&self, select: Select) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        for record in self.pending.iter().filter(|record| select.takes(record)) {
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
            records.push(Record {
                kind: RecordKind::Freeze,
                blocks: 0,
                start: 0,
                epoch,
                sequence: 0,
            });
        }
        records
    }
}

/// Logs what `select` takes, durably. Its data is durable already.
pub(super) async fn commit(core: &Rc<Core>, volume: &Rc<Volume>, select: Select) -> Outcome<()> {
    let guard = volume.commit.acquire().await;
    volume.check()?;
    let (records, last) = {
        let live = volume.live.borrow();
        (live.selected(select), live.next_sequence)
    };
    if records.is_empty() {
        return Ok(());
    }
    let batch_max = volume.log.borrow().batch_max(core.config.io_len_max);
    for chunk in records.chunks(Log::payload_max(batch_max) / Record::LEN) {
        let mut payload = Writer::bare();
        chunk.iter().for_each(|record| record.encode(&mut payload));
        let payload = payload.into_bytes();
        make_room(
            core,
            volume,
            &guard,
            Log::batch_len(payload.len()),
            batch_max,
        )
        .await?;
        let appended = Log::append(&volume.log, &core.disk, &payload).await;
        volume.judge(core, appended)?;
        core.count(|counters| counters.log_batches += 1);
    }
    let mut live = volume.live.borrow_mut();
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

async fn make_room(
    core: &Rc<Core>,
    volume: &Rc<Volume>,
    guard: &Guard,
    len: usize,
    batch_max: usize,
) -> Outcome<()> {
    if volume.log.borrow().has_room(len, batch_max) {
        return Ok(());
    }
    volume.checkpoint_holding(core, guard).await?;
    if volume.log.borrow().has_room(len, batch_max) {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::Internal,
        "the log is too small for a batch",
    ))
}
