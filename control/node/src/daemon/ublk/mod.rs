//! Block devices of this host that volumes are served at: what only a privileged process may do with them. What a device asks for is
//! served by the pool's endpoint, which is handed the device's queue.
//!
//! Invariants
//! - A device of this node that no attachment names is a left-over of an attach that was cut short, and removed at the start.
//! - Another server's device, whatever its number, is never touched.
//! - A device is never stopped while anybody but this node has it open, and not before what the host's page cache holds of it has
//!   been written.
//! - A device whose server died keeps its requests until the next server: nothing here answers them in its place.
//!
//! | module | subject |
//! |---|---|
//! | `device` | which device is whose, and what is asked of it |
//! | `serving` | a device and its endpoint: made, or recovered from a dead server |
//! | `ending` | a device is stopped, taken back, removed; the left-overs of the node |

mod device;
mod ending;
mod serving;

pub(super) use device::{OwnDevice, check, endpoint, free_number};
pub(super) use ending::remove_left_over;
