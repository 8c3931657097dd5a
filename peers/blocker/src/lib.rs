//! The object contract as code: the backend's trait, and the peer that serves a backend to other peers.
//!
//! * [`Backend`]: the trait of each kind of storage; the contract itself is [`archipelago_protocol::object`]'s.
//! * [`BlockerPeer`]: the peer that serves one backend to any number of channels, each within its [`Rights`].
//! * [`Claim`]: the right with which a pool is opened.
//! * [`logs`]: the rules of append and seal, and how a log's end is found on a medium of sectors.
//! * [`slots`]: how a small compare-and-swap object lies on a medium of sectors, for backends that need it.
//!
//! The peer validates requests once for all backends (form, rights, memory) and is fair to its channels, so a backend is only storage. A
//! backend for tests, and the battery that every backend passes, are in `tests/doubles`.
//!
//! This crate contains nothing of volumes, maps or names.

#![forbid(unsafe_code)]

mod backend;
mod channel;
mod claim;
mod counters;
mod handles;
mod in_flight;
pub mod logs;
mod peer;
mod rights;
mod scatter;
pub mod slots;

pub use backend::Backend;
pub use channel::ChannelId;
pub use claim::Claim;
pub use counters::Counters;
pub use peer::{BlockerPeer, ENTRIES_PER_TURN, IN_FLIGHT_MAX};
pub use rights::Rights;
