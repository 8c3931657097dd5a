//! What all tasks share.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::map::MapReply;
use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{ErrorCode, Lineage, Name, ObjectSize};

use crate::catalogue::Catalogue;
use crate::counters::Counters;
use crate::disk::{Disk, name_of};
use crate::effect::{ClientId, Effect};
use crate::failure::{Failure, Outcome};
use crate::journal::JournalStore;
use crate::mapper::MapperConfig;
use crate::task::{Guard, Lock, Scheduler};
use crate::tree::{Cache, Missing, Node, PageRef, decode};
use crate::volume::Volume;

/// A snapshot that was promised to control.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) volume: Lineage,
    pub(crate) name: Name,
    pub(crate) lineage: Lineage,
    pub(crate) created: u64,
    pub(crate) begun: bool,
}

/// A client's right to ask about a volume.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) client: ClientId,
    pub(crate) volume: Rc<Volume>,
    pub(crate) write: bool,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: MapperConfig,
    pub(crate) scheduler: Rc<Scheduler>,
    pub(crate) disk: Disk,
    pub(crate) cache: RefCell<Cache>,
    pub(crate) journals: RefCell<Box<dyn JournalStore>>,
    pub(crate) catalogue: Catalogue,
    /// Volumes that are open, or whose last client went without closing.
    pub(crate) volumes: RefCell<BTreeMap<Lineage, Rc<Volume>>>,
    pub(crate) sessions: RefCell<BTreeMap<u32, Session>>,
    /// Clients that went: what they asked for before ends at once. One entry for each death of a process.
    pub(crate) gone: RefCell<BTreeSet<ClientId>>,
    pub(crate) prepared: RefCell<BTreeMap<u64, Prepared>>,
    pub(crate) damages: RefCell<BTreeMap<Lineage, String>>,
    /// Volumes whose journals were voided by a failed sync of the pool.
    pub(crate) lost: RefCell<BTreeSet<Lineage>>,
    locks: RefCell<BTreeMap<Lineage, Lock>>,
    loading: RefCell<BTreeMap<PageRef, Lock>>,
    counters: Cell<Counters>,
    next_handle: Cell<u32>,
}

