//! Volumes in memory: sessions, the live tree, what is present and not logged, and the work on them.
//!
//! Invariants
//! - Locks are taken in this order: the lineage's, `commit`, `checkpoint`. One batch and one head swap in flight.
//! - `pending` holds, in order, what the tree knows and the log does not; a record leaves it when its batch is durable.
//! - A page or batch is durable only after the data that it speaks of, or a batch together with it: commits take what the
//!   volume peer has synced, or carry it; checkpoints and closes sync the pool first if anything is pending or carried.
//! - After a failed sync, append or swap the volume is poisoned: it writes nothing until it was opened again. After a
//!   failed sync of the pool all are.

mod apply;
mod begin;
mod carried;
mod checkpoint;
mod closed;
mod commit;
mod lineages;
mod locate;
mod open;
mod session;
mod snapshot;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use archipelago_protocol::map::MapRequest;
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Lineage, ObjectSize};

use crate::core::Core;
use crate::effect::ClientId;
use crate::failure::{Failure, Outcome};
use crate::head::{StoredHead, VolumeHead};
use crate::journal::Journal;
use crate::log::{Log, Record};
use crate::task::{Guard, Lock};
use crate::tree::{Missing, Range, Tree};

use begin::{Beginner, Due};
use lineages::LineageNumbers;

pub(crate) use carried::CarriedBlocks;
pub(crate) use closed::{freeze_closed, shrink};
pub(crate) use open::read_head;
pub(crate) use session::{client_gone, dispatch};

/// A volume, snapshot or image that is open, or whose client has gone.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) lineage: Lineage,
    pub(crate) object_size: ObjectSize,
    /// One batch at a time; held while a checkpoint takes its picture.
    commit: Lock,
    /// One checkpoint, and one head swap, at a time.
    checkpoint: Lock,
    head: StoredHead<VolumeHead>,
    log: RefCell<Log>,
    pub(crate) live: RefCell<Live>,
}

/// What changes while a volume is open.
#[derive(Debug)]
pub(crate) struct Live {
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) writer: Option<u32>,
    pub(crate) readers: u32,
    /// Why nothing may be written any more.
    poison: Option<ErrorCode>,
    /// Nobody may write: a frozen thing, or a closed volume opened for reading.
    read_only: bool,
    tree: Tree,
    /// Of new objects.
    epoch: Epoch,
    /// Objects of this epoch and older ones are not owned.
    frozen: Epoch,
    /// Objects of this epoch and older ones belong to a snapshot that exists or is being stored.
    sealed: Epoch,
    pending: VecDeque<Record>,
    /// Log position behind the last batch with carried blocks; 0: none of this session, or all of them are home.
    carried_until: u64,
    next_sequence: u64,
    journal: Option<Box<dyn Journal>>,
    /// What has to be written before the session may write.
    due: Option<Due>,
    /// Requests that wait for a try to write it.
    beginning: Vec<Beginner>,
    snapshot: Option<Snapshotting>,
    /// Requests that wait until something was logged.
    held: VecDeque<(ClientId, u64, MapRequest)>,
    relieving: bool,
    checkpointing: bool,
    /// Pages of this session go here.
    pack: u64,
    pack_offset: u64,
    lineages: LineageNumbers,
}

/// A snapshot between its begin and its commit.
#[derive(Debug)]
struct Snapshotting {
    token: u64,
    /// What is frozen; writes of the old epoch still come in.
    tree: Tree,
    epoch: Epoch,
    size: u64,
    /// Zeroed in the live tree since the begin: a late write of the old epoch does not come back there.
    zeroed: Vec<Range>,
    committing: bool,
}

impl Volume {
    fn new(
        core: &Core,
        lineage: Lineage,
        object_size: ObjectSize,
        head: StoredHead<VolumeHead>,
        log: Log,
        live: Live,
    ) -> Rc<Self> {
        Rc::new(Volume {
            lineage,
            object_size,
            commit: Lock::new(&core.scheduler),
            checkpoint: Lock::new(&core.scheduler),
            head,
            log: RefCell::new(log),
            live: RefCell::new(live),
        })
    }

    /// Whether `log` carries blocks that may not be durable where the map says they are.
    fn carries(&self, log: &Log) -> bool {
        self.live.borrow().carried_until > log.start
    }

    /// How many pending records the log has room for.
    fn records_room(&self, core: &Core) -> usize {
        let log = self.log.borrow();
        log.records_room(log.batch_max(core.config.io_len_max))
    }

    /// While held, no batch is in flight and the head stays. Locks are taken in the order that the module says.
    pub(crate) async fn stand_still(&self) -> [Guard; 2] {
        [self.commit.acquire().await, self.checkpoint.acquire().await]
    }

    fn check(&self) -> Outcome<()> {
        match self.live.borrow().poison {
            None => Ok(()),
            Some(code) => Err(Failure::new(
                code,
                format!(
                    "volume {} must be opened again after a failure",
                    self.lineage
                ),
            )),
        }
    }

    /// What this volume wrote may be lost: it writes nothing until it was opened again.
    pub(crate) fn poison(&self) {
        let mut live = self.live.borrow_mut();
        if !live.read_only {
            live.poison.get_or_insert(ErrorCode::SyncFailed);
        }
    }

    /// A failure that leaves the durable state unknown ends all writing.
    fn judge<T>(&self, core: &Core, result: Outcome<T>) -> Outcome<T> {
        if let Err(failure) = &result {
            core.note(self.lineage, failure);
            let mut live = self.live.borrow_mut();
            if !failure.code.passes() && live.poison.is_none() {
                tracing::error!("volume {} stops: {}", self.lineage, failure.message);
                let code = if failure.code == ErrorCode::Stale {
                    ErrorCode::Stale
                } else {
                    ErrorCode::SyncFailed
                };
                live.poison = Some(code);
            }
        }
        result
    }
}

impl Live {
    /// Blocks of the volume; the last may be partial.
    fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK_SIZE)
    }

    /// Whole blocks inside the volume.
    fn range(&self, offset: u64, len: u64) -> Result<Range, ErrorCode> {
        let end = offset.checked_add(len).ok_or(ErrorCode::Invalid)?;
        let whole = offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE) && len > 0;
        if !whole || end > self.blocks() * BLOCK_SIZE {
            return Err(ErrorCode::Invalid);
        }
        Ok(Range {
            start: offset / BLOCK_SIZE,
            end: end / BLOCK_SIZE,
        })
    }
}

/// Does `step` as soon as the pages that it needs are in memory.
async fn with_pages<T>(
    core: &Rc<Core>,
    volume: &Volume,
    mut step: impl FnMut() -> Result<T, Missing>,
) -> Outcome<T> {
    // Held, so that one page of the way down does not drive out another.
    let mut held = Vec::new();
    loop {
        match step() {
            Ok(done) => return Ok(done),
            Err(missing) => match core.load(missing, volume.object_size).await {
                Ok(node) => held.push(node),
                Err(failure) => {
                    core.note(volume.lineage, &failure);
                    return Err(failure);
                }
            },
        }
    }
}
