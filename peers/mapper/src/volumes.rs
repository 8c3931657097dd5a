//! The volumes in memory, and who may work on a lineage.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use archipelago_protocol::Lineage;

use crate::task::{Guard, Locks, Scheduler};
use crate::volume::Volume;

/// Volumes that are open, or whose last client disconnected without closing.
#[derive(Debug)]
pub(crate) struct Volumes {
    by_lineage: RefCell<BTreeMap<Lineage, Rc<Volume>>>,
    locks: Locks<Lineage>,
    births: Locks<Lineage>,
}

impl Volumes {
    pub(crate) fn new(scheduler: &Rc<Scheduler>) -> Self {
        Volumes {
            by_lineage: RefCell::default(),
            locks: Locks::new(scheduler),
            births: Locks::new(scheduler),
        }
    }

    /// Opening, closing, removing and the like of one lineage go one after another.
    pub(crate) async fn lock(&self, lineage: Lineage) -> Guard {
        self.locks.lock(lineage).await
    }

    /// Held from before a snapshot of the volume is frozen until it is in the catalogue, also if the session ends meanwhile: who holds it
    /// knows that no snapshot is between the two. Taken after the lineage's lock, before all others.
    pub(crate) async fn lock_births(&self, volume: Lineage) -> Guard {
        self.births.lock(volume).await
    }

    pub(crate) fn get(&self, lineage: Lineage) -> Option<Rc<Volume>> {
        self.by_lineage.borrow().get(&lineage).cloned()
    }

    pub(crate) fn insert(&self, volume: Rc<Volume>) {
        let mut volumes = self.by_lineage.borrow_mut();
        volumes.insert(volume.lineage, volume);
    }

    pub(crate) fn remove(&self, lineage: Lineage) {
        self.by_lineage.borrow_mut().remove(&lineage);
    }

    /// Whether a session exists.
    pub(crate) fn is_open(&self, lineage: Lineage) -> bool {
        self.get(lineage).is_some_and(|volume| volume.is_open())
    }

    /// Whether a session exists that writes.
    pub(crate) fn has_writer(&self, lineage: Lineage) -> bool {
        let volume = self.get(lineage);
        volume.is_some_and(|volume| volume.access.has_writer())
    }

    /// What any of them wrote may be lost.
    pub(crate) fn poison_all(&self) {
        self.by_lineage
            .borrow()
            .values()
            .for_each(|volume| volume.poison());
    }
}
