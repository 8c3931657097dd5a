//! A volume, snapshot or image in memory: parts that each own their state. What is done with them: `session`.
//!
//! | module | part |
//! |---|---|
//! | `access` | its sessions, and whether it may be written |
//! | `start` | what a session writes before it may write, and who waits for that |
//! | `map` | the tree, its epochs, and how a change goes into them |
//! | `dirty` | changes that are not logged, and the presence journal |
//! | `snapshot` | a snapshot between its begin and its commit |
//! | `throttle` | changes that wait until something was logged |
//! | `log_writer` | the log, and whether data in it has been written back |
//! | `journaled` | data that a log holds, for a recovery |
//! | `pack` | where map pages go |
//! | `lineages` | the numbers by which answers name lineages |

mod access;
mod dirty;
mod journaled;
mod lineages;
mod log_writer;
mod map;
mod pack;
mod snapshot;
mod start;
mod throttle;
mod waiting;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use archipelago_protocol::{ErrorCode, Generation, Lineage, ObjectSize};

use crate::failure::{Failure, Outcome};
use crate::head::{StoredHead, VolumeHead};
use crate::pool::Pool;
use crate::task::{Guard, Lock, Scheduler};

use access::Access;
use lineages::LineageNumbers;
use log_writer::LogWriter;
use map::LiveMap;
use pack::PackEnd;
use start::WriteStart;
use throttle::ThrottledChanges;

pub(crate) use access::AccessMode;
pub(crate) use dirty::Select;
pub(crate) use journaled::{JournaledBlock, JournaledBlocks};
pub(crate) use map::ApplyError;
pub(crate) use snapshot::FrozenMap;
pub(crate) use start::Due;
pub(crate) use waiting::WaitingRequest;

/// A volume, snapshot or image that is open, or whose client has disconnected.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) lineage: Lineage,
    pub(crate) object_size: ObjectSize,
    pub(crate) access: Access,
    pub(crate) start: WriteStart,
    pub(crate) map: RefCell<LiveMap>,
    pub(crate) lineages: RefCell<LineageNumbers>,
    pub(crate) throttled: ThrottledChanges,
    pub(crate) head: StoredHead<VolumeHead>,
    pub(crate) log: LogWriter,
    pub(crate) pack: PackEnd,
    /// One batch at a time; held while a checkpoint takes its picture.
    commit: Lock,
    /// One checkpoint, and one head swap, at a time.
    checkpoint: Lock,
    /// A checkpoint was started in the background.
    checkpointing: Cell<bool>,
}

impl Volume {
    /// A volume of `size` bytes as its head says, before any replay. Its pages go to packs of the next generation.
    pub(crate) fn new(
        scheduler: &Rc<Scheduler>,
        lineage: Lineage,
        object_size: ObjectSize,
        size: u64,
        stored: StoredHead<VolumeHead>,
        mode: AccessMode,
        pack_len_max: u64,
    ) -> Rc<Self> {
        let head = stored.get();
        let generation = Generation(head.generation.0 + u64::from(!stored.is_first()));
        Rc::new(Volume {
            lineage,
            object_size,
            access: Access::new(mode),
            start: WriteStart::default(),
            map: RefCell::new(LiveMap::new(lineage, object_size, size, &head)),
            lineages: RefCell::new(LineageNumbers::new(lineage)),
            throttled: ThrottledChanges::default(),
            head: stored,
            log: LogWriter::new(head.log(lineage)),
            pack: PackEnd::new(generation, pack_len_max),
            commit: Lock::new(scheduler),
            checkpoint: Lock::new(scheduler),
            checkpointing: Cell::new(false),
        })
    }

    /// While held, no batch is in flight.
    pub(crate) async fn hold_commits(&self) -> Guard {
        self.commit.acquire().await
    }

    /// While held, the head stays.
    pub(crate) async fn hold_checkpoints(&self) -> Guard {
        self.checkpoint.acquire().await
    }

    /// While held, no batch is in flight and the head stays. Locks are taken in the order that `session` says.
    pub(crate) async fn stand_still(&self) -> [Guard; 2] {
        [self.hold_commits().await, self.hold_checkpoints().await]
    }

    /// The background checkpoint begins, unless one is under way.
    pub(crate) fn begin_checkpointing(&self) -> bool {
        !self.checkpointing.replace(true)
    }

    pub(crate) fn end_checkpointing(&self) {
        self.checkpointing.set(false);
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.map.borrow_mut().set_size(size);
    }

    /// Whether a session exists.
    pub(crate) fn is_open(&self) -> bool {
        self.access.is_open()
    }

    /// Whether the map shows what the log does not, or the log holds data: that data may not be durable.
    pub(crate) fn is_unsynced(&self) -> bool {
        !self.map.borrow().dirty().is_empty() || self.log.holds_data()
    }

    /// # Errors
    /// The volume was poisoned.
    pub(crate) fn check(&self) -> Outcome<()> {
        match self.access.poisoned() {
            None => Ok(()),
            Some(code) => {
                let lineage = self.lineage;
                let why = format!("volume {lineage} must be opened again after a failure");
                Err(Failure::new(code, why))
            }
        }
    }

    /// What this volume wrote may be lost: it writes nothing until it was opened again.
    pub(crate) fn poison(&self) {
        self.access.poison(ErrorCode::SyncFailed);
    }

    /// Passes `result` on. A failure that leaves the durable state unknown ends all writing.
    pub(crate) fn stop_if_failed<T>(&self, pool: &Pool, result: Outcome<T>) -> Outcome<T> {
        if let Err(failure) = &result {
            pool.note(self.lineage, failure);
            if !failure.code.passes() && self.access.poisoned().is_none() {
                tracing::error!("volume {} stops: {}", self.lineage, failure.message);
                let code = if failure.code == ErrorCode::Stale {
                    ErrorCode::Stale
                } else {
                    ErrorCode::SyncFailed
                };
                self.access.poison(code);
            }
        }
        result
    }
}
