//! Requests of the file system to the thread that serves an open file.

use archipelago_kept_volume::Incarnation;
use archipelago_protocol::{Access, ErrorCode};

/// Receives the answer; called once.
pub(crate) type Reply<T> = Box<dyn FnOnce(Result<T, ErrorCode>) + Send>;

/// What `lseek` searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seek {
    /// Data, at or after the offset.
    Data,
    /// A hole, at or after the offset; the end of a file is one.
    Hole,
}

/// A request for an open file.
pub(crate) enum Io {
    /// Reads up to `len` bytes at `offset`: fewer at the end of the file.
    Read {
        offset: u64,
        len: u32,
        reply: Reply<Vec<u8>>,
    },
    /// Writes `data` at `offset`; the answer is the number of bytes written: fewer at the end of the file.
    Write {
        offset: u64,
        data: Vec<u8>,
        reply: Reply<u32>,
    },
    /// Makes everything that was written durable.
    Flush { reply: Reply<()> },
    /// Zeroes the range, up to the end of the file.
    Zero {
        offset: u64,
        len: u64,
        keep_space: bool,
        reply: Reply<()>,
    },
    /// Finds the next data or hole.
    Seek {
        offset: u64,
        what: Seek,
        reply: Reply<u64>,
    },
}

impl Io {
    /// Answers it with an error.
    pub(crate) fn fail(self, code: ErrorCode) {
        match self {
            Io::Read { reply, .. } => reply(Err(code)),
            Io::Write { reply, .. } => reply(Err(code)),
            Io::Flush { reply } | Io::Zero { reply, .. } => reply(Err(code)),
            Io::Seek { reply, .. } => reply(Err(code)),
        }
    }
}

/// An item of the queue of an open file; they are handled in order.
pub(crate) enum Job {
    /// A program opens the file.
    Open {
        access: Access,
        reply: Reply<Incarnation>,
    },
    /// A program that opened the file over `incarnation` uses it.
    Io { incarnation: Incarnation, io: Io },
}
