//! The segment: how two peers exchange requests through memory, in one thread or in two processes.
//!
//! * [`Submission`] and [`Completion`]: the 64-byte and 32-byte entries; their meaning belongs to the callers.
//! * [`ClientPort`] and [`ServerPort`]: the two ends of a channel, whatever carries it. [`Client`] and [`Server`]: one type
//!   for each end, over [`local`] or [`shared`] transport.
//! * [`Region`]: memory that travels by (region, offset), never by copy: guest memory and the channel's arena.
//! * [`guard_against_truncation`]: a guest's memory file that shrinks under us ends the guest's service, not the process.
//!
//! One design decision: a channel per (client, server) pair with one writer per memory, no global segment, heap,
//! lock or pointer. What a peer can scribble on is its own half of its own channels, so a hostile or broken peer ends its
//! own channel and no other. And a single store publishes a batch, so death leaves nothing half done.
//!
//! ```
//! use xseg::{Client, ClientPort, Completion, Server, ServerPort, Submission, local};
//!
//! let (client, server) = local::channel(64, 4096)?;
//! let (mut client, mut server) = (Client::from(client), Server::from(server));
//! client.submit(17, Submission { op: 1, offset: 4096, ..Submission::default() })?;
//! client.publish();
//!
//! let request = server.accept().expect("one was published");
//! server.complete(Completion { tag: request.tag, result: 0, ..Completion::default() });
//! server.publish();
//!
//! let (cookie, completion) = client.complete().expect("it was answered");
//! assert_eq!((cookie, completion.result), (17, 0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Two processes: `cargo run -p xseg --example two_processes`. Formats: `docs/segment-format.md`.
//!
//! This crate never knows what a request means: no volumes, objects, backends or names. It never blocks, reads no clock,
//! starts no thread, and trusts no word that another process can write.

#![deny(unsafe_code)]

mod channel;
mod doorbell;
mod entry;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod inflight;
pub mod local;
#[expect(
    unsafe_code,
    reason = "the one module that owns raw pointers into shared memory"
)]
mod mapping;
#[cfg(loom)]
#[cfg(test)]
mod model;
mod port;
mod region;
mod ring;
pub mod shared;

pub use channel::{ChannelFigures, Client, Server};
pub use entry::{COMPLETION_WORDS, Completion, SUBMISSION_WORDS, Submission};
pub use mapping::{guard_against_truncation, receive as receive_with_descriptors};
pub use port::{ClientPort, PortError, ServerPort};
pub use region::{OutOfRegion, REGIONS_MAX, Region, RegionId, RegionTable, Span};
