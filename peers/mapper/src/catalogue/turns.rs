//! Whose turn it is to append, if several nodes change the catalogue all the time.
//!
//! Whoever has appended knows the new end at once; the others read first, and would be late for ever. So a node that has appended
//! the last batch, and of which many of the last batches are, reads on as many times before it appends again. There is no clock: a
//! read takes as long as an append.
//!
//! - A node alone never waits.
//! - A refused append means that another one has landed: the pool's catalogue goes on in any case.
//! - A refused node reads once and appends: the last batch is another's. Each node that has just appended waits longer than that, as
//!   long as more than one of the last batches is its own.

use std::collections::VecDeque;

use archipelago_protocol::Generation;

/// Batches that are looked back at.
pub(super) const RECENT: usize = 8;

/// The writers of the last batches.
#[derive(Debug, Default)]
pub(super) struct Turns {
    recent: VecDeque<Generation>,
}

impl Turns {
    /// Somebody has appended.
    pub(super) fn note(&mut self, writer: Generation) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(writer);
    }

    /// How many times `own` reads on before it appends.
    pub(super) fn reads(&self, own: Generation) -> usize {
        let of_own = self.recent.iter().filter(|writer| **writer == own).count();
        match self.recent.back() == Some(&own) && of_own < self.recent.len() {
            true => of_own,
            false => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_appends_much_waits_and_who_was_late_does_not() {
        let (a, b) = (Generation(5), Generation(6));
        let mut turns = Turns::default();
        assert_eq!(turns.reads(a), 0);
        (0..20).for_each(|_| turns.note(a));
        assert_eq!((turns.reads(a), turns.reads(b)), (0, 0), "alone");
        turns.note(b);
        assert_eq!((turns.reads(a), turns.reads(b)), (0, 1));
        turns.note(a);
        assert_eq!((turns.reads(a), turns.reads(b)), (7, 0));
        (0..8).for_each(|_| turns.note(b));
        assert_eq!((turns.reads(a), turns.reads(b)), (0, 0), "b alone");
    }
}
