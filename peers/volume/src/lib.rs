//! Composer: turns volume requests into object requests.
//!
//! * [`VolumePeer`]: serves the [`Volumes`](archipelago_protocol::volume::Volumes) calls of drivers in its thread; asks the mapper where
//!   blocks are stored, and moves data between guest memory and the blocker.
//! * [`Shared`]: a handle to the same peer, for the reactor, drivers and control.
//! * [`ControlEvent`]: a report to control: of snapshots, and of volumes without room in the pool.
//!
//! Each part is a type with private fields. The table lists them from the top down; a module knows only those below it.
//!
//! | module | part |
//! |---|---|
//! | `shared` | the handle of the peer |
//! | `peer` | routes calls and answers to volumes; turns |
//! | `volume` | one volume: how the parts below work together |
//! | `pieces` | the pieces of a volume: where each is stored, its transfer, its report |
//! | `submitter` | sends the requests of pieces to mapper and blocker |
//! | `tables` | what all volumes share |
//! | `flush` | rounds: cut, sync or journaled data, commit |
//! | `snapshot` | snapshots of open volumes |
//! | `session` | the state of the session with the mapper, as one enum |
//! | `space` | the policy at a full pool: parked, probed, started again |
//! | `driver` | requests not answered, answers not collected |
//! | `cutter` | cuts requests into pieces |
//! | `ports` | both ports, credits, and the receiver of each answer |
//! | `ready` | volumes with work, in the order of their turns |
//! | `dirty` | objects whose data is not durable |
//! | `request`, `piece` | plain data |
//! | `exclusion` | which writes may be in flight together: merges and clears |
//! | `lineages` | the mapper's short names of lineages |
//! | `epoch_writes` | writes that a snapshot waits for |
//! | `copies` | copies of first writes, for the log |
//! | `status` | the page of runs of a block status |
//! | `memory` | memory of guests |
//! | `cells` | the blocker channel's arena |
//! | `segments` | the memory of a request, and scatter lists |
//! | `call`, `control_event` | plain data |
//! | `slab`, `blocks`, `limits` | tables and queues, block arithmetic, bounds |
//!
//! One design decision: the peer keeps no map and caches no place. It asks the mapper for every piece, because only the mapper's answers
//! are ordered against snapshots and clears; when both share a thread, that costs nanoseconds. All tables have a fixed size and are
//! allocated once: while a table is full, requests wait where they are, in order.
//!
//! This crate accesses no backend, writes no map, reads no clock and makes no system call.

#![forbid(unsafe_code)]

mod blocks;
mod call;
mod cells;
mod control_event;
mod copies;
mod cutter;
mod dirty;
mod driver;
mod epoch_writes;
mod exclusion;
mod flush;
mod limits;
mod lineages;
mod memory;
mod peer;
mod piece;
mod pieces;
mod ports;
mod ready;
mod request;
mod segments;
mod session;
mod shared;
mod slab;
mod snapshot;
mod space;
mod status;
mod submitter;
mod tables;
mod volume;

pub use control_event::{ControlEvent, WaitsFor};
pub use peer::VolumePeer;
pub use shared::Shared;
pub use space::SPACE_INTERVAL;

#[cfg(test)]
mod tests;
