//! An event loop for one endpoint, on an epoll descriptor and a timer: how tests wait for a driver's wake-ups.

use std::os::fd::OwnedFd;
use std::time::Duration;

use archipelago_endpoint::{Wakeups, WatchId};
use archipelago_runtime::{Clock, SystemClock};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

const EDGES: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLET);
/// What the timer is called; watches are counted from 0.
const TIMER: u64 = u64::MAX;

/// Watches on an epoll descriptor of the driver's own.
#[derive(Debug)]
pub struct EpollWakeups {
    epoll: Epoll,
    timer: TimerFd,
    watched: Vec<(WatchId, OwnedFd)>,
    next: u64,
}

impl EpollWakeups {
    /// Nothing watched.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> std::io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        epoll.add(&timer, EpollEvent::new(EDGES, TIMER))?;
        Ok(EpollWakeups {
            epoll,
            timer,
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
        self.epoll.add(&fd, EpollEvent::new(EDGES, id.0))?;
        self.next += 1;
        self.watched.push((id, fd));
        Ok(id)
    }

    fn watch_marked(&mut self, fd: OwnedFd, _mark: u8) -> std::io::Result<WatchId> {
        let id = WatchId(self.next);
        let events = EDGES.union(EpollFlags::EPOLLOUT);
        self.epoll.add(&fd, EpollEvent::new(events, id.0))?;
        self.next += 1;
        self.watched.push((id, fd));
        Ok(id)
    }

    /// More than was signalled, perhaps: whoever waits does not tell.
    fn take_marks(&mut self) -> u64 {
        u64::MAX
    }

    /// Each edge is signalled as it is.
    fn await_writable(&mut self, _id: WatchId, _mark: u8) {}

    fn unwatch(&mut self, id: WatchId) {
        if let Some(index) = self.watched.iter().position(|(known, _)| *known == id) {
            let (_, fd) = self.watched.swap_remove(index);
            // The other side holds the same eventfd, so closing ours would not end the watch.
            let _gone_already = self.epoll.delete(&fd);
        }
    }

    fn now(&self) -> Duration {
        SystemClock.now()
    }

    fn alarm(&mut self, deadline: Duration) {
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        let set = self.timer.set(Expiration::OneShot(deadline.into()), flags);
        debug_assert!(set.is_ok(), "a time of the same clock");
    }
}
