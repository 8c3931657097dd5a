//! The segment: how two peers exchange requests through memory, in one thread or in two processes.
//!
//! * [`Submission`] and [`Completion`]: the 64-byte and 32-byte entries; their meaning belongs to the callers.
//! * [`ClientPort`] and [`ServerPort`]: the two ends of a channel, over any transport. [`Client`] and [`Server`]: one type for each end,
//!   over [`local`] or [`shared`] transport.
//! * [`Region`]: memory that is passed as (region, offset), never copied: guest memory and the channel's arena.
//! * [`guard_against_truncation`]: if a guest's memory file is truncated while it is mapped, the guest's service ends, not the process.
//!
//! One design decision: there is one channel per pair of client and server, with one writer per memory, and no global segment, heap, lock
//! or pointer. A peer can write only its own half of its own channels, so a hostile or broken peer ends its own channel and no other. A
//! single store publishes a batch, so a process that dies leaves nothing half done.
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
//! This crate does not know what a request means: it has no volumes, objects, backends or names. It never blocks, reads no clock, starts no
//! thread, and trusts no word that another process can write.

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
