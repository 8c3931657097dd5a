//! A request in the kernel, and what must stay valid until it completes.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use io_uring::squeue;
use io_uring::types::Timespec;
use xseg::Span;

use crate::event::Queue;
use crate::file::File;
use crate::load::Kind;

/// Addresses of a scattered request, and what keeps them valid.
#[derive(Default)]
pub(super) struct Vector {
    pub(super) addresses: Vec<libc::iovec>,
    pub(super) spans: Vec<Span>,
}

/// What must stay valid until a request completes.
pub(super) enum Keep {
    Nothing,
    Span(Span),
    Vector(Box<Vector>),
    Time { _time: Box<Timespec> },
    Watched { fd: OwnedFd, queued: Rc<Cell<bool>> },
}

impl Keep {
    /// Bytes of a read or write.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Keep::Span(span) => span.len(),
            Keep::Vector(vector) => vector.spans.iter().map(Span::len).sum(),
            Keep::Nothing | Keep::Time { .. } | Keep::Watched { .. } => 0,
        }
    }
}

/// A request in the kernel.
pub(super) struct Operation {
    pub(super) queue: Queue,
    pub(super) token: u64,
    pub(super) kind: Kind,
    pub(super) retries: u8,
    /// Distinguishes this request from later ones in its slot.
    pub(super) serial: u64,
    /// The watch was cancelled and is not armed again.
    pub(super) cancelled: bool,
    pub(super) entry: squeue::Entry,
    pub(super) keep: Keep,
    pub(super) _file: Option<File>,
}
