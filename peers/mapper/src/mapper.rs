//! The mapper's surface: requests in, effects out.

use std::rc::Rc;

use archipelago_protocol::carry::Carried;
use archipelago_protocol::catalogue::CatalogueRequest;
use archipelago_protocol::map::MapRequest;
use archipelago_protocol::object::ObjectReply;
use archipelago_protocol::{Error, Lineage};

use crate::catalogue;
use crate::core::Core;
use crate::counters::Counters;
use crate::effect::{ClientId, Effect, EffectId};
use crate::journal::JournalStore;
use crate::log::UNIT;
use crate::task::Tasks;
use crate::volume;

/// What a mapper is told at its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapperConfig {
    /// Who it is: stands in the heads that it writes.
    pub owner: u128,
    /// Bytes of the logs of volumes that are opened for the first time; a multiple of 4096, at least 64 KiB.
    pub log_len: u64,
    /// Bytes of the catalogue's log when the pool is new; likewise.
    pub catalogue_log_len: u64,
    /// Memory for map pages of all volumes, in bytes.
    pub cache_bytes: usize,
    /// First writes and zeroed ranges of a volume that may wait to be logged. Not more than its journal holds.
    pub pending_max: usize,
    /// Longest object read or write, a multiple of 4096: what the channel's arena has room for.
    pub io_len_max: usize,
}

impl Default for MapperConfig {
    /// 4 MiB logs hold some 130,000 records; 32,768 pending ones are 1.5 MiB of journal; 64 MiB of pages map 16 TiB and
    /// more of data that was written in order.
    fn default() -> Self {
        MapperConfig {
            owner: 0,
            log_len: 4 << 20,
            catalogue_log_len: 4 << 20,
            cache_bytes: 64 << 20,
            pending_max: 32_768,
            io_len_max: 256 << 10,
        }
    }
}

/// The mapper. Lives on one thread.
#[derive(Debug)]
pub struct Mapper {
    core: Rc<Core>,
    tasks: Tasks,
}

impl Mapper {
    /// A mapper that has read nothing yet.
    ///
    /// # Panics
    /// If the sizes in `config` are not what their descriptions say.
    #[must_use]
    pub fn new(config: MapperConfig, journals: Box<dyn JournalStore>) -> Self {
        let unit = UNIT as u64;
        for len in [config.log_len, config.catalogue_log_len] {
            assert!(
                len.is_multiple_of(unit) && len >= 16 * unit && len <= 1 << 30,
                "log length {len}"
            );
        }
        assert!(
            config.io_len_max >= 4 * UNIT && config.io_len_max.is_multiple_of(UNIT),
            "longest object request"
        );
        assert!(config.pending_max > 0, "pending records");
        Mapper {
            core: Rc::new(Core::new(config, journals)),
            tasks: Tasks::default(),
        }
    }

    /// Reads the catalogue, or makes one in an empty pool. Requests may come before it is done; they wait.
    pub fn start(&mut self) {
        let core = Rc::clone(&self.core);
        self.core.scheduler.spawn(async move {
            if let Err(failure) = core.catalogue.ready(&core).await {
                core.note(Lineage::CATALOGUE, &failure);
                tracing::error!("the catalogue cannot be used: {}", failure.message);
            }
        });
        self.run();
    }

    /// Takes a request of a volume peer; `carried` is what its area holds, if it names one. Exactly one
    /// [`Effect::MapReply`] follows, unless the client is gone.
    pub fn map_request(
        &mut self,
        client: ClientId,
        tag: u64,
        request: MapRequest,
        carried: Carried,
    ) {
        volume::dispatch(&self.core, client, tag, request, carried);
        self.run();
    }

    /// Takes a request of control. Exactly one [`Effect::CatalogueReply`] follows.
    pub fn catalogue_request(&mut self, tag: u64, request: CatalogueRequest) {
        let core = Rc::clone(&self.core);
        self.core.scheduler.spawn(async move {
            let reply = catalogue::answer(&core, request).await;
            core.disk
                .effects
                .borrow_mut()
                .push_back(Effect::CatalogueReply { tag, reply });
        });
        self.run();
    }

    /// A volume peer's process died, or its channel ended. What it reported stays; its sessions end. Answers to it may
    /// still come out; drop them.
    pub fn client_gone(&mut self, client: ClientId) {
        volume::client_gone(&self.core, client);
        self.run();
    }

    /// Takes the answer to an [`Effect::Object`]; `data` is what was read, empty otherwise.
    pub fn object_done(&mut self, id: EffectId, reply: ObjectReply, data: Vec<u8>) {
        self.core.disk.done(id, reply, data);
        self.run();
    }

    /// The next thing to do.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.core.disk.effects.borrow_mut().pop_front()
    }

    /// Whether the catalogue was read.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.core.catalogue.is_ready()
    }

    /// Whether nothing is under way: no request waits and nothing is done in the background.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tasks.len() == 0 && self.core.disk.effects.borrow().is_empty()
    }

    /// Why the catalogue cannot be used, if so.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.core.catalogue.failure().map(Error::from)
    }

    /// The last damage that was found in the objects of `lineage`, for people.
    #[must_use]
    pub fn damage(&self, lineage: Lineage) -> Option<String> {
        self.core.damages.borrow().get(&lineage).cloned()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    /// Volumes whose presence journal is in use.
    #[must_use]
    pub fn journals(&self) -> Vec<Lineage> {
        self.core.journals.borrow().in_use()
    }

    /// Sessions that are open.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.core.sessions.borrow().len()
    }

    /// Memory that map pages take, in bytes.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.core.cache.borrow().bytes()
    }

    /// Object requests so far.
    #[must_use]
    pub fn object_requests(&self) -> u64 {
        self.core.disk.requests.get()
    }

    fn run(&mut self) {
        self.tasks.run(&self.core.scheduler);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;
    use crate::journal::NoJournals;

    fn is_taken(config: MapperConfig) -> bool {
        catch_unwind(|| Mapper::new(config, Box::new(NoJournals))).is_ok()
    }

    #[test]
    fn sizes_that_are_not_what_their_descriptions_say_are_refused() {
        let default = MapperConfig::default();
        for (log_len, good) in [
            (64 << 10, true),
            (1 << 30, true),
            (60 << 10, false),
            ((64 << 10) + 512, false),
            ((1 << 30) + 4096, false),
        ] {
            let catalogue_log_len = log_len;
            assert_eq!(is_taken(MapperConfig { log_len, ..default }), good);
            let other = MapperConfig {
                catalogue_log_len,
                ..default
            };
            assert_eq!(is_taken(other), good, "{log_len}");
        }
        for (io_len_max, good) in [(16384, true), (12288, false), (16384 + 512, false)] {
            let config = MapperConfig {
                io_len_max,
                ..default
            };
            assert_eq!(is_taken(config), good, "{io_len_max}");
        }
        for (pending_max, good) in [(1, true), (0, false)] {
            let config = MapperConfig {
                pending_max,
                ..default
            };
            assert_eq!(is_taken(config), good, "{pending_max}");
        }
    }
}
