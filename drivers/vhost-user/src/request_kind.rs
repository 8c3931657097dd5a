//! Kinds of virtio-blk requests, and their status for the guest (virtio 1.2, section 5.2.6).

use std::fmt;

/// Status bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Success.
    Ok = 0,
    /// Failure.
    IoErr = 1,
    /// The device does not support such a request.
    Unsupported = 2,
}

/// Kinds of requests, for counting and completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Writes zeroes.
    WriteZeroes,
    /// GET_ID, and unknown requests.
    #[default]
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
            Kind::Discard => "discard",
            Kind::WriteZeroes => "write-zeroes",
            Kind::Other => "other request",
        })
    }
}
