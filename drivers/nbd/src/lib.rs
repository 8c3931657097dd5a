//! NBD endpoint: a volume as an export on a UNIX socket, for QEMU, libnbd and the kernel's client.
//!
//! | module | subject |
//! |---|---|
//! | [`endpoint`] | attach and detach: the socket, the half that control sees |
//! | [`server`], `detaching` | the export on the data thread: listener, connections, volume |
//! | `connection`, `negotiation` | one client: its socket, its handshake and deadline |
//! | `transmission` | a client's requests, one after the other, cut into pieces for the volume |
//! | `piece`, `submissions`, `replies` | requests to the volume, and those in flight; replies to the client |
//! | `receiver`, `sender` | bytes from and to the socket |
//! | `cells`, `memory`, [`layout`] | where the data of requests in flight lies |
//! | [`config`], [`metrics`] | how a volume is attached, limits of clients; figures |
//!
//! The meaning of the bytes is in `archipelago-nbd-protocol`.
//!
//! One design decision: sockets are served by the data thread itself, with calls that never wait, because a thread between socket
//! and volume would cost each request two wake-ups. Each connection has a region of its own that the blocker sees: data of a write
//! is received where the disk writes it from, data of a read is sent from where the disk has put it. The thread's io_uring reports which
//! socket is ready, so a quiet client costs no call.
//!
//! ```text
//! let (endpoint, seed) = Endpoint::attach(config)?;            // any thread
//! let server = Box::new(seed).build(volumes, wakeups)?;        // on the data thread, which polls it from now on
//! endpoint.detach(Detach::Force)?;                             // any other thread
//! ```
//!
//! This crate never knows maps, objects or other exports, never allocates for a request, and never blocks the data thread.

#![forbid(unsafe_code)]

mod cells;
pub mod config;
mod connection;
mod detaching;
pub mod endpoint;
pub mod layout;
mod memory;
pub mod metrics;
mod negotiation;
mod piece;
mod receiver;
mod replies;
mod sender;
pub mod server;
mod shared;
mod submissions;
mod transmission;

pub use config::AttachConfig;
pub use endpoint::Endpoint;
pub use metrics::Counters;
pub use server::{Server, ServerSeed};
