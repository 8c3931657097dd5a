//! Logging what is present, and the blocks that a small flush carries.

use std::rc::Rc;

use archipelago_protocol::carry::Carried;
use archipelago_protocol::map::{FLAG_HOME, MapRequest};
use archipelago_protocol::{Epoch, ErrorCode};

use super::{Live, Volume};
use crate::core::Core;
use crate::failure::{Failure, Outcome};
use crate::format::Writer;
use crate::log::{Content, Log, Record, RecordKind, UNIT, batch_len};
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
            records.push(Record::mark(RecordKind::Freeze, epoch));
        }
        records
    }
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
        (live.selected(select), live.next_sequence)
    };
    let says_home = home == Home::Synced && volume.carries(&volume.log.borrow());
    if says_home {
        records.insert(0, Record::mark(RecordKind::Home, Epoch(0)));
    }
    if records.is_empty() && carried.is_empty() {
        return Ok(());
    }
    let batch_max = volume.log.borrow().batch_max(core.config.io_len_max);
    for content in batches(&records, carried, select.cut(), batch_max) {
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
