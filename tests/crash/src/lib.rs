//! A client that knows what it must read, and the nodes that it torments.
//!
//! * [`pattern`]: sectors that say whose they are, where they belong and which write made them.
//! * [`model`]: what each sector of a volume must hold, and what a snapshot may hold.
//! * [`verifier`]: random requests over vhost-user, checked against the model, also across the death of the server.
//! * [`node`]: a real node in a private directory, its processes, and `kill -9`.
//!
//! One design decision: requests in flight never overlap, so that every read has exactly one right answer, and what was
//! in flight when a server died is simply sent again: whether it had happened before cannot matter.
//!
//! A failure prints the seed; `CRASH_SEED=<seed>` runs the same sequence again.

#![forbid(unsafe_code)]

pub mod model;
pub mod node;
pub mod pattern;
pub mod verifier;
