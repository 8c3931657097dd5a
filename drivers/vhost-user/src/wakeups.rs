//! What wakes the data thread for a device: eventfds.
//!
//! Invariant: a signal on a watched descriptor makes the device's thread run [`Device::poll`](crate::Device) again, though
//! nobody reads the eventfd: watches are edge-triggered.

use std::os::fd::OwnedFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// A watched descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WatchId(pub u64);

/// The thread's event loop, as far as a device uses it.
pub trait Wakeups {
    /// Polls the device after each signal on `fd`, from now on.
    ///
    /// # Errors
    /// What the kernel says.
    fn watch(&mut self, fd: OwnedFd) -> std::io::Result<WatchId>;

    /// Ends a watch and closes the descriptor.
    fn unwatch(&mut self, id: WatchId);
}

/// Watches on an epoll descriptor of the device's own, which an event loop watches as one.
#[derive(Debug)]
pub struct EpollWakeups {
    epoll: Epoll,
    watched: Vec<(WatchId, OwnedFd)>,
    next: u64,
}

impl EpollWakeups {
    /// Nothing watched.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> std::io::Result<Self> {
        Ok(EpollWakeups {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            watched: Vec::new(),
            next: 0,
        })
    }

    /// A descriptor that becomes readable with each signal; [`EpollWakeups::wait`] on a clone takes them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn descriptor(&self) -> std::io::Result<OwnedFd> {
        use std::os::fd::AsFd;
        self.epoll.0.as_fd().try_clone_to_owned()
    }

    /// Waits for signals and takes them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(descriptor: OwnedFd, timeout: EpollTimeout) -> std::io::Result<usize> {
        let mut events = [EpollEvent::empty(); 64];
        match Epoll(descriptor).wait(&mut events, timeout) {
            Err(nix::errno::Errno::EINTR) => Ok(0),
            other => Ok(other?),
        }
    }
}

impl Wakeups for EpollWakeups {
    fn watch(&mut self, fd: OwnedFd) -> std::io::Result<WatchId> {
        let id = WatchId(self.next);
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.epoll.add(&fd, EpollEvent::new(flags, id.0))?;
        self.next += 1;
        self.watched.push((id, fd));
        Ok(id)
    }

    fn unwatch(&mut self, id: WatchId) {
        if let Some(index) = self.watched.iter().position(|(known, _)| *known == id) {
            let (_, fd) = self.watched.swap_remove(index);
            // The front end holds the same eventfd, so closing ours would not end the watch.
            let _gone_already = self.epoll.delete(&fd);
        }
    }
}
