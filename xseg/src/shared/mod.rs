//! A channel between two processes.
//!
//! * [`SharedClient`]: connects, reconnects after the server's death, and keeps the truth about what is in flight.
//! * [`Listener`] and [`SharedServer`]: the other end; [`Admission`]: who may connect to it, and as what.
//! * `layout`: where everything stands in the two memories; `message`: the messages on the socket.
//!
//! Two memfds, one per direction, each written by exactly one process and sealed so that the kernel enforces it; a third
//! one, the arena, is bulk memory that both write and nobody trusts. The socket carries descriptors and ends with its
//! process, which is how a death is noticed.
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
