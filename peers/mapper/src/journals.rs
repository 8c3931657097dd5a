//! The presence journals of a pool: those of open volumes and what closed ones have left, and the volumes whose journals a
//! failed sync of the pool has voided.

use std::cell::RefCell;
use std::collections::BTreeSet;

use archipelago_protocol::{ErrorCode, Generation, Lineage};

use crate::failure::{Failure, Outcome};
use crate::journal::{Journal, JournalStore, Recovered};

/// Where journals are, and which were voided.
#[derive(Debug)]
pub(crate) struct Journals {
    store: RefCell<Box<dyn JournalStore>>,
    /// Closed volumes whose journals were voided by a failed sync of the pool; not reported yet.
    lost: RefCell<BTreeSet<Lineage>>,
}

impl Journals {
    pub(crate) fn new(store: Box<dyn JournalStore>) -> Self {
        Journals {
            store: RefCell::new(store),
            lost: RefCell::default(),
        }
    }

    /// Sees to it that there is memory for a journal of `lineage`; an older journal stays.
    pub(crate) fn prepare(&self, lineage: Lineage) -> Outcome<()> {
        let prepared = self.store.borrow_mut().prepare(lineage);
        prepared.map_err(|code| no_memory(lineage, code))
    }

    /// A new journal, in place of any older one.
    pub(crate) fn open(
        &self,
        lineage: Lineage,
        generation: Generation,
    ) -> Outcome<Box<dyn Journal>> {
        let journal = self.store.borrow_mut().open(lineage, generation);
        journal.map_err(|code| no_memory(lineage, code))
    }

    /// What the last journal of `lineage` holds.
    pub(crate) fn load(&self, lineage: Lineage) -> Option<Recovered> {
        self.store.borrow_mut().load(lineage)
    }

    pub(crate) fn remove(&self, lineage: Lineage) {
        self.store.borrow_mut().remove(lineage);
    }

    /// Volumes whose journals are in use.
    pub(crate) fn in_use(&self) -> Vec<Lineage> {
        self.store.borrow().in_use()
    }

    /// Removes the journal of `lineage` after a failed sync of the pool: what it speaks of may be lost. A volume that is
    /// closed and had a journal is noted as lost; one that is open is stopped by others.
    pub(crate) fn void(&self, lineage: Lineage, is_open: bool) {
        let mut store = self.store.borrow_mut();
        if !is_open && store.load(lineage).is_some() {
            self.lost.borrow_mut().insert(lineage);
        }
        store.remove(lineage);
    }

    /// Whether the journal of `lineage` was voided; reported once.
    pub(crate) fn take_lost(&self, lineage: Lineage) -> bool {
        self.lost.borrow_mut().remove(&lineage)
    }
}

fn no_memory(lineage: Lineage, code: ErrorCode) -> Failure {
    let why = format!("there is no memory for the presence journal of {lineage}");
    Failure::new(code, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::NoJournals;

    /// Remembers for whom journals were made.
    #[derive(Debug, Default)]
    struct Made(BTreeSet<Lineage>);

    impl JournalStore for Made {
        fn open(
            &mut self,
            lineage: Lineage,
            generation: Generation,
        ) -> Result<Box<dyn Journal>, ErrorCode> {
            self.0.insert(lineage);
            NoJournals.open(lineage, generation)
        }

        fn load(&mut self, lineage: Lineage) -> Option<Recovered> {
            self.0.contains(&lineage).then_some(Recovered {
                generation: Generation(1),
                logged: None,
                records: Vec::new(),
            })
        }

        fn remove(&mut self, lineage: Lineage) {
            self.0.remove(&lineage);
        }
    }

    #[test]
    fn a_voided_journal_of_a_closed_volume_is_reported_once() {
        let journals = Journals::new(Box::new(Made::default()));
        for (lineage, is_open, lost) in [(1, false, true), (2, true, false)] {
            let lineage = Lineage(lineage);
            journals.open(lineage, Generation(1)).unwrap();
            journals.void(lineage, is_open);
            assert_eq!(journals.load(lineage), None);
            assert_eq!(journals.take_lost(lineage), lost);
            assert!(!journals.take_lost(lineage));
        }
        journals.void(Lineage(3), false);
        assert!(!journals.take_lost(Lineage(3)), "it had none");
    }
}
