//! Throw-away Ceph clusters for tests: a monitor and some OSDs in a private directory, up in a second, down when dropped.
//!
//! * [`CephCluster`]: a cluster that runs. [`ClusterOptions`]: how many OSDs, what they store on, whether clients need keys.
//!
//! One design decision: the OSDs stand in the monitor's first map, so no command makes them, and their stores are made side by side.
//! Needs the Debian packages `ceph-mon`, `ceph-osd` and `ceph-common`.
//!
//! ```no_run
//! use archipelago_ceph::{CephCluster, ClusterOptions};
//!
//! let ceph = CephCluster::start(ClusterOptions::default());
//! ceph.create_pool("volumes", 1);
//! let cluster = ceph.connect();
//! ```
//!
//! This crate never uses a port, a directory or a process that it did not make.

#![forbid(unsafe_code)]

mod cluster;
mod configuration;
mod daemon;

pub use cluster::CephCluster;
pub use configuration::{ClusterOptions, Store};
