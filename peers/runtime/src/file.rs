//! A descriptor that requests may be in flight on.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

/// An open file. Clones share the descriptor; it is closed when the last clone and the last request on it are gone.
#[derive(Debug, Clone)]
pub struct File {
    fd: Rc<OwnedFd>,
}

impl File {
    /// Whether no request and no other clone uses the descriptor.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        Rc::strong_count(&self.fd) == 1
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> Self {
        File { fd: Rc::new(fd) }
    }
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> Self {
        OwnedFd::from(file).into()
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
