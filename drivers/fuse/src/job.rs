//! What the file system asks of the thread that serves an open file.

use archipelago_kept_volume::Incarnation;
use archipelago_protocol::{Access, ErrorCode};

/// Takes the answer; called once.
pub(crate) type Reply<T> = Box<dyn FnOnce(Result<T, ErrorCode>) + Send>;

/// What `lseek` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seek {
    /// Data, at or after the offset.
    Data,
    /// A hole, at or after the offset; the end of a file is one.
    Hole,
}

/// A request for an open file.
pub(crate) enum Io {
    /// Up to `len` bytes at `offset`: fewer at the end of the file.
    Read {
        offset: u64,
        len: u32,
        reply: Reply<Vec<u8>>,
    },
    /// `data` to `offset`; answers how much of it: less at the end of the file.
    Write {
        offset: u64,
        data: Vec<u8>,
        reply: Reply<u32>,
    },
    /// Everything that was written is durable.
    Flush { reply: Reply<()> },
    /// The range, as far as the file goes, reads as zeros.
    Zero {
        offset: u64,
        len: u64,
        keep_space: bool,
        reply: Reply<()>,
    },
    /// The next data or hole.
    Seek {
        offset: u64,
        what: Seek,
        reply: Reply<u64>,
    },
}

impl Io {
    /// Answers that it failed.
    pub(crate) fn fail(self, code: ErrorCode) {
        match self {
            Io::Read { reply, .. } => reply(Err(code)),
            Io::Write { reply, .. } => reply(Err(code)),
            Io::Flush { reply } | Io::Zero { reply, .. } => reply(Err(code)),
            Io::Seek { reply, .. } => reply(Err(code)),
        }
    }
}

/// What comes through the queue of an open file, in order.
pub(crate) enum Job {
    /// Somebody opens the file.
    Open {
        access: Access,
        reply: Reply<Incarnation>,
    },
    /// Somebody who opened it over `incarnation` uses it.
    Io { incarnation: Incarnation, io: Io },
}
