//! ^C and SIGTERM while an image is copied: noticed between two steps, so that what was begun is taken back.

use std::os::fd::{AsFd, BorrowedFd};

use archipelago_protocol::{Error, ErrorCode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals as a descriptor.
#[derive(Debug)]
pub(super) struct Interrupt {
    signals: SignalFd,
}

impl Interrupt {
    /// From now on the signals do not kill, they are only noticed.
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
        self.wait(None, PollTimeout::ZERO)
    }

    /// Waits until `other` can be read; fails if a signal comes first.
    pub(super) fn wait_for(&self, other: impl AsFd) -> Result<(), Error> {
        self.wait(Some(other.as_fd()), PollTimeout::NONE)
    }

    fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: PollTimeout) -> Result<(), Error> {
        let mut descriptors = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        descriptors.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Error::new(ErrorCode::Internal, format!("poll: {errno}"))),
        }
        let interrupted = descriptors[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLIN));
        if interrupted {
            return Err(Error::new(ErrorCode::Unavailable, "interrupted"));
        }
        Ok(())
    }
}
