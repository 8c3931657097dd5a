//! The end of the pack into which a session writes map pages.

use std::cell::Cell;

use archipelago_protocol::Lineage;
use archipelago_protocol::object::ObjectId;

/// Pages begin at multiples of this: each write of pages is whole units.
const UNIT: u64 = 4096;

/// Where the next pages go.
#[derive(Debug)]
pub(crate) struct PackEnd {
    number: u64,
    offset: Cell<u64>,
}

impl PackEnd {
    /// An empty pack.
    pub(super) fn new(number: u64) -> Self {
        PackEnd {
            number,
            offset: Cell::new(0),
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn id(&self, lineage: Lineage) -> ObjectId {
        ObjectId::pack(lineage, self.number)
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset.get()
    }

    /// Takes the next `len` bytes, which are never written twice, whatever becomes of them.
    pub(crate) fn take(&self, len: usize) {
        let end = self.offset.get() + len as u64;
        self.offset.set(end.next_multiple_of(UNIT));
    }

    /// Nothing was written of the `len` bytes at `offset`: for want of room, so shall not take ever more of it.
    pub(crate) fn give_back(&self, offset: u64, len: usize) {
        if self.offset.get() == offset + len as u64 {
            self.offset.set(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_taken_last_is_given_back() {
        let pack = PackEnd::new(7);
        pack.take(5000);
        assert_eq!(pack.offset(), 8192);
        pack.take(4096);
        pack.give_back(0, 8192);
        assert_eq!(pack.offset(), 12288, "others were taken since");
        pack.give_back(8192, 4096);
        assert_eq!(pack.offset(), 8192);
    }
}
