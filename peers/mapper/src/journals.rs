//! The presence journals of a pool: those of open volumes and what closed ones have left, and the volumes whose journals a
//! failed sync of the pool has voided.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use archipelago_protocol::{ErrorCode, Generation, Lineage};

use crate::failure::{Failure, Outcome};
use crate::format::Unreadable;
use crate::journal::{Journal, JournalStore, Recovered};

/// Who knows that a volume without a writer has lost what its last writer had not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Unreported,
    /// Somebody who has to do with the volume; no writer yet, who alone can tell whoever wrote.
    Seen,
}

/// Where journals are, and which were voided.
#[derive(Debug)]
pub(crate) struct Journals {
    store: RefCell<Box<dyn JournalStore>>,
    /// Volumes of which something was lost while they had no writer. The next writer's open takes them out.
    lost: RefCell<BTreeMap<Lineage, Loss>>,
    /// Volumes that were not in memory when another mapper of the process voided journals: something of them was lost unless they
    /// were closed cleanly, which their heads say.
    suspected: RefCell<BTreeSet<Lineage>>,
}

impl Journals {
    pub(crate) fn new(store: Box<dyn JournalStore>) -> Self {
        Journals {
            store: RefCell::new(store),
            lost: RefCell::default(),
            suspected: RefCell::default(),
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
        if journal.is_ok() {
            self.suspected.borrow_mut().remove(&lineage);
        }
        journal.map_err(|code| no_memory(lineage, code))
    }

    /// What the last journal of `lineage` holds.
    pub(crate) fn load(&self, lineage: Lineage) -> Outcome<Option<Recovered>> {
        let loaded = self.store.borrow_mut().load(lineage);
        loaded.map_err(|unsupported| {
            let what = format!("the presence journal of {lineage}");
            Failure::unreadable(&what, Unreadable::Unsupported(unsupported.to_string()))
        })
    }

    pub(crate) fn remove(&self, lineage: Lineage) {
        self.suspected.borrow_mut().remove(&lineage);
        self.store.borrow_mut().remove(lineage);
    }

    /// Volumes whose journals are in use.
    pub(crate) fn in_use(&self) -> Vec<Lineage> {
        self.store.borrow().in_use()
    }

    /// Removes the journal of `lineage` after a failed sync of the pool: what it speaks of may be lost. A volume that has no
    /// writer and had a journal is noted as lost; a writer is stopped by others.
    pub(crate) fn void(&self, lineage: Lineage, has_writer: bool) {
        let mut store = self.store.borrow_mut();
        if !has_writer && store.load(lineage) != Ok(None) {
            self.note_lost(lineage);
        }
        store.remove(lineage);
    }

    /// Another mapper of the process has voided journals, perhaps that of `lineage`, which is not in memory here.
    pub(crate) fn suspect(&self, lineage: Lineage) {
        self.suspected.borrow_mut().insert(lineage);
    }

    /// The head of `lineage` says that it was not closed: if it is suspected, what its last writer had not flushed is lost.
    pub(crate) fn confirm_suspected(&self, lineage: Lineage) {
        if self.suspected.borrow_mut().remove(&lineage) {
            self.store.borrow_mut().remove(lineage);
            self.note_lost(lineage);
        }
    }

    /// What the last writer of `lineage` had not flushed may be lost, and this was not reported.
    pub(crate) fn note_lost(&self, lineage: Lineage) {
        let mut lost = self.lost.borrow_mut();
        lost.entry(lineage).or_insert(Loss::Unreported);
    }

    /// Whether something of `lineage` was lost, for somebody who may be no writer: reported once.
    pub(crate) fn see_lost(&self, lineage: Lineage) -> bool {
        let mut lost = self.lost.borrow_mut();
        let loss = lost.get_mut(&lineage);
        loss.is_some_and(|loss| std::mem::replace(loss, Loss::Seen) == Loss::Unreported)
    }

    /// Whether something of `lineage` was lost, for its next writer: reported once, whoever has seen it before.
    pub(crate) fn take_lost(&self, lineage: Lineage) -> bool {
        self.lost.borrow_mut().remove(&lineage).is_some()
    }

    /// Nothing of `lineage` was lost that nobody was told of: all of it had been durable.
    pub(crate) fn drop_unreported(&self, lineage: Lineage) {
        let mut lost = self.lost.borrow_mut();
        if lost.get(&lineage) == Some(&Loss::Unreported) {
            lost.remove(&lineage);
        }
    }
}

fn no_memory(lineage: Lineage, code: ErrorCode) -> Failure {
    let why = format!("there is no memory for the presence journal of {lineage}");
    Failure::new(code, why)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::journal::{NoJournals, UnsupportedJournal};

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

        fn load(&mut self, lineage: Lineage) -> Result<Option<Recovered>, UnsupportedJournal> {
            Ok(self.0.contains(&lineage).then_some(Recovered {
                generation: Generation(1),
                logged: None,
                records: Vec::new(),
            }))
        }

        fn remove(&mut self, lineage: Lineage) {
            self.0.remove(&lineage);
        }
    }

    #[test]
    fn a_voided_journal_of_a_volume_without_a_writer_is_reported_once() {
        let journals = Journals::new(Box::new(Made::default()));
        for (lineage, has_writer, lost) in [(1, false, true), (2, true, false)] {
            let lineage = Lineage(lineage);
            journals.open(lineage, Generation(1)).unwrap();
            journals.void(lineage, has_writer);
            assert_eq!(journals.load(lineage), Ok(None));
            assert_eq!(journals.take_lost(lineage), lost);
            assert!(!journals.take_lost(lineage));
        }
        journals.void(Lineage(3), false);
        assert!(!journals.take_lost(Lineage(3)), "it had none");
    }

    #[test]
    fn a_suspected_volume_is_lost_if_it_was_not_closed_and_has_not_been_opened_since() {
        let journals = Journals::new(Box::new(Made::default()));
        let [unclean, opened, removed] = [1, 2, 3].map(Lineage);
        for lineage in [unclean, opened, removed] {
            journals.suspect(lineage);
        }
        journals.open(opened, Generation(1)).unwrap();
        journals.remove(removed);
        for (lineage, lost) in [(unclean, true), (opened, false), (removed, false)] {
            journals.confirm_suspected(lineage);
            assert_eq!(journals.take_lost(lineage), lost, "{lineage}");
            journals.confirm_suspected(lineage);
            assert!(!journals.take_lost(lineage), "{lineage}: once");
        }
    }

    #[test]
    fn a_loss_that_others_have_seen_is_reported_to_the_next_writer_too() {
        let journals = Journals::new(Box::new(Made::default()));
        let lineage = Lineage(1);
        journals.note_lost(lineage);
        assert!(journals.see_lost(lineage) && !journals.see_lost(lineage));
        journals.note_lost(lineage);
        journals.drop_unreported(lineage);
        assert!(!journals.see_lost(lineage), "the same loss");
        assert!(journals.take_lost(lineage) && !journals.take_lost(lineage));
        journals.note_lost(lineage);
        journals.drop_unreported(lineage);
        assert!(!journals.take_lost(lineage));
    }
}
