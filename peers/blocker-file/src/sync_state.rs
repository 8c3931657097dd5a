//! What of a file is not durable yet, and whether a failed sync may have dropped some of it.
//!
//! A kernel reports a failed sync once, to whoever asked; a disk that could not write its cache may have lost the data of any
//! file, and the next sync succeeds. So the backend remembers (`fsync` semantics: Rebello et al., "Can Applications
//! Recover from fsync Failures?", USENIX ATC 2020).
//!
//! Invariants
//! - What was written and not synced when a sync failed makes the next sync of its file fail, once.
//! - A sync or durable write that was under way then fails too, one of the whole pool included: it cannot know which of the two
//!   the disk did first.

use std::cell::Cell;

/// A place in the order of writes and syncs of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Turn(pub(crate) u64);

/// How far a file is written and how far synced.
#[derive(Debug, Clone, Default)]
pub(crate) struct SyncState {
    written: Cell<Turn>,
    synced: Cell<Turn>,
    lost: Cell<bool>,
}

impl SyncState {
    /// Of a file that may have lost something before this process looked at it.
    pub(crate) fn suspect() -> Self {
        SyncState {
            lost: Cell::new(true),
            ..SyncState::default()
        }
    }

    /// A write ended at `now`, whatever came of it.
    pub(crate) fn wrote(&self, now: Turn) {
        self.written.set(now);
    }

    /// A sync of the file that began at `began` succeeded: whether it can be believed.
    pub(crate) fn synced(&self, began: Turn) -> bool {
        let believed = !self.take_loss();
        if believed {
            self.synced.set(self.synced.get().max(began));
        }
        believed
    }

    /// The loss, if there is one, is being reported: whether there was one.
    pub(crate) fn take_loss(&self) -> bool {
        self.lost.take()
    }

    /// A sync failed somewhere; one of the whole pool that began at `pool` was the last to succeed.
    pub(crate) fn lose(&self, pool: Turn) {
        if self.is_dirty(pool) {
            self.lost.set(true);
        }
    }

    /// Whether there is a loss that was not reported yet.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Whether there is anything to remember of a file that is closed.
    pub(crate) fn matters(&self, pool: Turn) -> bool {
        self.lost.get() || self.is_dirty(pool)
    }

    fn is_dirty(&self, pool: Turn) -> bool {
        self.written.get() > self.synced.get().max(pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dirty_when_a_sync_failed_is_reported_once() {
        let file = SyncState::default();
        file.wrote(Turn(1));
        file.lose(Turn(0));
        assert!(!file.synced(Turn(2)), "the next sync reports it");
        assert!(file.synced(Turn(3)), "and only that one");
        file.lose(Turn(0));
        assert!(file.synced(Turn(4)), "nothing was dirty");
    }

    #[test]
    fn a_write_after_the_beginning_of_a_sync_is_still_dirty() {
        let file = SyncState::default();
        file.wrote(Turn(1));
        assert!(file.synced(Turn(1)));
        assert!(!file.matters(Turn(0)));
        file.wrote(Turn(3));
        assert!(file.synced(Turn(2)));
        assert!(file.matters(Turn(2)) && !file.matters(Turn(3)));
        file.lose(Turn(3));
        assert!(file.synced(Turn(4)), "a sync of the pool covered it");
    }
}
