//! What wakes the data thread for a driver: descriptors and time.
//!
//! Invariant: a signal on a watched descriptor makes the thread poll its driver again, although nobody reads the descriptor: watches are
//! edge-triggered.

use std::os::fd::OwnedFd;
use std::time::Duration;

/// A watched descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WatchId(pub u64);

/// The thread's event loop, as far as one driver uses it.
pub trait Wakeups {
    /// Polls the driver after each signal on `fd`, from now on.
    ///
    /// # Errors
    /// The kernel's error.
    fn watch(&mut self, fd: OwnedFd) -> std::io::Result<WatchId>;

    /// As [`Wakeups::watch`], and sets bit `mark` (0 to 63) of [`Wakeups::take_marks`] with each signal.
    ///
    /// # Errors
    /// The kernel's error.
    fn watch_marked(&mut self, fd: OwnedFd, mark: u8) -> std::io::Result<WatchId>;

    /// The marks of the descriptors that were signalled since the last call; perhaps more than these. For a driver with many descriptors,
    /// each of which costs a system call to look at.
    fn take_marks(&mut self) -> u64;

    /// Signals `mark` once, when the descriptor of `id` can be written, or its other side has disconnected.
    fn await_writable(&mut self, id: WatchId, mark: u8);

    /// Ends a watch and closes the descriptor.
    fn unwatch(&mut self, id: WatchId);

    /// Monotonic time.
    fn now(&self) -> Duration;

    /// Polls the driver at `deadline`, and perhaps before; a driver that has to wait longer calls this again.
    fn alarm(&mut self, deadline: Duration);
}
