//! Ends the thread of a connection, whatever it waits for.

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::shared::signal;

/// The request to end, and the means to interrupt the thread's waits.
#[derive(Debug)]
pub(crate) struct Stop {
    wanted: AtomicBool,
    doorbell: File,
    stream: Mutex<Option<UnixStream>>,
}

impl Stop {
    pub(crate) fn new(doorbell: File) -> Self {
        Stop {
            wanted: AtomicBool::new(false),
            doorbell,
            stream: Mutex::new(None),
        }
    }

    pub(crate) fn is_wanted(&self) -> bool {
        // Acquire: pairs with the Release in `request`. Only the flag is published; the doorbell ends waits.
        self.wanted.load(Ordering::Acquire)
    }

    /// Makes the thread disconnect and end.
    pub(crate) fn request(&self) {
        // Release: pairs with the Acquire in `is_wanted`, which is read after each wait that the doorbell ends.
        self.wanted.store(true, Ordering::Release);
        signal(&self.doorbell);
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = &*stream {
            let _gone_already = stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits until the thread shall stop, at most for `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) {
        let mut fds = [PollFd::new(self.doorbell.as_fd(), PollFlags::POLLIN)];
        // Whole milliseconds, rounded up.
        let whole = PollTimeout::try_from(timeout + Duration::from_nanos(999_999));
        if !timeout.is_zero() {
            // An interrupted wait is only shorter.
            let _interrupted = poll(&mut fds, whole.unwrap_or(PollTimeout::MAX));
        }
    }

    /// The descriptor that becomes readable when the thread shall stop.
    pub(crate) fn doorbell(&self) -> &File {
        &self.doorbell
    }

    /// Whether a front end is connected.
    pub(crate) fn in_use(&self) -> bool {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.is_some()
    }

    /// Sets the connection that is to be cut when the thread shall stop.
    pub(crate) fn set(&self, stream: Option<UnixStream>) {
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = stream;
    }
}
