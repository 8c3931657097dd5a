//! The object contract as code: what a backend is, what serves it to other peers, and what proves it.
//!
//! * [`Backend`]: what each kind of storage implements; the contract itself is [`archipelago_protocol::object`]'s.
//! * [`BlockerPeer`]: the peer that serves one backend to any number of channels, each within its [`Rights`].
//! * [`slots`]: how a small compare-and-swap object lies on a medium of sectors, for backends that need it.
//! * `MemoryBackend` (feature `test-utils`): objects in memory.
//! * `battery` (feature `test-utils`): the conformance battery that every backend passes.
//! * `simulated` (feature `test-utils`): a backend that keeps written apart from durable, fails and crashes on demand.
//! * `delayed` (feature `test-utils`): any backend, with requests done late and out of order.
//! * `recording` (feature `test-utils`): any backend, with its requests and answers written down.
//!
//! Requests are judged here once for all backends: form, rights, memory and fairness are the peer's, so that a
//! backend is storage and nothing else.
//!
//! This crate never knows volumes, maps or names.

#![forbid(unsafe_code)]

mod backend;
mod channel;
mod counters;
mod peer;
mod rights;
mod scatter;
pub mod slots;

#[cfg(any(test, feature = "test-utils"))]
pub mod battery;
#[cfg(any(test, feature = "test-utils"))]
pub mod delayed;
#[cfg(any(test, feature = "test-utils"))]
mod memory;
#[cfg(any(test, feature = "test-utils"))]
pub mod recording;
#[cfg(any(test, feature = "test-utils"))]
pub mod simulated;

pub use backend::Backend;
pub use channel::ChannelId;
pub use counters::Counters;
#[cfg(any(test, feature = "test-utils"))]
pub use memory::MemoryBackend;
pub use peer::{BlockerPeer, ENTRIES_PER_TURN, IN_FLIGHT_MAX};
pub use rights::Rights;
