//! Composer: volume requests become object requests.
//!
//! * [`VolumePeer`]: serves the [`Volumes`](archipelago_protocol::volume::Volumes) calls of drivers in its thread; asks
//!   the mapper where blocks live and moves data between guest memory and the blocker.
//! * [`Shared`]: the same peer, held by the reactor, by drivers and by control.
//! * [`ControlEvent`]: what is reported to control: snapshots, volumes without room in the pool.
//!
//! | module | subject |
//! |---|---|
//! | `driver` | the calls of drivers |
//! | `requests` | judging, cutting, answering |
//! | `pieces` | the steps of a piece: where it lives, its transfer, its report |
//! | `exclusion` | which pieces may be in flight together: blocks that are merged |
//! | `transfer` | where the bytes of a piece are |
//! | `flush` | rounds: cut, sync, commit |
//! | `full` | writes without room: parked, probed, started again |
//! | `carry` | copies of small first writes, handed over with a commit |
//! | `snapshot` | snapshots of open volumes |
//! | `session` | open, close, failed syncs, death of the mapper |
//! | `peer` | tables, ports, turns |
//! | `model`, `slab`, `arena`, `segments` | what all of them work on |
//!
//! One design decision: the peer keeps no map and caches no place. It asks the mapper for every piece, because only the
//! mapper's answers are ordered against snapshots and clears; what it asks costs nanoseconds when they share a thread.
//! All tables are of fixed size and allocated once: a full table makes requests wait where they are, in order.
//!
//! This crate never touches a backend, never writes a map, reads no clock and makes no system call.

#![forbid(unsafe_code)]

mod arena;
mod carry;
mod driver;
mod exclusion;
mod flush;
mod full;
mod model;
mod peer;
mod pieces;
mod requests;
mod segments;
mod session;
mod slab;
mod snapshot;
mod transfer;

pub use driver::Shared;
pub use full::{SPACE_INTERVAL, WaitsFor};
pub use peer::VolumePeer;
pub use snapshot::ControlEvent;

#[cfg(test)]
mod tests;
