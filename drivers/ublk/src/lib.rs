//! ublk endpoints: a volume as a block device of this host, `/dev/ublkbN`.
//!
//! | module | subject |
//! |---|---|
//! | [`kernel`] | which kernels support ublk without known faults |
//! | [`control`] | devices: made, started, recovered, stopped, removed; for the privileged process |
//! | [`layout`] | the number of requests of a device, and where their data is |
//! | `request` | a request of the kernel, decoded and checked |
//! | [`queue`] | the kernel's side of a queue, and the trait that gives one to a driver |
//! | `slots` | the owner of each request of a queue: the kernel or the driver |
//! | `config` | how a volume is attached |
//! | `driver` | serves a device on the data thread |
//! | `endpoint`, `shared` | the half that control sees; what both halves share |
//! | `metrics` | figures |
//!
//! A device involves two processes: the daemon, which is privileged, gives commands on the control device ([`Control`]) and opens the
//! device's queue; the data process, which has no privileges, receives that descriptor and serves the queue through its own io_uring.
//!
//! One design decision: the driver takes a [`KernelQueue`] from its event loop, so that tests run the same driver with a simulated kernel,
//! which loses, repeats and delays requests.
//!
//! This crate contains nothing of a volume's content or a backend, and never retries a request: the kernel itself sends requests without an
//! answer to the device's next server.

#![forbid(unsafe_code)]

mod config;
pub mod control;
mod driver;
mod endpoint;
pub mod kernel;
pub mod layout;
mod metrics;
pub mod queue;
mod request;
mod shared;
mod slots;

pub use config::AttachConfig;
pub use control::{Control, Device, DeviceMark};
pub use driver::DriverSeed;
pub use endpoint::Endpoint;
pub use metrics::{Counters, Metrics};
pub use queue::{Completed, KernelQueue, KernelQueues};
