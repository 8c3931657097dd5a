//! What the two halves of an endpoint share: figures, whether the device was stopped, and requests to detach.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use archipelago_endpoint::Detach;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::metrics::Metrics;

/// A request to detach. The answer comes when it is done; there is none if the data thread has ended.
#[derive(Debug)]
pub(crate) struct DetachRequest {
    pub(crate) how: Detach,
    pub(crate) reply: Sender<()>,
}

/// State shared between the data thread and the threads of control.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) metrics: Metrics,
    is_stopped: AtomicBool,
}

impl Shared {
    /// Records that the device was stopped.
    pub(crate) fn lose_device(&self) {
        // Relaxed: shown to users only.
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_lost_device(&self) -> bool {
        // Relaxed: as in `lose_device`.
        self.is_stopped.load(Ordering::Relaxed)
    }
}

/// A doorbell: the descriptor to ring, and the one to watch.
pub(crate) fn doorbell() -> std::io::Result<(EventFd, OwnedFd)> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let made = EventFd::from_value_and_flags(0, flags)?;
    let watched = made.as_fd().try_clone_to_owned()?;
    Ok((made, watched))
}
