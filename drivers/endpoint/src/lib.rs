//! What drivers share: the seam between a driver and the process that hosts it.
//!
//! A driver serves the protocol of a guest or a kernel; what it serves is an endpoint. Each endpoint has two halves, which the driver's
//! attach function returns: the [`Endpoint`] stays with the threads of control; the [`Seed`] goes to the data thread and becomes a
//! [`Driver`] there.
//!
//! | module | subject |
//! |---|---|
//! | [`driver`] | the halves of an endpoint, as their host uses them |
//! | [`wakeups`] | what makes the data thread poll a driver: descriptors and time |
//! | [`volume`] | the volume of an endpoint: when it is open, what requests get |
//! | [`socket_file`], [`throttle`] | a socket in the file system; bursts that are free |
//! | [`mod@counters`] | figures that one thread counts and others read |
//!
//! One design decision: the host calls a driver through `dyn` once a turn, and never per request. The data path between a driver
//! and the volume peer is generic ([`Volumes`](archipelago_protocol::volume::Volumes)) and costs no indirection.
//!
//! ```text
//! let (endpoint, seed) = nbd::attach(&volume, options)?;       // a thread of control
//! let driver = seed.build(volumes, wakeups)?;                  // the data thread polls it from now on
//! endpoint.detach(Detach::Force)?;                             // a thread of control again
//! ```
//!
//! This crate never knows a protocol, a volume's content or a backend.

#![forbid(unsafe_code)]

pub mod counters;
pub mod driver;
pub mod socket_file;
pub mod throttle;
pub mod volume;
pub mod wakeups;

pub use archipelago_protocol::endpoint::{AttachmentId, EndpointSpec, ServedVolume};
pub use driver::{Activity, Detach, Driver, Endpoint, Seed, Shortage};
pub use socket_file::SocketFile;
pub use throttle::Throttle;
pub use volume::{Clients, EndpointVolume, NotServed, Report, Service};
pub use wakeups::{Wakeups, WatchId};
