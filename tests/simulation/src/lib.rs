//! The production peers over the simulated backend, against a model, with a crash at every backend call.
//!
//! * [`oracle`]: what may be read: the promises as a model.
//! * [`plan`]: what a run does, random or enumerated.
//! * [`machine`]: nodes, backend and tasks, interleaved by a seed.
//! * [`wiring`]: nodes and the backend.
//! * [`node`]: volume peer, mapper and blocker with their channels, as a process hosts them.
//! * [`nodes`]: several nodes on one pool.
//! * [`volume`]: an open volume, as a task uses it.
//! * [`memory`]: memory of machines.
//! * [`journal`]: what survives the death of a process.
//! * [`run`]: a plan carried out, by tasks.
//! * [`trouble`]: why a run ends early.
//! * [`crashes`]: crash images of every crash point, recovered and validated.
//!
//! One design decision: a crash point is a clone of everything that survives, taken while the run goes on. So a run of
//! hundreds of backend calls costs one pass, and each image is an independent little world.
//!
//! A failure prints the command that replays it.

#![forbid(unsafe_code)]
#![expect(
    clippy::missing_panics_doc,
    reason = "a test harness: it panics only on its own mistakes"
)]

pub mod crashes;
pub mod journal;
pub mod machine;
pub mod memory;
pub mod node;
pub mod nodes;
pub mod oracle;
pub mod plan;
mod port;
pub mod run;
mod storage;
mod tasks;
pub mod trouble;
pub mod volume;
pub mod wiring;
mod witness;
