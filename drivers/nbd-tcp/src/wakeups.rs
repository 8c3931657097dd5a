//! What wakes the task of a volume: its channel, or the thread that opens the channel again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Descriptors that the task waits for.
pub(crate) struct Wakeups {
    /// `None` while the channel is away.
    channel: Option<AsyncFd<OwnedFd>>,
    reopened: AsyncFd<OwnedFd>,
    /// Rung when the channel is open again.
    pub(crate) doorbell: Arc<EventFd>,
}

impl Wakeups {
    /// Wake-ups of the channel whose descriptor is `channel`.
    ///
    /// # Errors
    /// The kernel's error: no descriptor.
    pub(crate) fn new(channel: BorrowedFd<'_>) -> io::Result<Wakeups> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let doorbell = EventFd::from_value_and_flags(0, flags)?;
        Ok(Wakeups {
            channel: Some(watch(channel)?),
            reopened: watch(doorbell.as_fd())?,
            doorbell: Arc::new(doorbell),
        })
    }

    /// Stops watching the channel, which is away.
    pub(crate) fn channel_left(&mut self) {
        self.channel = None;
    }

    /// Watches the new channel, with the descriptor `channel`.
    ///
    /// # Errors
    /// As [`Wakeups::new`].
    pub(crate) fn channel_returned(&mut self, channel: BorrowedFd<'_>) -> io::Result<()> {
        // The read fails if the doorbell was not rung.
        let _silenced = self.doorbell.read();
        self.channel = Some(watch(channel)?);
        Ok(())
    }

    /// Returns when there may be something to do.
    ///
    /// # Errors
    /// If the runtime ends.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        let watched = self.channel.as_ref().unwrap_or(&self.reopened);
        watched.readable().await?.clear_ready();
        Ok(())
    }
}

fn watch(descriptor: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    let descriptor = descriptor.try_clone_to_owned()?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe; an OwnedFd is what that asks for: one open descriptor for as long as it lives"
    )]
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}
