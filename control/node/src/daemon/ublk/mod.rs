//! Block devices of this host at which volumes are served: the operations that need privileges. The pool's endpoint serves the requests; it
//! receives the device's queue.
//!
//! Invariants
//! - A device of this node without an attachment was left by an interrupted attach, and is removed at the start.
//! - Devices of other servers are never changed, whatever their number.
//! - A device is stopped only when no other process has it open and its dirty pages in the host's page cache have been written.
//! - A device whose server died keeps its requests until the next server: this module never answers them itself.
//!
//! | module | subject |
//! |---|---|
//! | `device` | which device belongs to which node and volume, and the operations on it |
//! | `serving` | creates a device, or recovers it from a dead server, for its endpoint |
//! | `ending` | stops and removes devices; removes left-overs of the node |

mod device;
mod ending;
mod serving;

pub(super) use device::{OwnDevice, check, endpoint, free_number};
pub(super) use ending::remove_left_over;
