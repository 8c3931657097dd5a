//! The doorbell of one side: an eventfd that both processes have open.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd takes its increment as a native integer: this is the kernel's interface, not one of our formats.
#[expect(clippy::host_endian_bytes, reason = "the kernel's interface")]
const ONE: [u8; 8] = 1u64.to_ne_bytes();

/// An eventfd that wakes one side.
#[derive(Debug)]
pub(crate) struct DoorbellFd(OwnedFd);

impl DoorbellFd {
    pub(crate) fn new() -> io::Result<DoorbellFd> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(DoorbellFd(EventFd::from_value_and_flags(0, flags)?.into()))
    }

    /// Takes over a doorbell that the other side has made. It is set to non-blocking, whatever it is.
    pub(crate) fn of_peer(fd: OwnedFd) -> io::Result<DoorbellFd> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(DoorbellFd(fd))
    }

    /// Wakes the process that watches. Errors are ignored: if the counter is full, the doorbell rings already; a descriptor that is not an
    /// eventfd harms only the side that made it, which then does not wake up.
    pub(crate) fn ring(&self) {
        let _ringing_already = nix::unistd::write(&self.0, &ONE);
    }

    /// Silences the doorbell.
    pub(crate) fn silence(&self) {
        let _was_silent = nix::unistd::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for DoorbellFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
