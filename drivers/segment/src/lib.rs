//! Volumes over a segment channel: for any process that reads or writes a volume. The requests, their server in the endpoint, their client.
//!
//! * [`BulkRequest`]: a request, as a ring entry.
//! * [`BulkServer`]: the driver: it turns ring entries into requests to a volume.
//! * [`VolumeClient`]: the client: an open volume with several requests in flight and a descriptor to poll.
//!
//! One design decision: the data lies in the channel's arena, which the client owns and the volume peer uses as a region, so
//! data is never copied inside the endpoint.
//!
//! | op | request | answer |
//! |---|---|---|
//! | [`BulkOp::Read`] | `len` bytes at `offset` into the arena at `region_offset` | 0 |
//! | [`BulkOp::Write`] | `len` bytes of the arena at `region_offset` to `offset` | 0 |
//! | [`BulkOp::Zero`] | `len` bytes at `offset` read as zeros | 0 |
//! | [`BulkOp::Flush`] | make everything that was written durable | 0 |
//! | [`BulkOp::Status`] | which of `args[0]` bytes at `offset` hold data: a page of `len` bytes into the arena at `region_offset` | 0 |
//! | [`BulkOp::Finish`] | after all others: make everything durable, close the volume | 0 |
//! | [`BulkOp::Discard`] | `len` bytes at `offset` read as zeros, their space may be given back | 0 |
//!
//! A negative answer is an [`ErrorCode`]. Requests in flight together are not ordered, but for `Finish`; a flush covers the writes that
//! were answered before it was sent. A channel that ends without `Finish` closes the volume too, when what was in flight has finished:
//! if a client dies, nothing stays open.
//!
//! The node opens a volume: `archipelago_api::client::Client::open` sends the request to the daemon, whose answer names the socket. The
//! example `copy_out` (`drivers/segment/examples`) shows both steps.
//!
//! This crate never sees a map or an object, and never sees a volume's name.

#![forbid(unsafe_code)]

mod buffers;
mod loss;
mod server;
mod volume;

use archipelago_protocol::ErrorCode;
use xseg::Submission;

pub use buffers::{Buffer, Buffers};
pub use loss::loss_marker;
pub use server::{BulkServer, BulkStep};
pub use volume::{Finished, Request, SubmitError, VolumeClient, VolumeOptions};

/// The role that the client of a bulk copy claims.
pub const BULK_ROLE: u8 = 16;

/// Operations of a bulk copy. The numbers are those of the ring entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the table at the top of the module describes them"
)]
#[repr(u8)]
pub enum BulkOp {
    Read = 1,
    Write = 2,
    Zero = 3,
    Flush = 4,
    Finish = 5,
    Status = 6,
    Discard = 7,
}

impl BulkOp {
    /// Each of them once.
    const ALL: [BulkOp; 7] = [
        BulkOp::Read,
        BulkOp::Write,
        BulkOp::Zero,
        BulkOp::Flush,
        BulkOp::Finish,
        BulkOp::Status,
        BulkOp::Discard,
    ];
}

/// Modifiers of a request: bits of an entry's `flags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BulkFlags {
    /// Of `Write` and `Zero`: durable when it is answered.
    pub durable: bool,
    /// Of `Zero`: the space is kept.
    pub keep_space: bool,
}

impl BulkFlags {
    const DURABLE: u8 = 1;
    const KEEP_SPACE: u8 = 2;

    fn bits(self) -> u8 {
        let durable = if self.durable { Self::DURABLE } else { 0 };
        let keep_space = if self.keep_space { Self::KEEP_SPACE } else { 0 };
        durable | keep_space
    }

    /// # Errors
    /// [`ErrorCode::Unsupported`] for an unknown bit, whose meaning this version cannot honour.
    fn from_bits(bits: u8) -> Result<BulkFlags, ErrorCode> {
        if bits & !(Self::DURABLE | Self::KEEP_SPACE) != 0 {
            return Err(ErrorCode::Unsupported);
        }
        Ok(BulkFlags {
            durable: bits & Self::DURABLE != 0,
            keep_space: bits & Self::KEEP_SPACE != 0,
        })
    }
}

/// A request of a bulk copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkRequest {
    /// What to do.
    pub op: BulkOp,
    /// Offset in the volume.
    pub offset: u64,
    /// Bytes of memory; of a zero, bytes of the volume.
    pub len: u32,
    /// Offset in the channel's arena.
    pub memory: u64,
    /// Of a status, bytes of the volume; else 0.
    pub range: u64,
    /// Modifiers.
    pub flags: BulkFlags,
}

impl BulkRequest {
    /// The request as a ring entry.
    #[must_use]
    pub fn encode(&self) -> Submission {
        Submission {
            op: self.op as u8,
            flags: self.flags.bits(),
            offset: self.offset,
            len: self.len,
            region_offset: self.memory,
            args: [self.range, 0, 0],
            ..Submission::default()
        }
    }

    /// The request in a ring entry, validated for form.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] for an unknown operation or modifier, and for an operation that would be answered without being durable
    /// although durability is requested.
    pub fn decode(entry: &Submission) -> Result<BulkRequest, ErrorCode> {
        let op = BulkOp::ALL
            .into_iter()
            .find(|op| *op as u8 == entry.op)
            .ok_or(ErrorCode::Unsupported)?;
        let flags = BulkFlags::from_bits(entry.flags)?;
        if flags.durable && !matches!(op, BulkOp::Write | BulkOp::Zero) {
            return Err(ErrorCode::Unsupported);
        }
        Ok(BulkRequest {
            op,
            offset: entry.offset,
            len: entry.len,
            memory: entry.region_offset,
            range: entry.args[0],
            flags,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_ring() {
        for op in BulkOp::ALL {
            for (durable, keep_space) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                let request = BulkRequest {
                    op,
                    offset: 1 << 40,
                    len: 1 << 20,
                    memory: 3 << 20,
                    range: 1 << 50,
                    flags: BulkFlags {
                        durable,
                        keep_space,
                    },
                };
                let can_be_durable = matches!(op, BulkOp::Write | BulkOp::Zero);
                let expected = match durable && !can_be_durable {
                    true => Err(ErrorCode::Unsupported),
                    false => Ok(request),
                };
                assert_eq!(BulkRequest::decode(&request.encode()), expected);
            }
        }
    }

    #[test]
    fn what_this_version_does_not_know_is_refused() {
        let flush = Submission {
            op: BulkOp::Flush as u8,
            ..Submission::default()
        };
        for unknown in [
            Submission::default(),
            Submission { op: 255, ..flush },
            Submission { flags: 4, ..flush },
        ] {
            assert_eq!(BulkRequest::decode(&unknown), Err(ErrorCode::Unsupported));
        }
        assert!(BulkRequest::decode(&flush).is_ok());
    }
}
