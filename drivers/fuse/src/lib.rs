//! The volumes, snapshots and images of a node as files, by FUSE: for tools without support for Archipelago, and for loop devices.
//!
//! * [`VolumeFiles`]: the file system, for the kernel's calls.
//! * [`mount`]: mounts it, serves it until it is unmounted, closes what was open.
//!
//! | module | subject |
//! |---|---|
//! | `filesystem` | each call of the kernel |
//! | `nodes`, `attributes`, `listing` | names, numbers, sizes |
//! | `api_threads` | requests to the node |
//! | `open_files`, `io_thread`, `worker` | an open file: its users, its queue, its thread |
//! | `requests` | what is under way on an open file: sent, sent again over the next channel, answered |
//! | `job`, `operation`, `pieces` | a request for an open file, and how it is cut into what a volume can do |
//!
//! One design decision: this is a process of its own, a client of the segment channel as any other program is. The kernel may wait for
//! it at any moment, and it may wait for the endpoint; the endpoint never waits for it. When this process dies, the endpoint closes the
//! volumes, and programs get errors: no answer is ever invented. When the endpoint dies, requests wait and are sent to the next one; a
//! reservation excludes others from the volume meanwhile ([`archipelago_kept_volume`]).
//!
//! Guarantees for programs:
//! * A write that returned is seen by every reader of the file in this mount. `fsync` makes it durable.
//! * A punched hole and a zeroed range read as zeros.
//! * A file that is open for writing cannot be opened in another mount or at an endpoint.
//! * The death of the data process or the daemon, or a restart of the node, is a pause: nothing that was answered is lost. After five
//!   minutes without a node, requests fail until it is back.
//! * If a disk fails and written data is lost nevertheless, the next `fsync` fails.
//!
//! ```no_run
//! use archipelago_api::{client::Client, layout::Layout};
//! use archipelago_fuse::{MountOptions, mount};
//!
//! let client = Client::new(Layout::new(None)?);
//! let wait_max = std::time::Duration::from_secs(300);
//! let options = MountOptions { read_only: true, allow_other: false, only: None, wait_max };
//! mount(client, "/mnt/volumes".as_ref(), options, || ())?;
//! # Ok::<(), archipelago_protocol::Error>(())
//! ```
//!
//! This crate never sees a pool, an object or a map, and never makes, removes or renames a volume.

#![forbid(unsafe_code)]

mod api_threads;
mod attributes;
mod failures;
mod filesystem;
mod io_thread;
mod job;
mod listing;
mod mounting;
mod nodes;
mod open_files;
mod operation;
mod pieces;
mod requests;
mod slab;
mod worker;

pub use filesystem::VolumeFiles;
pub use mounting::{MountOptions, SUBTYPE, mount};
