//! Numbers of the NBD protocol, in its byte order: the network's. Source: `doc/proto.md` of the NBD project.

/// First bytes of a server: `NBDMAGIC`.
pub const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Newstyle: `IHAVEOPT`. Also the magic of each option.
pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Magic of the reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Magic of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a request's header.
pub const HEADER_LEN: usize = 28;
/// Longest header of a reply: a chunk with an error at an offset.
pub const REPLY_HEADER_MAX: usize = 34;

/// Handshake flags, of the server and, with the same numbers, of the client.
pub mod handshake_flag {
    /// Options are answered, unknown ones too.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No 124 zeros at the end of the answer to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 2;
}

/// Transmission flags: what an export offers.
pub mod export_flag {
    /// The other flags mean something.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH`.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The flag `FUA` of requests.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM`.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES`.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The flag `DF` of reads.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers what was answered on all of them.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE`.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The flag `FAST_ZERO` of write-zeroes requests.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Options of a client.
pub mod option {
    /// Begins the transmission, or ends the connection: it has no reply of its own.
    pub const EXPORT_NAME: u32 = 1;
    /// Ends the handshake.
    pub const ABORT: u32 = 2;
    /// Names of the exports.
    pub const LIST: u32 = 3;
    /// Everything behind its reply is encrypted.
    pub const STARTTLS: u32 = 5;
    /// What an export is.
    pub const INFO: u32 = 6;
    /// As `INFO`, and begins the transmission.
    pub const GO: u32 = 7;
    /// Replies in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Metadata contexts that there are.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Metadata contexts that are wanted.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export.
    pub const SERVER: u32 = 2;
    /// Something about an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not offered.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The server does not want to.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option's data makes no sense.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// Only behind `STARTTLS`.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is about to end.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
    const ERROR: u32 = 1 << 31;
}

/// What an `INFO` reply is about.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The name.
    pub const NAME: u16 = 1;
    /// A description for people.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, best and largest size of a request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Commands of requests.
pub mod command {
    /// Reads.
    pub const READ: u16 = 0;
    /// Writes; its data follows the request.
    pub const WRITE: u16 = 1;
    /// The client ends the connection.
    pub const DISC: u16 = 2;
    /// Everything answered is durable.
    pub const FLUSH: u16 = 3;
    /// The data is not needed any more.
    pub const TRIM: u16 = 4;
    /// The data is about to be read.
    pub const CACHE: u16 = 5;
    /// The range reads as zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// What the range consists of.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub mod command_flag {
    /// Durable when answered.
    pub const FUA: u16 = 1;
    /// The space of the zeros is kept.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fails rather than being slow.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// The one metadata context.
pub const ALLOCATION: &str = "base:allocation";
/// Its id in replies.
pub const ALLOCATION_ID: u32 = 1;

/// Flags of extents of `base:allocation`.
pub mod extent_flag {
    /// Nothing is stored there.
    pub const HOLE: u32 = 1;
    /// It reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

/// Chunks of structured replies.
pub mod chunk {
    /// The last chunk of the reply.
    pub const FLAG_DONE: u16 = 1;
    /// Nothing but its flags.
    pub const NONE: u16 = 0;
    /// Data at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error of the whole request.
    pub const ERROR: u16 = 1 << 15 | 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = 1 << 15 | 2;
}

/// Errors of requests, with the protocol's numbers, which may differ from the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum Errno {
    /// Writes are refused.
    #[error("EPERM")]
    Perm = 1,
    /// The volume has failed.
    #[error("EIO")]
    Io = 5,
    /// A resource is exhausted.
    #[error("ENOMEM")]
    NoMem = 12,
    /// The request is invalid.
    #[error("EINVAL")]
    Inval = 22,
    /// No space, or beyond the end.
    #[error("ENOSPC")]
    NoSpc = 28,
    /// Too long for one chunk.
    #[error("EOVERFLOW")]
    Overflow = 75,
    /// Not possible fast.
    #[error("ENOTSUP")]
    NotSup = 95,
    /// The server is about to end, or has lost the volume to another session.
    #[error("ESHUTDOWN")]
    Shutdown = 108,
}

/// Reads big-endian numbers off the front of some bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `len` bytes, if they are there.
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

/// Fills an array from its front.
#[derive(Debug)]
pub(crate) struct Put<'a> {
    into: &'a mut [u8],
    at: usize,
}

impl<'a> Put<'a> {
    pub(crate) fn new(into: &'a mut [u8]) -> Self {
        Put { into, at: 0 }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        self.into[self.at..end].copy_from_slice(bytes);
        self.at = end;
    }

    /// Bytes that are filled.
    pub(crate) fn len(&self) -> usize {
        self.at
    }
}
