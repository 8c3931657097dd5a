//! Recovery after an unclean end, in this order: seal the log with the generation to come (the session before appends nothing
//! more, wherever it lives), sync the pool (what a dead process had acknowledged is durable afterwards),
//! replay the log, then the presence journal of the same generation and boot, or else write the data that the log holds to
//! its home location. The volume can be read then. `begin` stores the tree that results, and only then swaps the head: new
//! generation, new epoch, new root, log from its end on. A crash before the swap leaves everything as it was.

use std::collections::VecDeque;
use std::rc::Rc;

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{BLOCK_SIZE, Epoch};

use super::pages::with_pages;
use crate::failure::{Failure, Outcome};
use crate::head::VolumeHead;
use crate::journal::JournalRecord;
use crate::log::{Reach, Record, RecordKind};
use crate::parts::Parts;
use crate::volume::{JournaledBlock, JournaledBlocks, Volume};

/// Brings the tree in memory to the state that must survive; the head that is to name it. Of the log and the journal it
/// takes nothing away: should the session never begin, another recovery finds both.
pub(super) async fn recover(
    parts: &Parts,
    volume: &Rc<Volume>,
    mut next: VolumeHead,
) -> Outcome<VolumeHead> {
    let (pool, lineage) = (&parts.pool, volume.lineage);
    let mut log = volume.log.to_replay();
    log.seal(&pool.disk, next.generation).await?;
    // Taken before the sync that makes it true: a failed sync of somebody else voids journals, and this one is right if our
    // own sync succeeds before that.
    let journal = pool.journals.load(lineage)?;
    let synced = parts.sync_pool().await;
    pool.journals.confirm_suspected(lineage);
    // Reported now, whosever sync it was that failed.
    let lost = pool.journals.see_lost(lineage);
    synced?;
    if lost {
        return Err(Failure::lost(lineage));
    }
    let journal = journal.filter(|journal| journal.generation == log.generation);
    let logged = journal.as_ref().and_then(|journal| journal.logged);
    let reach = logged.map_or(Reach::Unknown, Reach::AtLeast);
    let mut records = Vec::new();
    let mut data = JournaledBlocks::default();
    let writers = log.of_session();
    for content in log.replay(&pool.disk, writers, reach).await? {
        let batch = Record::decode_all(&content.payload).map_err(|why| log.damaged(&why))?;
        data.replay(&batch, content.blocks)
            .map_err(|why| log.damaged(&why.to_string()))?;
        records.extend(batch);
    }
    let (mut dirty, holds_data) = (VecDeque::new(), !data.is_empty());
    if let Some(journal) = journal {
        // The machine lives: what was journaled is at its home location, or something newer is.
        dirty.extend(journal.records.iter().map(record_of));
    } else {
        write_back(parts, volume, data).await?;
    }
    records.extend(&dirty);
    for record in &records {
        let step = || {
            let mut map = volume.map.borrow_mut();
            map.replay(&pool.pages.cache(), record)
        };
        with_pages(parts, volume, step).await?;
    }
    next.epoch = Epoch(next.generation.0 << 32);
    volume.map.borrow_mut().dirty_mut().recovered(dirty);
    volume.log.replayed(log, holds_data);
    Ok(next)
}

fn record_of(record: &JournalRecord) -> Record {
    Record {
        kind: if record.zero {
            RecordKind::Zero
        } else {
            RecordKind::Present
        },
        blocks: record.blocks,
        start: record.start,
        epoch: record.epoch,
        sequence: record.sequence,
    }
}

/// Writes journaled blocks to their home locations, durably.
async fn write_back(parts: &Parts, volume: &Volume, data: JournaledBlocks) -> Outcome<()> {
    if data.is_empty() {
        return Ok(());
    }
    let (pool, count) = (&parts.pool, data.len());
    for JournaledBlock { place, content } in data.into_blocks() {
        let id = ObjectId::data(volume.lineage, place.epoch);
        let offset = place.block * BLOCK_SIZE;
        pool.disk
            .write_data(id, volume.object_size, offset, &content)
            .await?;
    }
    parts.sync_pool().await?;
    pool.count(|counters| counters.recovered_blocks += count);
    Ok(())
}
