//! The mapper's surface: requests in, effects out.

use std::rc::Rc;

use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::catalogue::CatalogueRequest;
use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::map::MapRequest;
use archipelago_protocol::object::ObjectReply;
use archipelago_protocol::{Error, Lineage};

use crate::config::MapperConfig;
use crate::control;
use crate::counters::Counters;
use crate::effect::{ClientId, Effect, EffectId};
use crate::journal::JournalStore;
use crate::parts::Parts;
use crate::session;
use crate::task::Tasks;

/// The mapper: used by one thread.
#[derive(Debug)]
pub struct Mapper {
    parts: Rc<Parts>,
    tasks: Tasks,
}

impl Mapper {
    /// A mapper that has read nothing yet.
    ///
    /// # Panics
    /// If the sizes in `config` are not what their descriptions say.
    #[must_use]
    pub fn new(config: MapperConfig, journals: Box<dyn JournalStore>) -> Self {
        config.check();
        Mapper {
            parts: Rc::new(Parts::new(config, journals)),
            tasks: Tasks::default(),
        }
    }

    /// Reads the catalogue, or makes one in an empty pool. Requests may come before it is done; they wait.
    pub fn start(&mut self) {
        self.parts.spawn(|parts| async move {
            if let Err(failure) = parts.catalogue.ready().await {
                parts.pool.note(Lineage::CATALOGUE, &failure);
                tracing::error!("the catalogue cannot be used: {}", failure.message);
            }
        });
        self.run();
    }

    /// Takes a request of a volume peer; `data` is what its area holds, if it names one: blocks that a flush journals. Exactly one
    /// [`Effect::MapReply`] follows, unless the client disconnected.
    pub fn map_request(
        &mut self,
        client: ClientId,
        tag: u64,
        request: MapRequest,
        data: JournaledData,
    ) {
        session::dispatch(&self.parts, client, tag, request, data);
        self.run();
    }

    /// Takes a request of control. Exactly one [`Effect::CatalogueReply`] follows.
    pub fn catalogue_request(&mut self, tag: u64, request: CatalogueRequest) {
        self.parts.spawn(|parts| async move {
            let reply = control::answer(&parts, request).await;
            parts
                .pool
                .disk
                .push_effect(Effect::CatalogueReply { tag, reply });
        });
        self.run();
    }

    /// The node is about to stop: what is done in the background ends at its next step. A later start goes on with it.
    pub fn stop_background(&mut self) {
        self.parts.stop_background();
    }

    /// The node stops, and owns nothing any more: says so in the pool. Nothing can be asked afterwards; [`Mapper::is_idle`] says when
    /// it is done.
    pub fn leave(&mut self) {
        self.parts.spawn(|parts| async move {
            if let Err(failure) = parts.catalogue.leave().await {
                tracing::warn!("this node's end is not noted: {}", failure.message);
            }
        });
        self.run();
    }

    /// A volume peer's process died, or its channel ended. What it reported stays; its sessions end. Answers to it may
    /// still come out; drop them.
    pub fn client_gone(&mut self, client: ClientId) {
        session::client_gone(&self.parts, client);
        self.run();
    }

    /// A sync of the pool has failed that another mapper of this process asked for: what is not durable counts no more, of no volume.
    pub fn pool_sync_failed(&mut self) {
        self.parts.note_failed_sync();
        self.run();
    }

    /// Sets what the blocker's backend does by itself. Until then it does nothing beyond the contract.
    pub fn set_capabilities(&mut self, capabilities: Capabilities) {
        self.parts.pool.disk.set_capabilities(capabilities);
    }

    /// Takes the answer to an [`Effect::Object`]; `data` is what was read, empty otherwise.
    pub fn object_done(&mut self, id: EffectId, reply: ObjectReply, data: Vec<u8>) {
        self.parts.pool.disk.done(id, reply, data);
        self.run();
    }

    /// The next thing to do.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.parts.pool.disk.next_effect()
    }

    /// Whether the catalogue was read.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.parts.catalogue.is_ready()
    }

    /// Whether nothing is under way: no request waits and nothing is done in the background.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tasks.len() == 0 && !self.parts.pool.disk.has_effects()
    }

    /// Why the catalogue cannot be used, if so.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.parts.catalogue.failure().map(Error::from)
    }

    /// The last damage that was found in the objects of `lineage`, or a format that this program does not know.
    #[must_use]
    pub fn damage(&self, lineage: Lineage) -> Option<Error> {
        self.parts.pool.unreadable(lineage).map(Error::from)
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.parts.pool.counters()
    }

    /// Volumes whose presence journal is in use.
    #[must_use]
    pub fn journals(&self) -> Vec<Lineage> {
        self.parts.pool.journals.in_use()
    }

    /// Sessions that are open.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.parts.sessions.len()
    }

    /// Memory that map pages take, in bytes.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.parts.pool.pages.cache().bytes()
    }

    /// Object requests so far.
    #[must_use]
    pub fn object_requests(&self) -> u64 {
        self.parts.pool.disk.requests()
    }

    fn run(&mut self) {
        loop {
            self.tasks.run(&self.parts.pool.scheduler);
            if !control::start_if_due(&self.parts) {
                return;
            }
        }
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
            (128 << 20, true),
            (60 << 10, false),
            ((64 << 10) + 512, false),
            ((128 << 20) + 4096, false),
        ] {
            let catalogue_log_len = log_len;
            assert_eq!(
                is_taken(MapperConfig {
                    log_len,
                    ..default.clone()
                }),
                good
            );
            let other = MapperConfig {
                catalogue_log_len,
                ..default.clone()
            };
            assert_eq!(is_taken(other), good, "{log_len}");
        }
        for (io_len_max, good) in [(16384, true), (12288, false), (16384 + 512, false)] {
            let config = MapperConfig {
                io_len_max,
                ..default.clone()
            };
            assert_eq!(is_taken(config), good, "{io_len_max}");
        }
        for (pack_len_max, good) in [
            (4096, true),
            (128 << 20, true),
            (0, false),
            (4096 + 512, false),
            ((128 << 20) + 4096, false),
        ] {
            let config = MapperConfig {
                pack_len_max,
                ..default.clone()
            };
            assert_eq!(is_taken(config), good, "{pack_len_max}");
        }
        for (owner, node_len, good) in [(1, 64, true), (0, 64, false), (1, 65, false)] {
            let config = MapperConfig {
                owner,
                node: "n".repeat(node_len),
                ..default.clone()
            };
            assert_eq!(is_taken(config), good, "{owner} {node_len}");
        }
        for (pending_max, good) in [(1, true), (0, false)] {
            let config = MapperConfig {
                pending_max,
                ..default.clone()
            };
            assert_eq!(is_taken(config), good, "{pending_max}");
        }
    }
}
