//! Where calls wait that do not return, until they are released.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Count {
    /// Calls that wait for the next opening.
    held: usize,
    /// Calls that an opening has released, and that are not answered yet.
    leaving: usize,
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
        self.count().leaving -= 1;
    }

    pub(super) fn held(&self) -> usize {
        self.count().held
    }

    pub(super) fn leaving(&self) -> usize {
        self.count().leaving
    }

    pub(super) fn open(&self) {
        let mut count = self.count();
        count.opened += 1;
        count.leaving += std::mem::take(&mut count.held);
        drop(count);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_arrives_after_an_opening_is_held_for_the_next() {
        let gate = Gate::default();
        let first = gate.arrive();
        gate.open();
        let late = gate.arrive();
        assert_eq!((gate.held(), gate.leaving()), (1, 1));
        gate.pass(first);
        gate.leave();
        assert_eq!((gate.held(), gate.leaving()), (1, 0));
        gate.open();
        gate.pass(late);
        gate.leave();
        assert_eq!((gate.held(), gate.leaving()), (0, 0));
    }
}
