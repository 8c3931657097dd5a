//! The common part of the `archipelago` command and the node daemon: the types of the API, and the paths of sockets and files.
//!
//! * [`types`], [`pools`]: bodies of requests and answers of the HTTP API; [`client`]: sends requests.
//! * `openapi`, a feature of the crate: the description of the API for machines, made from these types.
//! * [`layout`]: the paths of a node's files; [`config`]: its configuration; [`durable`]: writes its small files.
//!
//! One design decision: this crate consists of data types and one blocking client. A client of a node needs no more, so the command and
//! other programs link nothing of the data path: no io_uring, no mapper, no server.
//!
//! ```no_run
//! use archipelago_api::client::Client;
//! use archipelago_api::layout::Layout;
//! use archipelago_api::types::NodeStatus;
//!
//! let client = Client::new(Layout::new(Some("/srv/archipelago".as_ref()))?);
//! let status: NodeStatus = client.get("/v1/node/status")?;
//! # Ok::<(), archipelago_protocol::Error>(())
//! ```
//!
//! This crate never starts a process, never opens a pool and never listens.

#![forbid(unsafe_code)]

pub mod client;
pub mod config;
pub mod durable;
pub mod layout;
#[cfg(feature = "openapi")]
pub mod openapi;
pub mod pools;
pub mod types;
