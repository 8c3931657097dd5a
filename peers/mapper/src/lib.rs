//! Head, log, map, epochs, clone, snapshot, catalogue: a deterministic state machine.
//!
//! [`Mapper`] takes requests of volume peers and of control, and the answers of a blocker; it gives [`Effect`]s: object
//! requests to send and answers to pass on. The same calls in the same order give the same effects.
//!
//! | module | what |
//! |---|---|
//! | `peer` | the mapper on any number of channels: the only folder that knows ports |
//! | `mapper`, `config`, `effect` | the surface |
//! | `session` | what volume peers ask: locate, flush, snapshot, and the checkpoints and recoveries that it takes |
//! | `control` | what control asks, and the collection of what nobody needs |
//! | `check` | what is damaged, missing or leaked in a pool |
//! | `parts` | what a mapper consists of, shared by its tasks |
//! | `volume`, `volumes`, `sessions` | the state of a volume in memory; all of them; who may ask about which |
//! | `catalogue` | names, and what exists |
//! | `pool` | objects, pages, journals and counters that all of these use |
//! | `tree`, `pages` | the map: persistent nodes, their pages, their cache |
//! | `log`, `head`, `format` | what is durable; byte tables in `docs/map-format.md` |
//! | [`journal`], `journals` | what outlives a process, not a power cut |
//! | `task`, `disk` | futures polled by hand, object requests as calls |
//!
//! Each module imports those below it in the table only.
//!
//! One design decision: longer work (an open, a checkpoint) is written as straight-line futures and polled by the mapper
//! itself whenever a reply comes in. No executor, thread, clock or waker is involved, so it stays a state machine.
//!
//! ```
//! use archipelago_mapper::{Effect, Mapper, MapperConfig, journal::NoJournals};
//!
//! let mut mapper = Mapper::new(MapperConfig::default(), Box::new(NoJournals));
//! mapper.start();
//! // The first thing it asks for is the head of the catalogue.
//! assert!(matches!(mapper.next_effect(), Some(Effect::Object { .. })));
//! ```
//!
//! This crate never does I/O, reads no clock, starts no thread, draws no random number, and never sees data of guests
//! but for the last block of a volume that is shrunk.

#![forbid(unsafe_code)]

mod catalogue;
mod check;
mod config;
mod control;
mod counters;
mod disk;
mod effect;
mod failure;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod head;
pub mod journal;
mod journals;
mod log;
mod mapper;
mod pages;
mod parts;
mod peer;
mod pool;
mod session;
mod sessions;
mod task;
#[cfg(test)]
mod tests;
mod tree;
mod volume;
mod volumes;

pub use config::{MapperConfig, Sharing};
pub use counters::Counters;
pub use effect::{ClientId, Effect, EffectId};
pub use mapper::Mapper;
pub use peer::{ENTRIES_PER_TURN, MapperPeer, Rights};
