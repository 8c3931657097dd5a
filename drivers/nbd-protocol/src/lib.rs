//! The NBD protocol, the server's side, which both NBD drivers share; and the client's handshake, for connections that go to the kernel's
//! client. Source: `doc/proto.md` of the NBD project.
//!
//! | module | subject |
//! |---|---|
//! | [`handshake`] | options and their replies, as a state machine of bytes |
//! | [`client`] | the client's side of the handshake, for connections that are passed to the kernel's client |
//! | [`request`], [`command`] | headers of requests; their commands, and the volume's operations |
//! | [`reply`] | headers of replies, and the reply to each request |
//! | [`pieces`] | how a request is cut for the volume |
//! | [`requests`] | which requests are in flight, and what is left of each |
//! | [`losses`] | to which connections lost writes are reported |
//! | [`offer`] | the features of an export, and its limits for clients |
//! | [`wire`] | the protocol's numbers |
//!
//! One design decision: nothing here uses a socket or waits. The driver in the data process and the server on TCP receive and send in their
//! own ways; the meaning of a byte is decided once, and is fuzzed without either.
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
