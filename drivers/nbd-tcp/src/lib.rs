//! The volumes of a node as NBD exports, on TCP or at one UNIX socket: a process of its own, a client of the node and of its segment channels.
//!
//! | module | subject |
//! |---|---|
//! | [`server`] | the listening socket, limits, the end |
//! | [`tls`] | certificates |
//! | [`listener`] | where clients connect: TCP, or a UNIX socket |
//! | `client`, `end` | one client from its connection to its end, and why it ends |
//! | `shared` | what all clients share |
//! | `negotiation` | a handshake: bytes, its deadline, the answers |
//! | `exports` | the names of exports; which are open and for how many clients |
//! | `volume`, `wakeups` | an open volume: its channel, away or live, its end, and what wakes its task |
//! | `places`, `flights` | requests in flight: room for them, sent, sent again over the next channel |
//! | `receiver`, `link`, `sender` | a client's requests; where they and their replies wait; replies |
//!
//! One design decision: one thread does everything, by tasks that wait for sockets and channels. A request in flight is an entry of a
//! table, not a task or a thread, and costs no allocation. A client's data waits in memory of its connection and is copied once, between
//! there and the channel's segment: a buffer of the segment is used only while the volume works on it, so that a client that stalls does
//! not block another one.
//!
//! All connections of an export share one handle of the volume, opened for the first of them and closed behind the last. The volume is
//! reserved over deaths and restarts of the node ([`archipelago_kept_volume`]): requests wait, and no other process gets the volume.
//!
//! This crate contains nothing of maps or objects, and opens volumes by the node's API only.

#![forbid(unsafe_code)]

mod client;
mod end;
mod exports;
mod flights;
mod link;
pub mod listener;
mod negotiation;
mod places;
mod receiver;
mod sender;
pub mod server;
mod shared;
pub mod tls;
mod volume;
mod wakeups;

pub use listener::Place;
pub use server::{ServeOptions, serve};
pub use tls::TlsFiles;
