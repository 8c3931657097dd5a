//! The parts of a mapper, which its tasks share.

use std::rc::Rc;

use archipelago_protocol::Lineage;
use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::map::MapReply;

use crate::catalogue::Catalogue;
use crate::config::MapperConfig;
use crate::effect::{ClientId, Effect};
use crate::failure::Outcome;
use crate::journal::JournalStore;
use crate::pool::Pool;
use crate::sessions::Sessions;
use crate::volumes::Volumes;

/// All that a mapper consists of, but for its unfinished tasks.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) pool: Rc<Pool>,
    pub(crate) catalogue: Catalogue,
    pub(crate) volumes: Volumes,
    pub(crate) sessions: Sessions,
}

impl Parts {
    pub(crate) fn new(config: MapperConfig, journals: Box<dyn JournalStore>) -> Self {
        let pool = Rc::new(Pool::new(config, journals));
        Parts {
            catalogue: Catalogue::new(&pool),
            volumes: Volumes::new(&pool.scheduler),
            sessions: Sessions::default(),
            pool,
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
            self.volumes.poison_all();
            for kind in [Kind::Volume, Kind::Importing] {
                for lineage in self.catalogue.names().of_kind(kind) {
                    let has_writer = self.volumes.has_writer(lineage);
                    self.pool.journals.void(lineage, has_writer);
                }
            }
        }
        synced
    }
}
