//! The parts of a mapper, which its tasks share.

use std::cell::Cell;
use std::rc::Rc;

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::map::MapReply;
use archipelago_protocol::{ErrorCode, Lineage};

use crate::catalogue::Catalogue;
use crate::config::MapperConfig;
use crate::effect::{ClientId, Effect};
use crate::failure::{Failure, Outcome};
use crate::journal::JournalStore;
use crate::pool::Pool;
use crate::sessions::Sessions;
use crate::task::Lock;
use crate::volumes::Volumes;

/// All that a mapper consists of, but for its unfinished tasks.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) pool: Rc<Pool>,
    pub(crate) catalogue: Catalogue,
    pub(crate) volumes: Volumes,
    pub(crate) sessions: Sessions,
    /// Held while maps are compared for somebody who asks: guests share the thread with one walk at most.
    pub(crate) walking: Lock,
    /// The node is about to stop.
    stopping: Cell<bool>,
}

impl Parts {
    pub(crate) fn new(config: MapperConfig, journals: Box<dyn JournalStore>) -> Self {
        let pool = Rc::new(Pool::new(config, journals));
        Parts {
            catalogue: Catalogue::new(&pool),
            volumes: Volumes::new(&pool.scheduler),
            sessions: Sessions::default(),
            walking: Lock::new(&pool.scheduler),
            stopping: Cell::new(false),
            pool,
        }
    }

    /// The node is about to stop: background work ends at its next step.
    pub(crate) fn stop_background(&self) {
        self.stopping.set(true);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// For background work, between its steps.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`]: the node is about to stop.
    pub(crate) fn check_running(&self) -> Outcome<()> {
        match self.is_stopping() {
            true => Err(Failure::new(
                ErrorCode::Unavailable,
                "this node is stopping",
            )),
            false => Ok(()),
        }
    }

    /// Adds a task that uses the parts.
    pub(crate) fn spawn<T>(self: &Rc<Self>, task: impl FnOnce(Rc<Parts>) -> T)
    where
        T: Future<Output = ()> + 'static,
    {
        self.pool.scheduler.spawn(task(Rc::clone(self)));
    }

    /// Answers a volume peer.
    pub(crate) fn reply(&self, client: ClientId, tag: u64, reply: MapReply) {
        let effect = Effect::MapReply { client, tag, reply };
        self.pool.disk.push_effect(effect);
    }

    /// A lineage that nobody has open leaves memory, with what was not durable.
    pub(crate) fn forget(&self, lineage: Lineage) {
        self.volumes.remove(lineage);
        self.pool.journals.remove(lineage);
    }

    /// Makes all completed writes to the pool durable.
    ///
    /// A failure is final, and everybody's: it does not say what was lost, and another sync may succeed without it. So
    /// nothing that is not durable counts any more, of no volume: those that are open stop, what journals know is void, and
    /// whoever opens such a volume next gets an error. That goes for volumes, too, that are in memory and have no writer: nobody
    /// would see that they stop.
    pub(crate) async fn sync_pool(&self) -> Outcome<()> {
        let synced = self.pool.disk.sync_pool().await;
        if synced.is_err() {
            self.lose_unsynced();
        }
        synced
    }

    /// A sync of the pool has failed that another mapper of this process asked for: the same. That mapper voids the journals of
    /// volumes that nobody has in memory, perhaps before this call, and cannot know which mapper they are opened by.
    pub(crate) fn note_failed_sync(&self) {
        self.pool.disk.note_failed_pool_sync();
        self.volumes.poison_all();
        for lineage in self.writable_lineages() {
            if self.volumes.get(lineage).is_some() {
                self.void_journal(lineage);
            } else {
                self.pool.journals.suspect(lineage);
            }
        }
    }

    fn lose_unsynced(&self) {
        self.volumes.poison_all();
        for lineage in self.writable_lineages() {
            self.void_journal(lineage);
        }
    }

    fn writable_lineages(&self) -> Vec<Lineage> {
        let names = self.catalogue.names();
        let kinds = [Kind::Volume, Kind::Importing].into_iter();
        kinds.flat_map(|kind| names.of_kind(kind)).collect()
    }

    fn void_journal(&self, lineage: Lineage) {
        let has_writer = self.volumes.has_writer(lineage);
        self.pool.journals.void(lineage, has_writer);
    }
}
