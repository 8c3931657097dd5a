//! A channel between two processes.
//!
//! * [`SharedClient`]: connects, reconnects after the server's death, and keeps the table of requests in flight.
//! * [`Listener`] and [`SharedServer`]: the other end; [`Admission`]: which users may connect to it, and in which roles.
//! * `layout`: the layout of the two memories; `message`: the messages on the socket.
//!
//! There are two memfds, one per direction. Each is written by exactly one process and sealed so that the kernel enforces this. A third
//! one, the arena, is bulk memory that both write and neither trusts. The socket carries descriptors; it is closed when its process ends,
//! which is how the other side notices a death.
//!
//! Byte tables, versions and what survives which death: `docs/segment-format.md`.

mod admission;
mod announced;
mod client;
mod doorbell_fd;
mod layout;
mod listener;
mod message;
mod reopened;
mod server;
mod socket;
mod violation;

pub use admission::Admission;
pub use client::{ConnectOptions, OnServerDeath, SharedClient};
pub use listener::Listener;
#[cfg(feature = "fuzzing")]
pub(crate) use message::Message;
pub use server::SharedServer;
pub use violation::Violation;

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
