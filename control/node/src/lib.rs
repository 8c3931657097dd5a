//! Node daemon: starts and watches the data processes, and offers them as HTTP and JSON on a UNIX socket.
//!
//! * `daemon`: `archipelagod`, one per node, and what it offers; the types of its API are `archipelago_api`'s.
//! * [`file_pool`], [`node_pool`]: a pool of files, as a data process hosts it; a pool of any kind.
//! * `doctor`: a check of a pool that nobody serves; `offline`: what the program does without a daemon; `tool`: foreign programs, confined; [`program`]: the command line of `archipelagod`.
//!
//! One design decision: the daemon never touches data. It is the parent of the data processes in every placement, so its
//! own restart, its API and its bookkeeping are the same whether they are one or three.
//!
//! ```no_run
//! use archipelago_node::program;
//!
//! // The whole of `archipelagod`.
//! program::run(|process| archipelago_host::run(&process.roles, process.settings));
//! ```
//!
//! This crate never interprets a map and never reads what a volume holds.

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
