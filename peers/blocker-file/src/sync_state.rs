//! Which data of a file is not durable yet, and whether a failed sync may have dropped some of it.
//!
//! A kernel reports a failed sync once, to one caller; a disk that could not write its cache may have lost the data of any file, and the
//! next sync succeeds. So the backend remembers the failure (`fsync` semantics: Rebello et al., "Can Applications Recover from fsync
//! Failures?", USENIX ATC 2020).
//!
//! Invariants
//! - If a sync fails, data that was written and not synced makes the next sync of its file fail, once.
//! - A sync or durable write that was under way then fails too, also one of the whole pool: it is unknown which of the two the disk did
//!   first.

use std::cell::Cell;

/// A logical time: orders the writes and syncs of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct LogicalTime(pub(crate) u64);

/// How far a file is written and how far synced.
#[derive(Debug, Clone, Default)]
pub(crate) struct SyncState {
    written: Cell<LogicalTime>,
    synced: Cell<LogicalTime>,
    lost: Cell<bool>,
}

impl SyncState {
    /// The state of a file that may have lost writes of an earlier process.
    pub(crate) fn suspect() -> Self {
        SyncState {
            lost: Cell::new(true),
            ..SyncState::default()
        }
    }

    /// A write ended at `now`, with success or without.
    pub(crate) fn wrote(&self, now: LogicalTime) {
        self.written.set(now);
    }

    /// A sync of the file that began at `began` succeeded. Returns whether the file has no loss to report instead.
    pub(crate) fn synced(&self, began: LogicalTime) -> bool {
        let believed = !self.take_loss();
        if believed {
            self.synced.set(self.synced.get().max(began));
        }
        believed
    }

    /// Clears the loss, because it is being reported. Returns whether there was one.
    pub(crate) fn take_loss(&self) -> bool {
        self.lost.take()
    }

    /// A sync failed: notes a loss if the file is dirty. The last successful sync of the whole pool began at `pool`.
    pub(crate) fn mark_lost_if_dirty(&self, pool: LogicalTime) {
        if self.is_dirty(pool) {
            self.lost.set(true);
        }
    }

    /// Whether there is an unreported loss.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Whether the state must be kept while its file is closed.
    pub(crate) fn must_be_kept(&self, pool: LogicalTime) -> bool {
        self.lost.get() || self.is_dirty(pool)
    }

    fn is_dirty(&self, pool: LogicalTime) -> bool {
        self.written.get() > self.synced.get().max(pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dirty_when_a_sync_failed_is_reported_once() {
        let file = SyncState::default();
        file.wrote(LogicalTime(1));
        file.mark_lost_if_dirty(LogicalTime(0));
        assert!(!file.synced(LogicalTime(2)), "the next sync reports it");
        assert!(file.synced(LogicalTime(3)), "and only that one");
        file.mark_lost_if_dirty(LogicalTime(0));
        assert!(file.synced(LogicalTime(4)), "nothing was dirty");
    }

    #[test]
    fn a_write_after_the_beginning_of_a_sync_is_still_dirty() {
        let file = SyncState::default();
        file.wrote(LogicalTime(1));
        assert!(file.synced(LogicalTime(1)));
        assert!(!file.must_be_kept(LogicalTime(0)));
        file.wrote(LogicalTime(3));
        assert!(file.synced(LogicalTime(2)));
        assert!(file.must_be_kept(LogicalTime(2)) && !file.must_be_kept(LogicalTime(3)));
        file.mark_lost_if_dirty(LogicalTime(3));
        assert!(file.synced(LogicalTime(4)), "a sync of the pool covered it");
    }
}
