//! The catalogue from the pool into memory: the head, the checkpoint that it names, and what was appended since.
//!
//! Others change the catalogue meanwhile. What they append later is not missed: it is read on. What they take away (an old
//! checkpoint, log space that goes round) looks like damage, and is none if the head has changed, or the damage is another one the
//! next time.

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{ErrorCode, Generation, Lineage};

use super::checkpoint;
use super::names::Names;
use super::record::Change;
use crate::failure::{Failure, Outcome};
use crate::head::CatalogueHead;
use crate::log::{Log, Reach, Writers};
use crate::pool::Pool;

/// Times that the catalogue is read while others change it. Each change of the head in between is a checkpoint or a start of others,
/// both of which are rare.
const LOADS_MAX: usize = 64;

/// The catalogue as it is stored.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) head: CatalogueHead,
    /// Of the head.
    pub(crate) version: u64,
    pub(crate) names: Names,
    /// Its position is where the catalogue was read to.
    pub(crate) log: Log,
}

/// Whether what is read is made durable before: somebody may have died between writing and syncing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncLog {
    First,
    No,
}

/// Reads the catalogue; `None`: there is none.
pub(crate) async fn load(pool: &Pool, sync: SyncLog) -> Outcome<Option<Loaded>> {
    let mut seen: Option<(u64, Failure)> = None;
    for _ in 0..LOADS_MAX {
        let Some((version, bytes)) = read_head(pool).await? else {
            return Ok(None);
        };
        let head = CatalogueHead::decode(&bytes)?;
        if sync == SyncLog::First {
            pool.disk.sync(head.log().id).await?;
        }
        match stored(pool, &head).await {
            Ok((names, log)) => {
                return Ok(Some(Loaded {
                    head,
                    version,
                    names,
                    log,
                }));
            }
            Err(failure) if failure.code == ErrorCode::Damaged => {
                let found = (version, failure);
                if seen.as_ref() == Some(&found) {
                    return Err(found.1);
                }
                seen = Some(found);
            }
            Err(failure) => return Err(failure),
        }
    }
    let why = "other nodes replace the catalogue's checkpoint all the time";
    Err(Failure::new(ErrorCode::Unavailable, why))
}

/// The stored head, and its version.
pub(super) async fn read_head(pool: &Pool) -> Outcome<Option<(u64, Vec<u8>)>> {
    let id = ObjectId::head(Lineage::CATALOGUE);
    pool.disk.read_swapped(id).await
}

/// What checkpoint and log hold.
async fn stored(pool: &Pool, head: &CatalogueHead) -> Outcome<(Names, Log)> {
    let mut names = checkpoint::read(&pool.disk, head).await?;
    let mut log = head.log();
    let contents = log.replay(&pool.disk, Writers::Nodes, Reach::Unknown);
    for content in contents.await? {
        for change in Change::decode_all(&content.payload).map_err(|why| log.damaged(&why))? {
            names.apply(change);
        }
    }
    names
        .check()
        .map_err(|why| Failure::damaged(format!("the catalogue contradicts itself: {why}")))?;
    Ok((names, log))
}

/// Makes the log of a pool that has no catalogue; the head that is to name it.
///
/// # Errors
/// [`ErrorCode::Damaged`]: there was a catalogue. [`ErrorCode::Stale`]: another node has just made one.
pub(super) async fn create(pool: &Pool) -> Outcome<CatalogueHead> {
    if pool.disk.holds_volumes().await? {
        return Err(Failure::damaged(
            "the head of the catalogue is missing, but the pool holds volumes",
        ));
    }
    let head = first_head(pool);
    // A first start that was cut short leaves part of a log, or an empty one, never one with names in it.
    let left = head.log();
    let whole = match pool.disk.len(left.id).await {
        Ok(len) => len >= left.len,
        Err(failure) if failure.code == ErrorCode::NotFound => false,
        Err(failure) => return Err(failure),
    };
    if whole && left.is_used(&pool.disk).await? {
        return Err(Failure::damaged(
            "the head of the catalogue is missing, but its log holds names",
        ));
    }
    Log::create(&pool.disk, left.id, head.log_len).await?;
    Ok(head)
}

/// The head of a catalogue that holds nothing yet.
pub(super) fn first_head(pool: &Pool) -> CatalogueHead {
    CatalogueHead {
        generation: Generation(0),
        owner: 0,
        log_number: 1,
        log_len: pool.config.catalogue_log_len,
        log_start: 0,
        pack: 0,
        pack_len: 0,
        pack_capacity: 0,
        entries: 0,
        compatible: 0,
    }
}
