//! Presence journals in memory: in the production format, they outlive a mapper, and a power cut leaves nothing of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use archipelago_mapper::journal::{
    self, HEAD_LEN, Journal, JournalArea, JournalMemory, JournalStore, Recovered, SLOTS_AT,
    UnsupportedJournal,
};
use archipelago_protocol::{ErrorCode, Generation, Lineage};

/// The boot that all journals in memory are of.
const BOOT: u128 = 1;

/// The memory of a journal. Clones share it.
#[derive(Debug, Clone)]
pub struct JournalBytes(Rc<RefCell<Vec<u8>>>);

/// The journals of all volumes. Clones share them, so that they outlive a mapper.
#[derive(Debug, Clone)]
pub struct MemoryJournals {
    /// Bytes of each journal.
    len: usize,
    areas: Rc<RefCell<BTreeMap<Lineage, JournalBytes>>>,
}

impl JournalBytes {
    /// A journal's memory that holds `bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        JournalBytes(Rc::new(RefCell::new(bytes)))
    }

    /// Damages the memory: changes the bits `mask` of byte `offset`.
    ///
    /// # Panics
    /// If `offset` is outside.
    pub fn flip(&self, offset: usize, mask: u8) {
        self.0.borrow_mut()[offset] ^= mask;
    }
}

impl MemoryJournals {
    /// Journals with room for `records` each.
    #[must_use]
    pub fn new(records: usize) -> Self {
        MemoryJournals {
            len: journal::len_for(records),
            areas: Rc::default(),
        }
    }

    /// A copy of the journals as they are now, which later changes of these do not reach.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let areas = self.areas.borrow();
        let copies = areas
            .iter()
            .map(|(lineage, area)| (*lineage, JournalBytes::new(area.0.borrow().clone())));
        MemoryJournals {
            len: self.len,
            areas: Rc::new(RefCell::new(copies.collect())),
        }
    }

    /// What a power cut does: all journals are void from now on.
    pub fn power_cut(&self) {
        self.areas.borrow_mut().clear();
    }

    /// What damage to their memory does: no mark is whole.
    pub fn lose_marks(&self) {
        for area in self.areas.borrow().values() {
            area.0.borrow_mut()[HEAD_LEN..SLOTS_AT].fill(0xff);
        }
    }
}

impl JournalMemory for JournalBytes {
    fn size(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        let at = usize::try_from(offset).expect("inside the length");
        into.copy_from_slice(&self.0.borrow()[at..at + into.len()]);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).expect("inside the length");
        self.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl JournalStore for MemoryJournals {
    fn open(
        &mut self,
        lineage: Lineage,
        generation: Generation,
    ) -> Result<Box<dyn Journal>, ErrorCode> {
        let area = JournalBytes::new(vec![0; self.len]);
        self.areas.borrow_mut().insert(lineage, area.clone());
        Ok(Box::new(JournalArea::create(
            area, BOOT, lineage, generation,
        )))
    }

    fn load(&mut self, lineage: Lineage) -> Result<Option<Recovered>, UnsupportedJournal> {
        match self.areas.borrow().get(&lineage) {
            Some(area) => journal::load(area, BOOT, lineage),
            None => Ok(None),
        }
    }

    fn remove(&mut self, lineage: Lineage) {
        self.areas.borrow_mut().remove(&lineage);
    }
}
