//! Node daemon: starts and watches the data processes, and offers them as HTTP and JSON on a UNIX socket.
//!
//! * [`layout`]: where a node keeps its things; [`config`]: its configuration.
//! * [`daemon`]: `archipelagod`, one per node; [`api`]: what it offers; [`client`]: how to ask it.
//! * [`file_pool`]: a pool of files, as a data process hosts it.
//! * [`doctor`]: a check of a pool that nobody serves; [`program`]: the command line of `archipelagod`.
//!
//! One design decision: the daemon never touches data. It is the parent of the data processes in every placement, so its
//! own restart, its API and its bookkeeping are the same whether they are one or three.
//!
//! ```no_run
//! use archipelago_node::api::types::NodeStatus;
//! use archipelago_node::client::Client;
//! use archipelago_node::layout::Layout;
//!
//! let client = Client::new(Layout::new(Some("/srv/archipelago".as_ref()))?);
//! let status: NodeStatus = client.get("/v1/node/status")?;
//! # Ok::<(), archipelago_protocol::Error>(())
//! ```
//!
//! This crate never interprets a map and never reads what a volume holds.

#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod config;
pub mod daemon;
pub mod descriptors;
pub mod doctor;
mod durable;
pub mod file_pool;
mod file_size;
mod fresh;
pub mod layout;
pub mod logging;
pub mod program;
mod socket;
