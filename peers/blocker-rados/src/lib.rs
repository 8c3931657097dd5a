//! Objects in a RADOS pool: one RADOS object for each object of a volume.
//!
//! * [`RadosBackend`]: the backend; lives on its reactor's thread.
//! * [`Options`]: the pool, and the client that opens it; [`check`]: whether it can be opened.
//! * [`keep_buffers`]: a setting of the process that hosts the backend.
//!
//! | module | subject |
//! |---|---|
//! | `open`, `owner` | opening a pool, and its owner |
//! | `backend` | routes requests |
//! | `transfers` | reads and writes of one call |
//! | `heads`, `logs`, `index`, `removal`, `looks` | requests of several calls: a task each |
//! | `calls`, `tasks` | calls under way; the tasks that wait for them |
//! | `names`, `head_bytes` | the names of RADOS objects; the bytes of a head |
//! | `known` | a cache of index entries |
//! | `space` | the thread that asks the monitors for free space |
//!
//! One design decision: the objects of a lineage are listed in an index of its own, a RADOS object with a sorted map, which is written
//! before the object is made. So the pool is never listed, and an object that a crash left behind is found. The index lists data objects in
//! groups of 16, so a first write to a volume's object seldom waits for it. `docs/pool-format.md` has names and formats.
//!
//! This crate never waits for the cluster on the reactor's thread, and contains nothing of volumes, maps or names of volumes.

#![forbid(unsafe_code)]

mod backend;
mod calls;
mod errors;
mod head_bytes;
mod heads;
mod index;
mod known;
mod logs;
mod looks;
mod memory;
mod names;
mod open;
mod owner;
mod removal;
mod space;
mod tasks;
mod transfers;

pub use backend::RadosBackend;
pub use librados_sys::keep_buffers;
pub use open::{Options, check};
pub use owner::Claimant;
