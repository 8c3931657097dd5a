//! vhost-user-blk endpoint: a volume as a virtio block device of a virtual machine.
//!
//! | module | subject |
//! |---|---|
//! | [`endpoint`] | attach and detach: the socket, the thread beside it |
//! | `session`, `stop`, `handler`, `back_channel` | one front end's connection: messages, descriptors, config notices |
//! | [`ring_check`] | whether the guest's memory is shared, so that the device sees its requests |
//! | `throttle` | limits for actions that cost a guest nothing: starts, memory slots, refused requests |
//! | [`command`] | commands of the connection's thread to the device |
//! | [`device`] | the device on the data thread: its turn, its volume |
//! | [`queue`], [`chain`], [`request`], [`request_kind`] | split ring, descriptor chains, virtio-blk requests and their kinds |
//! | [`failure`] | why guests get error statuses, and which of them are logged |
//! | [`memory`] | guest addresses to (region, offset) |
//! | [`inflight`], [`dirty_log`] | the state for a successor; the log for a migration |
//! | [`config`], [`metrics`] | features and configuration space; figures |
//!
//! One design decision: the crate `vhost` parses messages on a plain thread per attached volume, because it blocks in the
//! middle of a message; the ring is our own, on the data thread, because in-flight tracking, logging and draining need
//! hooks that `vhost-user-backend` lacks. The two meet in a channel of commands.
//!
//! ```text
//! let (endpoint, seed) = Endpoint::attach(config)?;            // any thread
//! let device = Box::new(seed).build(volumes, wakeups)?;        // on the data thread, which polls it from now on
//! endpoint.detach(Detach::Force)?;                             // any other thread
//! ```
//!
//! This crate contains nothing of maps, objects or names, never allocates for a request, and never blocks the data thread.

#![forbid(unsafe_code)]

mod back_channel;
pub mod chain;
pub mod command;
pub mod config;
pub mod device;
pub mod dirty_log;
pub mod endpoint;
pub mod failure;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handler;
pub mod inflight;
pub mod memory;
pub mod metrics;
pub mod queue;
pub mod request;
pub mod request_kind;
pub mod ring_check;
mod session;
mod shared;
mod stop;
mod throttle;

pub use config::AttachConfig;
pub use device::{Device, DeviceSeed};
pub use endpoint::Endpoint;
pub use metrics::Counters;
pub use ring_check::Problem;
