//! Objects in a RADOS pool: one RADOS object for each object of a volume.
//!
//! * [`RadosBackend`]: the backend; lives on its reactor's thread.
//! * [`Options`]: which pool, and as whom it is opened; [`check`]: whether it can be.
//! * [`keep_buffers`]: a setting of the process that hosts the backend.
//!
//! | module | subject |
//! |---|---|
//! | `open`, `owner` | how a pool is opened, and by whom |
//! | `backend` | routes requests |
//! | `transfers` | reads and writes of one call |
//! | `heads`, `logs`, `index`, `removal`, `looks` | requests of several calls: a task each |
//! | `calls`, `tasks` | calls under way; what goes on when one ends |
//! | `names`, `head_bytes` | how RADOS objects are called; the bytes of a head |
//! | `known` | what need not be written into an index again |
//! | `space` | the thread that asks the monitors |
//!
//! One design decision: what there is of a lineage stands in an index of its own, a RADOS object with a sorted map, which is written
//! before the object is. So nothing ever lists the pool, and an object that a crash left behind is found. The index counts data objects
//! by groups of 16, so a first write to a volume's object seldom waits for it. `docs/pool-format.md` has names and formats.
//!
//! This crate never waits for the cluster on the reactor's thread, and never knows volumes, maps or names of volumes.

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
