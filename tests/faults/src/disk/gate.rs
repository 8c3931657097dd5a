//! Where calls wait that do not return, until they are let go.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Count {
    held: usize,
    /// How often the gate was opened.
    opened: u64,
}

/// A gate that is open for those who wait at it when it opens.
#[derive(Debug, Default)]
pub(super) struct Gate {
    count: Mutex<Count>,
    changed: Condvar,
}

/// A call that is held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket(u64);

impl Gate {
    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call arrives; it is held from now on.
    pub(super) fn arrive(&self) -> Ticket {
        let mut count = self.count();
        count.held += 1;
        Ticket(count.opened)
    }

    /// Waits until the gate is opened.
    pub(super) fn pass(&self, ticket: Ticket) {
        let mut count = self.count();
        while count.opened == ticket.0 {
            count = self
                .changed
                .wait(count)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A call that has passed is answered.
    pub(super) fn leave(&self) {
        self.count().held -= 1;
    }

    pub(super) fn held(&self) -> usize {
        self.count().held
    }

    pub(super) fn open(&self) {
        self.count().opened += 1;
        self.changed.notify_all();
    }
}
