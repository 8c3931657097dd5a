//! ^C and SIGTERM while an image is copied: noticed between two steps, so that the command can undo what it has begun.

use std::os::fd::{AsFd, BorrowedFd};

use archipelago_protocol::{Error, ErrorCode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The error message of an interrupted copy.
pub(super) const INTERRUPTED: &str = "interrupted";

/// Signals as a descriptor.
#[derive(Debug)]
pub(super) struct Interrupt {
    signals: SignalFd,
}

impl Interrupt {
    /// From now on the signals do not kill the process; they are only recorded.
    pub(super) fn new() -> Result<Interrupt, Error> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGHUP);
        let failed =
            |errno: nix::errno::Errno| Error::new(ErrorCode::Internal, format!("signals: {errno}"));
        set.thread_block().map_err(failed)?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(failed)?;
        Ok(Interrupt { signals })
    }

    /// Fails if a signal has come.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.wait(None, PollTimeout::ZERO).map(drop)
    }

    /// Waits until `other` can be read; fails if a signal comes first.
    pub(super) fn wait_for(&self, other: impl AsFd) -> Result<(), Error> {
        let other = Some((other.as_fd(), PollFlags::POLLIN));
        self.wait(other, PollTimeout::NONE).map(drop)
    }

    /// Waits up to `timeout_ms` until `other` can be read, or written; returns whether it can. Fails if a signal comes first.
    pub(super) fn wait_within(
        &self,
        other: impl AsFd,
        events: PollFlags,
        timeout_ms: i32,
    ) -> Result<bool, Error> {
        let timeout = PollTimeout::try_from(timeout_ms).unwrap_or(PollTimeout::NONE);
        self.wait(Some((other.as_fd(), events)), timeout)
    }

    /// Lets `ms` milliseconds pass; fails if a signal comes.
    pub(super) fn pause(&self, ms: u16) -> Result<(), Error> {
        self.wait(None, PollTimeout::from(ms)).map(drop)
    }

    fn wait(
        &self,
        other: Option<(BorrowedFd<'_>, PollFlags)>,
        timeout: PollTimeout,
    ) -> Result<bool, Error> {
        let mut descriptors = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        descriptors.extend(other.map(|(other, events)| PollFd::new(other, events)));
        let ready = match poll(&mut descriptors, timeout) {
            Ok(ready) => ready > 0,
            // The caller waits again.
            Err(nix::errno::Errno::EINTR) => true,
            Err(errno) => return Err(Error::new(ErrorCode::Internal, format!("poll: {errno}"))),
        };
        let interrupted = descriptors[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLIN));
        if interrupted {
            return Err(Error::new(ErrorCode::Unavailable, INTERRUPTED));
        }
        Ok(ready)
    }
}
