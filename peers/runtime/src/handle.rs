//! How other threads reach a reactor.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Reaches a reactor from any thread.
#[derive(Clone)]
pub struct Handle {
    doorbell: Arc<EventFd>,
    stop: Arc<AtomicBool>,
}

impl Handle {
    pub(crate) fn open() -> io::Result<Handle> {
        let doorbell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Handle {
            doorbell: Arc::new(doorbell),
            stop: Arc::default(),
        })
    }

    /// Has the reactor poll its peer soon: another thread has left work for it.
    pub fn wake(&self) {
        // EAGAIN: the counter is full, so the reactor is about to wake.
        let _ = self.doorbell.write(1);
    }

    /// Asks the reactor to end.
    pub fn stop(&self) {
        // Release: pairs with the Acquire in `is_stopping`, so that the reactor sees what this thread did before.
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the reactor has been asked to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        // Acquire: pairs with the Release in `stop`.
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// Resets the counter, so that it never fills up.
    pub(crate) fn answer_doorbell(&self) {
        let _ = self.doorbell.read();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}
