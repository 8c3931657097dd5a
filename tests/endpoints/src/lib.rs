//! One battery over every way into a volume: the same cases, whatever a client speaks.
//!
//! [`Way`] is a kind of endpoint, [`Attached`] a volume attached that way on a real node, and [`Disk`] a client of it, which does one
//! request at a time and goes on when the processes behind it have died, as the clients do that people have.
//!
//! One design decision: a client here resends what was not answered. Requests are few and each can be done twice, so a case says what a
//! disk holds without a word about reconnecting.
#![forbid(unsafe_code)]

use std::path::Path;

mod aligned;
pub mod attached;
pub mod deaths;
pub mod disk;
mod disks;
pub mod exclusion;
pub mod files;
pub mod fsx;
pub mod load;

pub use attached::{Attached, Way};
pub use disk::Disk;

/// A client of the default export at `socket`, which never reconnects: the end of its connection is an error.
///
/// # Errors
/// If there is no connection within the time of [`disk::TIMEOUT`].
pub fn nbd_connection(socket: &Path) -> std::io::Result<Box<dyn Disk>> {
    Ok(Box::new(disks::nbd::Nbd::connect_once(socket)?))
}
