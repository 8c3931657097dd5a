//! An open file of the pool, and who uses it now.
//!
//! Any number of transfers use a file side by side; one whose place the medium does not take uses it alone, because it reads and
//! writes the blocks around. Transfers wait for each other in order, so that neither kind starves the other.

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

/// Who uses a file now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    Shared(u32),
    Alone,
}

/// Who uses a file, and who waits for it.
#[derive(Debug)]
pub(crate) struct Occupancy {
    users: Cell<Users>,
    /// Places of transfers, in order.
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
    /// Whether somebody uses the file alone.
    pub(crate) fn is_alone(&self) -> bool {
        self.users.get() == Users::Alone
    }

    /// Begins a use of the file, if those that go on allow. Whether they do.
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

    /// Whether a transfer waits, behind which others have to.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// Has the transfer at `index` wait behind the others.
    pub(crate) fn wait(&self, index: usize) {
        self.waiting.borrow_mut().push_back(index);
    }

    /// Has the transfer at `index`, which was the first to wait, wait on.
    pub(crate) fn wait_first(&self, index: usize) {
        self.waiting.borrow_mut().push_front(index);
    }

    /// The first of those that wait.
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

/// What is known of a file when it has been opened.
#[derive(Debug)]
pub(crate) struct OpenedAs {
    /// Past the page cache.
    pub(crate) direct: bool,
    /// Its name is not durable.
    pub(crate) fresh: bool,
    /// What of it is not durable.
    pub(crate) sync_state: SyncState,
    /// When.
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

    /// Whether it is read and written past the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether its name is not durable yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh.get()
    }

    /// Its name is durable.
    pub(crate) fn name_synced(&self) {
        self.fresh.set(false);
    }

    /// A sync of the pool that began at `began` succeeded.
    pub(crate) fn pool_synced(&self, began: LogicalTime) {
        if self.opened <= began {
            self.name_synced();
        }
    }

    /// What of it is not durable.
    pub(crate) fn sync_state(&self) -> &SyncState {
        &self.sync_state
    }

    /// Who uses it now.
    pub(crate) fn occupancy(&self) -> &Occupancy {
        &self.occupancy
    }

    /// The file is used at `now`.
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