impl Core {
    pub(crate) fn new(config: MapperConfig, journals: Box<dyn JournalStore>) -> Self {
        let scheduler = Rc::new(Scheduler::default());
        Core {
            disk: Disk::new(&scheduler, config.io_len_max),
            cache: RefCell::new(Cache::new(config.cache_bytes)),
            catalogue: Catalogue::new(&scheduler),
            journals: RefCell::new(journals),
            volumes: RefCell::default(),
            sessions: RefCell::default(),
            gone: RefCell::default(),
            prepared: RefCell::default(),
            damages: RefCell::default(),
            lost: RefCell::default(),
            locks: RefCell::default(),
            loading: RefCell::default(),
            counters: Cell::default(),
            next_handle: Cell::new(1),
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

    pub(crate) fn reply(&self, client: ClientId, tag: u64, reply: MapReply) {
        self.disk
            .effects
            .borrow_mut()
            .push_back(Effect::MapReply { client, tag, reply });
    }

    /// Opening, closing, removing and the like of one lineage go one after another.
    pub(crate) async fn lock(&self, lineage: Lineage) -> Guard {
        let lock = {
            let mut locks = self.locks.borrow_mut();
            locks.retain(|_, lock| !lock.is_unused());
            locks
                .entry(lineage)
                .or_insert_with(|| Lock::new(&self.scheduler))
                .clone()
        };
        lock.acquire().await
    }

    pub(crate) fn volume(&self, lineage: Lineage) -> Option<Rc<Volume>> {
        self.volumes.borrow().get(&lineage).cloned()
    }

    /// Whether a session exists.
    pub(crate) fn is_open(&self, lineage: Lineage) -> bool {
        self.volume(lineage).is_some_and(|volume| {
            let live = volume.live.borrow();
            live.writer.is_some() || live.readers > 0
        })
    }

    pub(crate) fn add_session(&self, session: Session) -> u32 {
        let handle = self.next_handle.get();
        // Handles are positive results on the wire; after 2^31 sessions they begin again, far from any that is alive.
        self.next_handle
            .set(if handle >= 0x7fff_fff0 { 1 } else { handle + 1 });
        self.sessions.borrow_mut().insert(handle, session);
        handle
    }

    /// Forgets what was prepared for a volume and never begun.
    pub(crate) fn forget_prepared(&self, volume: Lineage) {
        let mut prepared = self.prepared.borrow_mut();
        let mut names = self.catalogue.names.borrow_mut();
        prepared.retain(|_, prepared| {
            let stays = prepared.volume != volume || prepared.begun;
            if !stays {
                names.release(&prepared.name, prepared.lineage);
            }
            stays
        });
    }

    /// Takes a prepared snapshot away, done or failed.
    pub(crate) fn end_prepared(&self, token: u64) {
        if let Some(prepared) = self.prepared.borrow_mut().remove(&token) {
            self.catalogue
                .names
                .borrow_mut()
                .release(&prepared.name, prepared.lineage);
        }
    }

    /// A lineage that nobody has open leaves memory, with what was not durable.
    pub(crate) fn forget(&self, lineage: Lineage) {
        self.volumes.borrow_mut().remove(&lineage);
        self.journals.borrow_mut().remove(lineage);
    }

    /// Notes damage for people.
    pub(crate) fn note(&self, lineage: Lineage, failure: &Failure) {
        if failure.code == ErrorCode::Damaged {
            tracing::error!("{}", failure.message);
            self.count(|counters| counters.damages += 1);
            self.damages
                .borrow_mut()
                .insert(lineage, failure.message.clone());
        }
    }

    /// Makes all completed writes to the pool durable.
    ///
    /// A failure is final, and everybody's: it does not say what was lost, and another sync may succeed without it. So
    /// nothing that is not durable counts any more, of no volume: those that are open stop, what journals know is void, and
    /// whoever opens such a volume next is told.
    pub(crate) async fn sync_pool(&self) -> Outcome<()> {
        let synced = self.disk.sync_pool().await;
        if synced.is_err() {
            self.volumes
                .borrow()
                .values()
                .for_each(|volume| volume.poison());
            let names = self.catalogue.names.borrow();
            let mut journals = self.journals.borrow_mut();
            for kind in [Kind::Volume, Kind::Importing] {
                for lineage in names.of_kind(kind) {
                    if self.volume(lineage).is_none() && journals.load(lineage).is_some() {
                        self.lost.borrow_mut().insert(lineage);
                    }
                    journals.remove(lineage);
                }
            }
        }
        synced
    }

    /// Brings a page into the cache, once for all who wait for it. It stays there as long as the caller holds the node.
    pub(crate) async fn load(&self, missing: Missing, size: ObjectSize) -> Outcome<Rc<Node>> {
        let page = missing.page;
        let lock = {
            let mut loading = self.loading.borrow_mut();
            loading.retain(|_, lock| !lock.is_unused());
            loading
                .entry(page)
                .or_insert_with(|| Lock::new(&self.scheduler))
                .clone()
        };
        let _alone = lock.acquire().await;
        if let Some(node) = self.cache.borrow().get(&page) {
            return Ok(Rc::clone(node));
        }
        let node = self.read_page(missing, size).await?;
        self.cache.borrow_mut().insert(page, Rc::clone(&node));
        Ok(node)
    }

    /// Reads a page from the pool and judges it.
    pub(crate) async fn read_page(&self, missing: Missing, size: ObjectSize) -> Outcome<Rc<Node>> {
        let Missing { page, level } = missing;
        let id = ObjectId::pack(page.lineage, page.pack);
        let damaged = |why: &str| {
            Failure::damaged(format!(
                "{} is damaged at {}: {why}",
                name_of(id),
                page.offset
            ))
        };
        // Whole units: a backend may read them without a copy.
        let skip = page.offset % 4096;
        let len = usize::try_from((skip + u64::from(page.len)).next_multiple_of(4096))
            .map_err(|_too_large| damaged("length"))?;
        self.count(|counters| counters.pages_read += 1);
        let bytes = self
            .disk
            .read(id, page.offset - skip, len)
            .await
            .map_err(|failure| match failure.code {
                ErrorCode::NotFound => damaged("it is missing"),
                _ => failure,
            })?;
        let from = usize::try_from(skip).expect("below 4096");
        decode(&page, level, size, &bytes[from..from + page.len as usize])
            .map_err(|problem| damaged(&problem.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::journal::NoJournals;

    fn poll(future: Pin<&mut impl Future<Output = Guard>>) -> Option<Guard> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_lock_is_there_as_long_as_somebody_holds_it_or_waits() {
        let core = Core::new(MapperConfig::default(), Box::new(NoJournals));
        let mut first = pin!(core.lock(Lineage(1)));
        let held = poll(first.as_mut());
        assert!(held.is_some());
        let mut waiting = pin!(core.lock(Lineage(1)));
        assert!(poll(waiting.as_mut()).is_none());
        assert!(poll(pin!(core.lock(Lineage(2)))).is_some(), "another one");
        drop(held);
        assert!(poll(waiting.as_mut()).is_some());
        // What nobody knows any more goes with the next one that is made.
        assert!(poll(pin!(core.lock(Lineage(3)))).is_some());
        let known: Vec<Lineage> = core.locks.borrow().keys().copied().collect();
        assert_eq!(known, [Lineage(3)]);
    }
}
