//! Requests and the headers of their replies, as bytes. Pure functions of bytes: fuzzed and tested without a socket.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::status::BlockState;

use crate::offer::{BLOCK_MAX, BLOCK_MIN, PIECE_MAX};
pub use crate::wire::HEADER_LEN;
use crate::wire::REPLY_HEADER_MAX;
use crate::wire::{
    ALLOCATION_ID, CHUNK_MAGIC, Errno, Fields, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, chunk, command,
    command_flag, extent_flag,
};

/// What breaks a connection: the next bytes cannot be understood, or are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No request begins there.
    #[error("{0:#x} is not the magic of a request")]
    Magic(u32),
    /// The data of a write would have to be taken.
    #[error("a write of {0} bytes is longer than {BLOCK_MAX}")]
    WriteLen(u32),
}

/// A request as it stands in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Flags.
    pub flags: u16,
    /// Command.
    pub command: u16,
    /// What the reply names it by.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl Header {
    /// The request in `bytes`.
    ///
    /// # Errors
    /// [`Violation`], after which the connection makes no sense any more.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, Violation> {
        let mut fields = Fields(bytes);
        let magic = fields.u32().unwrap_or(0);
        if magic != REQUEST_MAGIC {
            return Err(Violation::Magic(magic));
        }
        let header = Header {
            flags: fields.u16().unwrap_or(0),
            command: fields.u16().unwrap_or(0),
            cookie: fields.u64().unwrap_or(0),
            offset: fields.u64().unwrap_or(0),
            len: fields.u32().unwrap_or(0),
        };
        if header.command == command::WRITE && header.len > BLOCK_MAX {
            return Err(Violation::WriteLen(header.len));
        }
        Ok(header)
    }

    /// The header as a client sends it.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = Put::new(&mut bytes);
        put.bytes(&REQUEST_MAGIC.to_be_bytes());
        put.bytes(&self.flags.to_be_bytes());
        put.bytes(&self.command.to_be_bytes());
        put.bytes(&self.cookie.to_be_bytes());
        put.bytes(&self.offset.to_be_bytes());
        put.bytes(&self.len.to_be_bytes());
        bytes
    }

    /// Whether it is answered in chunks under `terms`, errors too.
    #[must_use]
    pub fn is_answered_in_chunks(&self, terms: &Terms) -> bool {
        terms.structured && matches!(self.command, command::READ | command::BLOCK_STATUS)
    }

    /// Bytes of data that follow the header.
    #[must_use]
    pub fn data_len(&self) -> u32 {
        match self.command {
            command::WRITE => self.len,
            _ => 0,
        }
    }

    /// What it asks for under `terms`.
    ///
    /// # Errors
    /// What it is answered instead.
    pub fn check(&self, terms: &Terms) -> Result<Command, Errno> {
        let allowed = command_flag::FUA
            | match self.command {
                command::READ if terms.structured => command_flag::DF,
                command::BLOCK_STATUS => command_flag::REQ_ONE,
                command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
                _ => 0,
            };
        if self.flags & !allowed != 0 {
            return Err(Errno::Inval);
        }
        let has = |flag| self.flags & flag != 0;
        let durable = has(command_flag::FUA);
        match self.command {
            command::DISC => Ok(Command::Disconnect),
            command::FLUSH => Ok(Command::Flush),
            command::READ => {
                self.check_range(terms, Errno::Inval)?;
                if self.len > BLOCK_MAX {
                    return Err(Errno::Inval);
                }
                if has(command_flag::DF) && self.len > PIECE_MAX {
                    return Err(Errno::Overflow);
                }
                Ok(Command::Read)
            }
            command::CACHE => {
                self.check_range(terms, Errno::Inval)?;
                Ok(Command::Cache)
            }
            command::BLOCK_STATUS => {
                self.check_range(terms, Errno::Inval)?;
                if !terms.block_status || self.len == 0 {
                    return Err(Errno::Inval);
                }
                Ok(Command::BlockStatus {
                    one: has(command_flag::REQ_ONE),
                })
            }
            command::WRITE | command::TRIM | command::WRITE_ZEROES => {
                if terms.read_only {
                    return Err(Errno::Perm);
                }
                let beyond = match self.command {
                    command::TRIM => Errno::Inval,
                    _ => Errno::NoSpc,
                };
                self.check_range(terms, beyond)?;
                Ok(match self.command {
                    command::WRITE => Command::Write { durable },
                    command::TRIM => Command::Trim { durable },
                    // Zeros whose space is kept may have to be written, as fast as any other data.
                    _ if has(command_flag::NO_HOLE) && has(command_flag::FAST_ZERO) => {
                        return Err(Errno::NotSup);
                    }
                    _ => Command::WriteZeroes {
                        unmap: !has(command_flag::NO_HOLE),
                        durable,
                    },
                })
            }
            _ => Err(Errno::Inval),
        }
    }

    fn check_range(&self, terms: &Terms, beyond: Errno) -> Result<(), Errno> {
        let min = u64::from(BLOCK_MIN);
        let len = u64::from(self.len);
        if !self.offset.is_multiple_of(min) || !len.is_multiple_of(min) {
            return Err(Errno::Inval);
        }
        match self.offset.checked_add(len) {
            Some(end) if end <= terms.size => Ok(()),
            _ => Err(beyond),
        }
    }
}

