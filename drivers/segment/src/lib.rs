//! Copies of whole volumes over a segment channel: the requests, their server in the endpoint, their client in any program.
//!
//! * [`BulkRequest`]: a request, as a ring entry.
//! * [`BulkServer`]: the driver: it turns ring entries into requests to a volume.
//! * [`BulkClient`]: the other side: cells of the channel's arena, each with at most one request.
//!
//! One design decision: the data lies in the channel's arena, which the client owns and the volume peer takes as a region, so
//! a copy moves whole volumes without a copy of the data inside the endpoint.
//!
//! | op | asks | answer |
//! |---|---|---|
//! | [`BulkOp::Read`] | `len` bytes at `offset` into the arena at `region_offset` | 0 |
//! | [`BulkOp::Write`] | `len` bytes of the arena at `region_offset` to `offset` | 0 |
//! | [`BulkOp::Zero`] | `len` bytes at `offset` read as zeros | 0 |
//! | [`BulkOp::Flush`] | what was written is durable | 0 |
//! | [`BulkOp::Status`] | which of `args[0]` bytes at `offset` hold data: a page of `len` bytes into the arena at `region_offset` | 0 |
//! | [`BulkOp::Finish`] | after all others: everything durable, the volume closed | 0 |
//!
//! Requests in flight together are not ordered, but for `Finish`. A channel that ends without `Finish` closes the volume
//! too, when what was in flight has finished.
//!
//! This crate never sees a map or an object, and never learns a volume's name.

#![forbid(unsafe_code)]

mod client;
mod server;

use archipelago_protocol::ErrorCode;
use xseg::Submission;

pub use client::BulkClient;
pub use server::{BulkServer, BulkStep};

/// What the client of a bulk copy asks to be served as.
pub const BULK_ROLE: u8 = 16;

/// Operations of a bulk copy. The numbers are the wire's.
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
}

/// A request of a bulk copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkRequest {
    /// What to do.
    pub op: BulkOp,
    /// First byte of the volume.
    pub offset: u64,
    /// Bytes of memory; of a zero, bytes of the volume.
    pub len: u32,
    /// Place in the channel's arena.
    pub memory: u64,
    /// Of a status, bytes of the volume; else 0.
    pub range: u64,
}

impl BulkRequest {
    /// The request as a ring entry.
    #[must_use]
    pub fn encode(&self) -> Submission {
        Submission {
            op: self.op as u8,
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
    /// [`ErrorCode::Unsupported`] for an unknown operation.
    pub fn decode(entry: &Submission) -> Result<BulkRequest, ErrorCode> {
        let op = [
            BulkOp::Read,
            BulkOp::Write,
            BulkOp::Zero,
            BulkOp::Flush,
            BulkOp::Finish,
            BulkOp::Status,
        ]
        .into_iter()
        .find(|op| *op as u8 == entry.op)
        .ok_or(ErrorCode::Unsupported)?;
        Ok(BulkRequest {
            op,
            offset: entry.offset,
            len: entry.len,
            memory: entry.region_offset,
            range: entry.args[0],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_ring() {
        for op in [
            BulkOp::Read,
            BulkOp::Write,
            BulkOp::Zero,
            BulkOp::Flush,
            BulkOp::Finish,
            BulkOp::Status,
        ] {
            let request = BulkRequest {
                op,
                offset: 1 << 40,
                len: 1 << 20,
                memory: 3 << 20,
                range: 1 << 50,
            };
            assert_eq!(BulkRequest::decode(&request.encode()), Ok(request));
        }
        assert_eq!(
            BulkRequest::decode(&Submission::default()),
            Err(ErrorCode::Unsupported)
        );
    }
}
