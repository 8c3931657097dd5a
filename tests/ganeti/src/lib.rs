//! A real Ganeti cluster whose disks are volumes.
//!
//! * [`namespaces`]: a machine inside this one, for a node.
//! * [`cluster`]: Ganeti of Debian's package on it: its daemons, commands and jobs.
//! * [`storage`]: a node of ours with two pools on the same machine, and the provider where Ganeti looks.
//! * [`instance`]: an instance; [`console`]: its guest, which is asked there.
//! * [`footprint`]: what disks take of the host, to see that nothing is left.
//! * [`steps`]: a scenario's steps, named and timed.
//!
//! One design decision: nothing stands in for anything. Ganeti's daemons, its jobs and its ssh are Debian's, the guests are real under
//! QEMU, and the node is as it is installed; only the machine is namespaces of this host, so that a test has one of its own within
//! seconds and leaves nothing.
//!
//! It never asserts a speed: what takes how long is printed.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod console;
pub mod footprint;
pub mod instance;
pub mod namespaces;
pub mod node_log;
pub mod random;
pub mod rapi;
pub mod script;
pub mod steps;
pub mod storage;