/// What client and server have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of the export, as the client knows it.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Reads are answered in chunks.
    pub structured: bool,
    /// The client has asked for `base:allocation`.
    pub block_status: bool,
}

/// What a request asks for, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The client ends the connection.
    Disconnect,
    /// Reads.
    Read,
    /// Writes the data that follows.
    Write {
        /// Durable when answered.
        durable: bool,
    },
    /// What was answered is durable.
    Flush,
    /// The range is not needed any more; reads as zeros.
    Trim {
        /// As for writes.
        durable: bool,
    },
    /// The range reads as zeros.
    WriteZeroes {
        /// Its space may be given back.
        unmap: bool,
        /// As for writes.
        durable: bool,
    },
    /// What the range consists of, from its start: as many extents as the server likes.
    BlockStatus {
        /// One extent is enough.
        one: bool,
    },
    /// The range is about to be read: nothing to do, there is no cache.
    Cache,
}

impl Command {
    /// Whether what was written before, or this, is durable when it is answered.
    #[must_use]
    pub fn flushes(self) -> bool {
        match self {
            Command::Flush => true,
            Command::Write { durable }
            | Command::Trim { durable }
            | Command::WriteZeroes { durable, .. } => durable,
            Command::Disconnect | Command::Read | Command::BlockStatus { .. } | Command::Cache => {
                false
            }
        }
    }
}

/// What a client gets for what the volume says.
#[must_use]
pub fn errno(code: ErrorCode) -> Errno {
    match code {
        ErrorCode::NoSpace | ErrorCode::NoRunSpace => Errno::NoSpc,
        ErrorCode::ReadOnly | ErrorCode::Denied => Errno::Perm,
        ErrorCode::Invalid => Errno::Inval,
        ErrorCode::NoMemory | ErrorCode::NoDescriptors => Errno::NoMem,
        ErrorCode::Unsupported => Errno::NotSup,
        // Somebody else writes the volume now: nothing of this connection will succeed again.
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
            put.chunk(cookie, done, chunk::OFFSET_DATA, 8 + len);
            put.bytes(&offset.to_be_bytes());
        })
    }

    /// A chunk with so many extents of `base:allocation`, which follow.
    #[must_use]
    pub fn extents(cookie: u64, count: u32) -> ReplyHeader {
        ReplyHeader::with(|put| {
            put.chunk(
                cookie,
                Done::Yes,
                chunk::BLOCK_STATUS,
                4 + EXTENT_LEN * count,
            );
            put.bytes(&ALLOCATION_ID.to_be_bytes());
        })
    }

    /// A chunk with nothing.
    #[must_use]
    pub fn nothing(cookie: u64) -> ReplyHeader {
        ReplyHeader::with(|put| put.chunk(cookie, Done::Yes, chunk::NONE, 0))
    }

    /// A chunk that says that the request has failed.
    #[must_use]
    pub fn error(cookie: u64, errno: Errno) -> ReplyHeader {
        ReplyHeader::with(|put| {
            put.chunk(cookie, Done::Yes, chunk::ERROR, 6);
            put.bytes(&(errno as u32).to_be_bytes());
            put.bytes(&0_u16.to_be_bytes());
        })
    }

    /// A chunk that says that what begins at `offset` could not be read.
    #[must_use]
    pub fn error_at(cookie: u64, done: Done, errno: Errno, offset: u64) -> ReplyHeader {
        ReplyHeader::with(|put| {
            put.chunk(cookie, done, chunk::ERROR_OFFSET, 14);
            put.bytes(&(errno as u32).to_be_bytes());
            put.bytes(&0_u16.to_be_bytes());
            put.bytes(&offset.to_be_bytes());
        })
    }

    fn with(fill: impl FnOnce(&mut Put<'_>)) -> ReplyHeader {
        let mut bytes = [0; REPLY_HEADER_MAX];
        let mut put = Put::new(&mut bytes);
        fill(&mut put);
        let len = put.at;
        ReplyHeader { bytes, len }
    }

    /// The header as it is sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Whether a chunk is the last one of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It is.
    Yes,
    /// More follow.
    No,
}

/// Fills an array from its front.
struct Put<'a> {
    into: &'a mut [u8],
    at: usize,
}

impl<'a> Put<'a> {
    fn new(into: &'a mut [u8]) -> Self {
        Put { into, at: 0 }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        self.into[self.at..end].copy_from_slice(bytes);
        self.at = end;
    }

    fn chunk(&mut self, cookie: u64, done: Done, kind: u16, len: u32) {
        let flags = match done {
            Done::Yes => chunk::FLAG_DONE,
            Done::No => 0,
        };
        self.bytes(&CHUNK_MAGIC.to_be_bytes());
        self.bytes(&flags.to_be_bytes());
        self.bytes(&kind.to_be_bytes());
        self.bytes(&cookie.to_be_bytes());
        self.bytes(&len.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
