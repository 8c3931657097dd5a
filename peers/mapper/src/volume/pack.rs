//! The end of the packs into which a session writes map pages.
//!
//! Packs of a session are numbered `generation << 32 | n` from `n = 0` on: no other session has the same.

use std::cell::Cell;

use archipelago_protocol::Generation;

use crate::tree::PackPlace;

/// Pages begin at multiples of this: each write of pages is whole units.
const UNIT: u64 = 4096;

/// Where the next pages go.
#[derive(Debug)]
pub(crate) struct PackEnd {
    next: Cell<PackPlace>,
}

impl PackEnd {
    /// The first pack of the session with this generation, of packs of at most `len_max` bytes.
    pub(super) fn new(generation: Generation, len_max: u64) -> Self {
        PackEnd {
            next: Cell::new(PackPlace {
                number: generation.0 << 32,
                offset: 0,
                len_max,
            }),
        }
    }

    pub(crate) fn next(&self) -> PackPlace {
        self.next.get()
    }

    /// Takes what lies before `end`: it is never written twice, whatever becomes of it. Where the next pages go then.
    pub(crate) fn take_to(&self, end: PackPlace) -> PackPlace {
        let next = PackPlace {
            offset: end.offset.next_multiple_of(UNIT),
            ..end
        };
        self.next.set(next);
        next
    }

    /// Nothing was written of what was taken from `start` to `end`: for want of room, so it shall not take ever more of it.
    pub(crate) fn give_back(&self, start: PackPlace, end: PackPlace) {
        if self.next.get() == end {
            self.next.set(start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_taken_last_is_given_back() {
        let pack = PackEnd::new(Generation(7), 1 << 20);
        let first = pack.next();
        assert_eq!((first.number, first.offset), (7 << 32, 0));
        let at = |number, offset| PackPlace {
            number,
            offset,
            ..first
        };
        let second = pack.take_to(at(7 << 32, 5000));
        assert_eq!(second, at(7 << 32, 8192));
        // Rolled over.
        let third = pack.take_to(at(7 << 32 | 1, 4096));
        pack.give_back(first, second);
        assert_eq!(pack.next(), third, "others were taken since");
        pack.give_back(second, third);
        assert_eq!(pack.next(), second);
    }
}
