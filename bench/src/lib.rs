//! Load on vhost-user-blk servers, and the comparison of Archipelago with its peers under the same load.
//!
//! * [`disk::Disk`]: a client of one vhost-user-blk socket, on the crate `virtio-driver`. The crash tests use it too.
//! * [`load`]: the workloads and their figures.
//! * [`server`]: Archipelago in both placements and `qemu-storage-daemon`, started in a private directory and stopped
//!   by pid.
//! * [`compare`]: rounds, medians and spread, the tables.
//! * [`program`]: a program's run to its end, and [`waiting`]: for other processes, both with a deadline. Other tests use them.
//!
//! One design decision: no virtual machine is in the way. A guest under emulation measures the emulator; a client in
//! another process on another CPU measures the servers, all of them with the same code.

#![deny(unsafe_code)]

pub mod adversary;
pub mod catalogue;
pub mod compare;
#[expect(unsafe_code, reason = "virtio-driver takes addresses of buffers")]
pub mod disk;
pub mod fio;
pub mod idle;
pub mod load;
pub mod neighbour;
pub mod program;
pub mod server;
pub mod transport;
pub mod waiting;
