//! A backend for crash tests: written apart from durable, and every fault on demand.
//!
//! ```
//! use archipelago_doubles::simulated::{Random, SimulatedBackend};
//! let backend = SimulatedBackend::new(7);
//! let after_a_power_cut = backend.clone().power_cut(&mut Random::new(1));
//! assert_eq!(after_a_power_cut.objects(), []);
//! ```
//!
//! * [`SimulatedBackend`]: the backend. Clones share memory, so an image of the whole pool costs microseconds.
//! * [`Chooser`]: decides what a crash leaves: [`Random`] from a seed, or [`Enumerator`] for all there is.
//!
//! What it assumes of media, no more: a sector is written whole or not at all. Until a sync that was started after a
//! write completed has completed, any version of each sector that was written since may be what a power cut leaves, and
//! the names of new objects may be lost, and deletes undone.
//!
//! Deterministic: the same seed and the same calls give the same replies in the same order.

mod backend;
mod choose;
mod fault;
mod file;
mod store;

#[cfg(test)]
mod tests;

pub use backend::SimulatedBackend;
pub use choose::{Chooser, Enumerator, Random};
pub use fault::Fault;
