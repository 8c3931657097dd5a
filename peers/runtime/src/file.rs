//! A descriptor that may have requests in flight.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

/// An open file. Clones share the descriptor; it is closed when the last clone is dropped and the last request on it has ended.
#[derive(Debug, Clone)]
pub struct File {
    held: Rc<Held>,
}

/// Which thread makes the calls on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// The thread that submits, as long as the file system does not block; otherwise a worker of the ring.
    First,
    /// A worker of the ring, because the file system blocks although it was asked not to.
    Workers,
}

/// What closes a descriptor.
type Closer = Box<dyn Fn(OwnedFd)>;

struct Held {
    /// `None` only while the closer takes the descriptor.
    fd: Option<OwnedFd>,
    calls: Calls,
    closer: Option<Closer>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(fd), Some(close)) = (self.fd.take(), &self.closer) {
            close(fd);
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.fd).finish()
    }
}

impl Held {
    fn fd(&self) -> &OwnedFd {
        self.fd.as_ref().expect("taken only by drop")
    }
}

impl File {
    /// A file that `close` closes, on whichever thread its last clone is dropped: a close may write, and block.
    #[must_use]
    pub fn closed_by(
        fd: impl Into<OwnedFd>,
        calls: Calls,
        close: impl Fn(OwnedFd) + 'static,
    ) -> File {
        let held = Held {
            fd: Some(fd.into()),
            calls,
            closer: Some(Box::new(close)),
        };
        File {
            held: Rc::new(held),
        }
    }

    /// Whether no request and no other clone uses the descriptor.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        Rc::strong_count(&self.held) == 1
    }

    pub(crate) fn calls(&self) -> Calls {
        self.held.calls
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.held.fd().as_raw_fd()
    }
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> Self {
        let held = Held {
            fd: Some(fd),
            calls: Calls::First,
            closer: None,
        };
        File {
            held: Rc::new(held),
        }
    }
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> Self {
        OwnedFd::from(file).into()
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.held.fd().as_fd()
    }
}
