//! Block devices of this host by its kernel's NBD client, connected to an export of the pool's endpoint: what only a privileged process
//! may do with them.
//!
//! Invariants
//! - A device has one connection and no timeout of requests: a request that the storage makes wait is never sent twice, so an answer that
//!   came late cannot put older data over newer. What was in flight when its connection ended is sent again once there is another one.
//! - What tells a device of this node from others' is its backend identifier, which the kernel keeps: another server's device, whatever
//!   its number, is never touched.
//! - A device is disconnected once nobody but this node has it open, and what the host's page cache holds of it is written.
//!
//! Source: `drivers/block/nbd.c` and `include/uapi/linux/nbd-netlink.h` of Linux, for what the kernel does.
//!
//! | module | subject |
//! |---|---|
//! | `device` | which device is whose, and what is asked of it |
//! | `serving` | a device gets a connection to its endpoint |
//! | `ending` | a device is disconnected; the left-overs of the node |
//! | `connection` | the handshake with the endpoint |
//! | `kernel` | commands on devices |
//! | `netlink` | those commands as bytes |

mod connection;
mod device;
mod ending;
mod kernel;
mod netlink;
mod serving;

pub(super) use device::{OwnDevice, check, endpoint, free_number};
pub(super) use ending::remove_left_over;
