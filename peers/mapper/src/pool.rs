//! One pool as all parts of the mapper see it: objects, map pages in memory, presence journals, counters and known damage.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use archipelago_protocol::{ErrorCode, Lineage, ObjectSize};

use crate::config::MapperConfig;
use crate::counters::Counters;
use crate::disk::Disk;
use crate::failure::{Failure, Outcome};
use crate::journal::JournalStore;
use crate::journals::Journals;
use crate::pages::Pages;
use crate::task::Scheduler;
use crate::tree::{Missing, Node};

/// What is common to all lineages of a pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) config: MapperConfig,
    pub(crate) scheduler: Rc<Scheduler>,
    pub(crate) disk: Disk,
    pub(crate) pages: Pages,
    pub(crate) journals: Journals,
    counters: Cell<Counters>,
    /// The last damage of each lineage, or format that this program does not know.
    unreadable: RefCell<BTreeMap<Lineage, Failure>>,
}

impl Pool {
    pub(crate) fn new(config: MapperConfig, journals: Box<dyn JournalStore>) -> Self {
        let scheduler = Rc::new(Scheduler::default());
        Pool {
            disk: Disk::new(&scheduler, config.io_len_max),
            pages: Pages::new(&scheduler, config.cache_bytes),
            journals: Journals::new(journals),
            counters: Cell::default(),
            unreadable: RefCell::default(),
            scheduler,
            config,
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters.get()
    }

    pub(crate) fn count(&self, add: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        add(&mut counters);
        self.counters.set(counters);
    }

    /// Notes for people that something stored cannot be used.
    pub(crate) fn note(&self, lineage: Lineage, failure: &Failure) {
        if !failure.code.is_of_stored() {
            return;
        }
        tracing::error!("{}", failure.message);
        if failure.code == ErrorCode::Damaged {
            self.count(|counters| counters.damages += 1);
        }
        let mut unreadable = self.unreadable.borrow_mut();
        unreadable.insert(lineage, failure.clone());
    }

    /// What was noted last of `lineage`.
    pub(crate) fn unreadable(&self, lineage: Lineage) -> Option<Failure> {
        self.unreadable.borrow().get(&lineage).cloned()
    }

    /// Everything of `lineage` could be read.
    pub(crate) fn forget_unreadable(&self, lineage: Lineage) {
        self.unreadable.borrow_mut().remove(&lineage);
    }

    /// Brings a page into the cache. It stays there as long as the caller holds the node.
    pub(crate) async fn load_page(&self, missing: Missing, size: ObjectSize) -> Outcome<Rc<Node>> {
        let counted = || self.count(|counters| counters.pages_read += 1);
        self.pages.load(&self.disk, missing, size, counted).await
    }

    /// Reads a page from the pool and checks it.
    pub(crate) async fn read_page(&self, missing: Missing, size: ObjectSize) -> Outcome<Rc<Node>> {
        self.count(|counters| counters.pages_read += 1);
        self.pages.read(&self.disk, missing, size).await
    }
}
