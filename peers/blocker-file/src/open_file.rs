//! An open file of the pool, and its users.
//!
//! Any number of transfers use a file at the same time; an unaligned one uses it alone, because it reads and writes whole blocks. Transfers
//! wait for each other in order, so that neither kind starves the other.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use archipelago_runtime::File;

use crate::layout::FileId;
use crate::sync_state::{LogicalTime, SyncState};

/// How a transfer uses its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Beside others.
    Shared,
    /// Alone.
    Alone,
}

/// The present users of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    Shared(u32),
    Alone,
}

/// The present users of a file, and those that wait for it.
#[derive(Debug)]
pub(crate) struct Occupancy {
    users: Cell<Users>,
    /// Indexes of waiting transfers, in order.
    waiting: RefCell<VecDeque<usize>>,
}

impl Default for Occupancy {
    fn default() -> Self {
        Occupancy {
            users: Cell::new(Users::Shared(0)),
            waiting: RefCell::default(),
        }
    }
}

impl Occupancy {
    /// Whether one transfer uses the file alone.
    pub(crate) fn is_alone(&self) -> bool {
        self.users.get() == Users::Alone
    }

    /// Begins a use of the file, if the present users permit it. Returns whether they do.
    #[must_use]
    pub(crate) fn enter(&self, wanted: Use) -> bool {
        let users = match (self.users.get(), wanted) {
            (Users::Shared(users), Use::Shared) => Users::Shared(users + 1),
            (Users::Shared(0), Use::Alone) => Users::Alone,
            (Users::Alone, _) | (Users::Shared(_), Use::Alone) => return false,
        };
        self.users.set(users);
        true
    }

    /// Ends a use of the file.
    pub(crate) fn leave(&self) {
        self.users.set(match self.users.get() {
            Users::Alone => Users::Shared(0),
            Users::Shared(users) => {
                debug_assert!(users > 0, "a user leaves that has not entered");
                Users::Shared(users.saturating_sub(1))
            }
        });
    }

    /// Whether a transfer waits; later ones wait behind it.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// Queues the transfer at `index` behind the others.
    pub(crate) fn wait(&self, index: usize) {
        self.waiting.borrow_mut().push_back(index);
    }

    /// Queues the transfer at `index`, which was the first to wait, in front again.
    pub(crate) fn wait_first(&self, index: usize) {
        self.waiting.borrow_mut().push_front(index);
    }

    /// Removes the first waiting transfer.
    pub(crate) fn next_waiting(&self) -> Option<usize> {
        self.waiting.borrow_mut().pop_front()
    }
}

/// An open file.
#[derive(Debug)]
pub(crate) struct OpenFile {
    id: FileId,
    file: File,
    direct: bool,
    /// Its name is not durable yet.
    fresh: Cell<bool>,
    opened: LogicalTime,
    sync_state: SyncState,
    occupancy: Occupancy,
    last_used: Cell<u64>,
}

/// The state of a file at its opening.
#[derive(Debug)]
pub(crate) struct OpenedAs {
    /// It bypasses the page cache.
    pub(crate) direct: bool,
    /// Its name is not durable.
    pub(crate) fresh: bool,
    /// Which of its data is not durable.
    pub(crate) sync_state: SyncState,
    /// The logical time of the opening.
    pub(crate) now: LogicalTime,
}

impl OpenFile {
    pub(crate) fn new(id: FileId, file: File, opened: OpenedAs) -> Self {
        OpenFile {
            id,
            file,
            direct: opened.direct,
            fresh: Cell::new(opened.fresh),
            opened: opened.now,
            sync_state: opened.sync_state,
            occupancy: Occupancy::default(),
            last_used: Cell::new(opened.now.0),
        }
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether it bypasses the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether its name is not durable yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh.get()
    }

    /// Records that its name is durable.
    pub(crate) fn name_synced(&self) {
        self.fresh.set(false);
    }

    /// Records that a sync of the pool which began at `began` succeeded.
    pub(crate) fn pool_synced(&self, began: LogicalTime) {
        if self.opened <= began {
            self.name_synced();
        }
    }

    /// Which of its data is not durable.
    pub(crate) fn sync_state(&self) -> &SyncState {
        &self.sync_state
    }

    /// Its present users.
    pub(crate) fn occupancy(&self) -> &Occupancy {
        &self.occupancy
    }

    /// Records a use at `now`.
    pub(crate) fn touch(&self, now: LogicalTime) {
        self.last_used.set(now.0);
    }

    /// The logical time of the last use.
    pub(crate) fn last_used(&self) -> u64 {
        self.last_used.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_waits_for_all_and_all_wait_for_it() {
        let file = Occupancy::default();
        assert!(file.enter(Use::Shared) && file.enter(Use::Shared));
        assert!(!file.enter(Use::Alone));
        file.leave();
        assert!(!file.enter(Use::Alone));
        file.leave();
        assert!(file.enter(Use::Alone));
        assert!(file.is_alone() && !file.enter(Use::Shared) && !file.enter(Use::Alone));
        file.leave();
        assert!(file.enter(Use::Shared));
    }

    #[test]
    fn those_who_wait_keep_their_order() {
        let file = Occupancy::default();
        file.wait(1);
        file.wait(2);
        let first = file.next_waiting();
        assert_eq!(first, Some(1));
        file.wait_first(1);
        assert_eq!(
            [file.next_waiting(), file.next_waiting()],
            [Some(1), Some(2)]
        );
        assert!(!file.has_waiting());
    }
}
