//! Requests as bytes, and their validation. Pure functions of bytes, fuzzed and tested without a socket.

use crate::command::Command;
use crate::offer::{BLOCK_MAX, BLOCK_MIN, PIECE_MAX};
pub use crate::wire::HEADER_LEN;
use crate::wire::{Errno, Fields, Put, REQUEST_MAGIC, command, command_flag};

/// What breaks a connection: the next bytes cannot be understood, or are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The bytes are not a request.
    #[error("{0:#x} is not the magic of a request")]
    Magic(u32),
    /// The data of a write is too long to receive.
    #[error("a write of {0} bytes is longer than {BLOCK_MAX}")]
    WriteLen(u32),
}

/// The fields of a request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Flags.
    pub flags: u16,
    /// Command.
    pub command: u16,
    /// The client's name for the request, which the reply repeats.
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
    /// [`Violation`], after which the connection cannot go on.
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

    /// Whether it is answered in chunks under `terms`, also with an error.
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

    /// Its validated command under `terms`.
    ///
    /// # Errors
    /// The error of its reply.
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

/// The result of the handshake.
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

#[cfg(test)]
mod tests;
