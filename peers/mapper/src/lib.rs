//! Head, log, map, epochs, clone, snapshot, catalogue: a deterministic state machine.
//!
//! [`Mapper`] takes requests of volume peers and of control, and the answers of a blocker; it gives [`Effect`]s: object
//! requests to send and answers to pass on. The same calls in the same order give the same effects.
//!
//! | module | what |
//! |---|---|
//! | `mapper`, `effect` | the surface |
//! | `peer` | the mapper on any number of channels: the only folder that knows ports |
//! | `catalogue` | names, and what exists |
//! | `check` | what is damaged, missing or leaked in a pool |
//! | `volume` | sessions, locate, flush, snapshot, checkpoint, recovery |
//! | `tree` | the map: persistent nodes, their pages, their cache |
//! | `log`, `head`, `format` | what is durable; byte tables in `docs/map-format.md` |
//! | [`journal`] | what outlives a process, not a power cut |
//! | `task`, `disk` | futures polled by hand, object requests as calls |
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
mod core;
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
mod log;
mod mapper;
mod peer;
mod task;
#[cfg(test)]
mod tests;
mod tree;
mod volume;

pub use counters::Counters;
pub use effect::{ClientId, Effect, EffectId};
pub use mapper::{Mapper, MapperConfig};
pub use peer::{ENTRIES_PER_TURN, MapperPeer, Rights};
