//! Block devices of this host through the kernel's NBD client, connected to an export of the pool's endpoint: the operations that need
//! privileges.
//!
//! Invariants
//! - A device has one connection and no timeout of requests. A request that waits for storage is never sent twice, so a late answer cannot
//!   overwrite newer data with older data. When the connection ends, requests in flight are sent again on the next connection.
//! - The backend identifier, which the kernel stores, shows whether a device belongs to this node. Other devices are never changed,
//!   whatever their number.
//! - A device is disconnected only when no other process has it open and its dirty pages in the host's page cache have been written.
//!
//! Source: `drivers/block/nbd.c` and `include/uapi/linux/nbd-netlink.h` of Linux, for the kernel's behaviour.
//!
//! | module | subject |
//! |---|---|
//! | `device` | which device belongs to which node and volume, and the operations on it |
//! | `serving` | connects a device to its endpoint |
//! | `ending` | disconnects a device; removes left-overs of the node |
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
