//! The progress of a handshake, and why one fails.

use crate::offer::OPTIONS_MAX;
use crate::request::Terms;

/// Longest data of an option that is skipped; a longer one breaks the connection.
pub(super) const SKIP_MAX: u32 = 1 << 20;

/// The progress of the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Continues,
    /// The names of all exports are wanted: [`Handshake::list`](super::Handshake::list).
    Names,
    /// The client asks what the export [`Handshake::name`](super::Handshake::name) is: [`Handshake::answer`](super::Handshake::answer).
    Described,
    /// The client wants to use the export [`Handshake::name`](super::Handshake::name): [`Handshake::answer`](super::Handshake::answer).
    Chosen,
    /// TLS begins behind the bytes that are to be sent; the handshake goes on inside, after [`Handshake::encrypted`](super::Handshake::encrypted).
    StartTls,
    /// The transmission begins behind the bytes that are to be sent.
    Agreed(Terms),
    /// The client has aborted: the connection ends behind the bytes that are to be sent.
    Aborted,
}

/// Why a handshake is broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Unknown flags.
    #[error("{0:#x} are not flags of a client")]
    Flags(u32),
    /// The bytes are not an option.
    #[error("{0:#x} is not the magic of an option")]
    Magic(u64),
    /// The option's data is too long to read.
    #[error("an option with {0} bytes of data is longer than {SKIP_MAX}")]
    TooLong(u32),
    /// The client sends options without end.
    #[error("the client has sent more than {OPTIONS_MAX} options")]
    TooMany,
    /// The protocol has no error reply to `EXPORT_NAME`.
    #[error("there is no export of the name that the client asks for")]
    NoSuchExport,
    /// The protocol has no error reply to `EXPORT_NAME`.
    #[error("the client asks for an export without the encryption that is required")]
    NotEncrypted,
}
