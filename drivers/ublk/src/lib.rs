//! ublk endpoints: a volume as a block device of this host, `/dev/ublkbN`.
//!
//! | module | subject |
//! |---|---|
//! | [`kernel`] | which kernels are fit for it |
//! | [`control`] | devices: made, started, recovered, stopped, removed; for the privileged process |
//! | [`layout`] | how many requests a device has, and where their data is |
//! | `request` | a request of the kernel, decoded and checked |
//! | [`queue`] | the kernel's side of a queue, and the trait that gives one to a driver |
//! | `slots` | which requests of a queue the kernel has, and which the driver |
//! | `config` | how a volume is attached |
//! | `driver` | serves a device on the data thread |
//! | `endpoint`, `shared` | the half that control sees; what both halves share |
//! | `metrics` | figures |
//!
//! Two processes have part in a device: the daemon, which is privileged, gives commands on the control device ([`Control`]) and
//! opens the device's queue; the data process, which has no privileges, is handed that descriptor and serves the queue through
//! its own io_uring.
//!
//! One design decision: the driver takes a [`KernelQueue`] from its event loop, so that the same driver runs beside a kernel in
//! memory, which loses, repeats and delays what it likes.
//!
//! This crate never knows a volume's content or a backend, and never retries a request: what was not answered the kernel itself
//! gives to the device's next server.

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
