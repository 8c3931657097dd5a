//! What the two halves of an endpoint share: figures, the size, and requests to detach.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use archipelago_endpoint::Detach;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::metrics::Metrics;

/// A request to detach. The answer comes when it is done; there is none if the data thread has ended.
#[derive(Debug)]
pub(crate) struct DetachRequest {
    pub(crate) how: Detach,
    pub(crate) reply: Sender<Detached>,
}

/// The result of a request to detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detached {
    /// No client is served any more, and the volume is closed.
    Done,
    /// So many clients are connected; nothing has changed.
    InUse(usize),
}

/// State shared between the data thread and the threads of control.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) metrics: Metrics,
    size: AtomicU64,
    finished: AtomicBool,
}

impl Shared {
    pub(crate) fn new(size: u64) -> Self {
        Shared {
            metrics: Metrics::default(),
            size: AtomicU64::new(size),
            finished: AtomicBool::new(false),
        }
    }

    /// Bytes of the volume.
    pub(crate) fn size(&self) -> u64 {
        // Relaxed: no other data is published with the number, and the volume validates requests as well.
        self.size.load(Ordering::Relaxed)
    }

    pub(crate) fn set_size(&self, size: u64) {
        // Relaxed: as in `size`.
        self.size.store(size, Ordering::Relaxed);
    }

    /// The endpoint is detached. Called and read by the data thread alone.
    pub(crate) fn finish(&self) {
        // Relaxed: within one thread.
        self.finished.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_finished(&self) -> bool {
        // Relaxed: as in `finish`.
        self.finished.load(Ordering::Relaxed)
    }
}

/// A doorbell: the descriptor to ring, and the one to watch.
pub(crate) fn doorbell() -> std::io::Result<(EventFd, OwnedFd)> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let made = EventFd::from_value_and_flags(0, flags)?;
    let watched = made.as_fd().try_clone_to_owned()?;
    Ok((made, watched))
}

/// Rings a doorbell. The write fails only if the counter is full: then it has been rung.
pub(crate) fn ring(doorbell: &EventFd) {
    let _full = doorbell.write(1);
}
