//! The object contract as code: what a backend is, and what serves one to other peers.
//!
//! * [`Backend`]: what each kind of storage implements; the contract itself is [`archipelago_protocol::object`]'s.
//! * [`BlockerPeer`]: the peer that serves one backend to any number of channels, each within its [`Rights`].
//! * [`Claim`]: with what right a pool is opened.
//! * [`logs`]: what an append or a seal comes to, and how a log's end is found on a medium of sectors.
//! * [`slots`]: how a small compare-and-swap object lies on a medium of sectors, for backends that need it.
//!
//! Requests are checked here once for all backends: form, rights, memory and fairness are the peer's, so that a
//! backend is storage and nothing else. A backend for tests, and the battery that every backend passes, are in
//! `tests/doubles`.
//!
//! This crate never knows volumes, maps or names.

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
