//! Replies: their headers as bytes, and which reply a request gets. Pure functions, fuzzed and tested without a socket.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::status::BlockState;

use crate::request::{Header, Terms};
use crate::wire::{
    ALLOCATION_ID, CHUNK_MAGIC, Errno, Put, REPLY_HEADER_MAX, SIMPLE_REPLY_MAGIC, chunk,
    extent_flag,
};

/// The protocol's error for an error of the volume.
#[must_use]
pub fn errno(code: ErrorCode) -> Errno {
    match code {
        ErrorCode::NoSpace | ErrorCode::NoRunSpace => Errno::NoSpc,
        ErrorCode::ReadOnly | ErrorCode::Denied => Errno::Perm,
        ErrorCode::Invalid => Errno::Inval,
        ErrorCode::NoMemory | ErrorCode::NoDescriptors => Errno::NoMem,
        ErrorCode::Unsupported => Errno::NotSup,
        // Another session writes the volume now: no request of this connection will succeed again.
        ErrorCode::Stale => Errno::Shutdown,
        _ => Errno::Io,
    }
}

/// Bytes of an extent: its length and its flags.
pub const EXTENT_LEN: u32 = 8;

/// An extent of `base:allocation`.
#[must_use]
pub fn extent(len: u32, state: BlockState) -> [u8; EXTENT_LEN as usize] {
    let flags = match state {
        BlockState::Hole => extent_flag::HOLE | extent_flag::ZERO,
        BlockState::Data => 0,
    };
    let mut bytes = [0; EXTENT_LEN as usize];
    let mut put = Put::new(&mut bytes);
    put.bytes(&len.to_be_bytes());
    put.bytes(&flags.to_be_bytes());
    bytes
}

/// The header of a reply.
#[derive(Debug, Clone, Copy)]
pub struct ReplyHeader {
    bytes: [u8; REPLY_HEADER_MAX],
    len: usize,
}

impl ReplyHeader {
    /// A simple reply; the data of a read follows a success.
    #[must_use]
    pub fn simple(cookie: u64, result: Result<(), Errno>) -> ReplyHeader {
        ReplyHeader::with(|put| {
            put.bytes(&SIMPLE_REPLY_MAGIC.to_be_bytes());
            put.bytes(
                &result
                    .map_or_else(|errno| errno as u32, |()| 0)
                    .to_be_bytes(),
            );
            put.bytes(&cookie.to_be_bytes());
        })
    }

    /// A chunk with `len` bytes of data, which follow, at `offset`.
    #[must_use]
    pub fn data(cookie: u64, done: Done, offset: u64, len: u32) -> ReplyHeader {
        ReplyHeader::with(|put| {
            begin_chunk(put, cookie, done, chunk::OFFSET_DATA, 8 + len);
            put.bytes(&offset.to_be_bytes());
        })
    }

    /// A chunk with so many extents of `base:allocation`, which follow.
    #[must_use]
    pub fn extents(cookie: u64, count: u32) -> ReplyHeader {
        ReplyHeader::with(|put| {
            begin_chunk(
                put,
                cookie,
                Done::Yes,
                chunk::BLOCK_STATUS,
                4 + EXTENT_LEN * count,
            );
            put.bytes(&ALLOCATION_ID.to_be_bytes());
        })
    }

    /// An empty chunk.
    #[must_use]
    pub fn nothing(cookie: u64) -> ReplyHeader {
        ReplyHeader::with(|put| begin_chunk(put, cookie, Done::Yes, chunk::NONE, 0))
    }

    /// A chunk that reports a failed request.
    #[must_use]
    pub fn error(cookie: u64, errno: Errno) -> ReplyHeader {
        ReplyHeader::with(|put| {
            begin_chunk(put, cookie, Done::Yes, chunk::ERROR, 6);
            put.bytes(&(errno as u32).to_be_bytes());
            put.bytes(&0_u16.to_be_bytes());
        })
    }

    /// A chunk that reports that the data from `offset` on could not be read.
    #[must_use]
    pub fn error_at(cookie: u64, done: Done, errno: Errno, offset: u64) -> ReplyHeader {
        ReplyHeader::with(|put| {
            begin_chunk(put, cookie, done, chunk::ERROR_OFFSET, 14);
            put.bytes(&(errno as u32).to_be_bytes());
            put.bytes(&0_u16.to_be_bytes());
            put.bytes(&offset.to_be_bytes());
        })
    }

    /// The reply to an invalid request.
    #[must_use]
    pub fn refused(header: &Header, terms: &Terms, errno: Errno) -> ReplyHeader {
        match header.is_answered_in_chunks(terms) {
            true => ReplyHeader::error(header.cookie, errno),
            false => ReplyHeader::simple(header.cookie, Err(errno)),
        }
    }

    /// The reply to a request that needs no operation.
    #[must_use]
    pub fn noop(header: &Header, terms: &Terms) -> ReplyHeader {
        match header.is_answered_in_chunks(terms) {
            true => ReplyHeader::nothing(header.cookie),
            false => ReplyHeader::simple(header.cookie, Ok(())),
        }
    }

    fn with(fill: impl FnOnce(&mut Put<'_>)) -> ReplyHeader {
        let mut bytes = [0; REPLY_HEADER_MAX];
        let mut put = Put::new(&mut bytes);
        fill(&mut put);
        let len = put.len();
        ReplyHeader { bytes, len }
    }

    /// The header as it is sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn begin_chunk(put: &mut Put<'_>, cookie: u64, done: Done, kind: u16, len: u32) {
    let flags = match done {
        Done::Yes => chunk::FLAG_DONE,
        Done::No => 0,
    };
    put.bytes(&CHUNK_MAGIC.to_be_bytes());
    put.bytes(&flags.to_be_bytes());
    put.bytes(&kind.to_be_bytes());
    put.bytes(&cookie.to_be_bytes());
    put.bytes(&len.to_be_bytes());
}

/// Whether a chunk is the last one of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It is the last.
    Yes,
    /// More chunks follow.
    No,
}

#[cfg(test)]
mod tests;
