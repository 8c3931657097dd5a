//! Power cuts under a real guest's file system: a recording between blocker and disk, replayed up to each sync.
//!
//! * [`plan`]: what the guest does to its files, from a seed.
//! * [`report`]: how the guest says that a step is over.
//! * [`record`]: runs the guest, and keeps what the blocker asked of the disk.
//! * [`replay`]: the recording, done again up to each sync and each report.
//! * [`point`]: the pool there, with the power cut, opened by the production peers.
//! * [`validators`]: the threads that validate points.
//! * [`medium`]: the file systems: made, mounted after the cut, checked.
//! * [`promise`]: whether the files are as promised.
//! * `archipelagod-recording`: the node daemon, with its disk's requests written down.
//! * `power-cut-workload`: what runs in the guest.
//! * `power-cut-replay`: looks at one point of a recording again.
//!
//! One design decision: the guest reports in the volume itself, with a write past all caches after each step. So one
//! recording has both what was asked of the disk and what had been promised by then, in one order, and no clocks are compared.
//!
//! A failure keeps the recording and prints the command that replays it.

#![forbid(unsafe_code)]

pub mod medium;
pub mod plan;
pub mod point;
pub mod promise;
pub mod record;
pub mod replay;
pub mod report;
pub mod validators;
