//! Objects in container files of a directory, on a local file system.
//!
//! * [`FileBackend`]: the backend; lives on its reactor's ring.
//! * [`Options`]: how it is opened, [`JoinedPool`]: by several threads of a process; [`Claimant`], [`Claim`], [`Host`]: the process that
//!   opens the pool, and its right to.
//! * [`room()`]: free space in a pool's file system; [`stored()`]: the space of the pool's objects there; [`holder()`]: the process that has
//!   the pool open.
//! * [`create`]: makes a pool's directory; [`Layout`]: the names of objects in it; [`foreign()`]: foreign files in their places.
//!
//! One design decision: all blocks that a lineage wrote in one epoch lie in one sparse file for each 64 GiB of volume,
//! placed by arithmetic. So there are few descriptors, one `fdatasync` covers any number of dirty objects, and no name
//! is made on the path of a write except the first. The purpose of each file: `docs/pool-format.md`.
//!
//! This crate contains nothing of volumes, maps or names of volumes, and never writes outside its directory.

#![forbid(unsafe_code)]

mod access;
mod backend;
mod blocking_pool;
mod bounce_buffers;
mod calls;
mod context;
mod counters;
mod deletion;
mod descriptors;
mod errors;
mod files;
mod foreign_files;
mod heads;
mod holder;
mod job_requests;
mod jobs;
mod joined;
mod layout;
mod lock;
mod log_job;
mod logs;
mod names;
mod open_file;
mod open_job;
mod owner;
mod parts;
mod pending_opens;
mod pool;
mod reserve;
mod room;
mod siblings;
mod spans;
mod stall_detector;
mod stored;
mod sync_state;
mod syncs;
mod threads;
mod throttle;
mod transfer;
mod transfers;
mod unaligned;
mod write_gate;

pub use backend::FileBackend;
pub use counters::Counters;
pub use descriptors::files_kept;
pub use foreign_files::foreign;
pub use holder::{Holder, holder};
pub use joined::{JoinedPool, Options};
pub use layout::{CONTAINER_LEN, Layout};
pub use owner::{Claim, Claimant, Host, stray_records};
pub use pool::create;
pub use room::{Room, room};
pub use stored::{Stored, stored};

#[cfg(test)]
mod tests;
