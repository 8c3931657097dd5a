//! The kernel's ublk driver, as the server of a device uses it: block devices of this host whose requests are answered by a process.
//!
//! * [`UblkControl`]: creates, starts, recovers and removes devices; its calls may block and need privileges.
//! * [`UblkQueue`]: a queue of a device, for the data thread; its requests go through [`Source`](crate::Source).
//! * [`abi`]: numbers and structures.
//!
//! Source: `Documentation/block/ublk.rst` and `include/uapi/linux/ublk_cmd.h` of Linux.

pub mod abi;
mod control;
mod queue;

pub use control::UblkControl;
pub use queue::UblkQueue;
