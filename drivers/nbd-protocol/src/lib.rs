//! The NBD protocol, the server's side: what both NBD drivers share; and the handshake of the kernel's client. Source: `doc/proto.md` of the NBD project.
//!
//! | module | what it knows |
//! |---|---|
//! | [`handshake`] | options and their answers, as a state machine of bytes |
//! | [`client`] | the other side of the handshake, for connections that are handed to the kernel's client |
//! | [`request`], [`command`] | headers of requests; what they ask for, and of the volume |
//! | [`reply`] | headers of replies, and which reply a request gets |
//! | [`pieces`] | how a request is cut for the volume |
//! | [`requests`] | which requests are in flight, and what is left of each |
//! | [`losses`] | whom lost writes are reported to |
//! | [`offer`] | what is offered, and how much a client may ask for |
//! | [`wire`] | the protocol's numbers |
//!
//! One design decision: nothing here knows a socket or waits for anything. The driver in the data process and the server on TCP
//! receive and send in their own ways; what a byte means is decided once, and is fuzzed without either.
//!
//! ```
//! use archipelago_nbd_protocol::handshake::{Handshake, Progress};
//!
//! let mut handshake = Handshake::new();
//! assert!(handshake.output().starts_with(b"NBDMAGIC"));
//! assert_eq!(handshake.wants(), 4);
//! assert_eq!(handshake.take(&3_u32.to_be_bytes()), Ok(Progress::Continues));
//! ```
//!
//! This crate never reads a clock, a file or a socket.

#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod handshake;
pub mod losses;
pub mod offer;
pub mod pieces;
pub mod reply;
pub mod request;
pub mod requests;
pub mod wire;
