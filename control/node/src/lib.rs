//! Node daemon: starts and supervises the data processes, and serves an API for them: HTTP and JSON on a UNIX socket.
//!
//! * `daemon`: `archipelagod`, one per node, and its API; the types of the API are in `archipelago_api`.
//! * [`file_pool`], [`node_pool`]: a pool of files, as a data process opens it; a pool of any kind.
//! * `doctor`: a check of a pool that is not served; `offline`: what the program does without a daemon; `tool`: foreign programs, confined;
//!   [`program`]: the command line of `archipelagod`.
//!
//! One design decision: the daemon never touches data. It is the parent of the data processes, whether there are one or three, so its own
//! restart, its API and its bookkeeping do not depend on their number.
//!
//! ```no_run
//! use archipelago_node::program;
//!
//! // The whole of `archipelagod`.
//! program::run(|process| archipelago_host::run(&process.roles, process.settings));
//! ```
//!
//! This crate never interprets a map and never reads the content of a volume.

#![forbid(unsafe_code)]

mod accounts;
mod api;
mod daemon;
mod descriptors;
mod doctor;
pub mod file_pool;
mod file_size;
mod fresh;
mod logging;
pub mod node_pool;
mod offline;
pub mod program;
mod rados_program;
mod socket;
mod tool;
