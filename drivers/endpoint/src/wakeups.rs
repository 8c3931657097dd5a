//! What wakes the data thread for a driver: descriptors and time.
//!
//! Invariant: a signal on a watched descriptor makes the thread poll its driver again, though nobody reads the descriptor: watches
//! are edge-triggered.

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
    /// What the kernel says.
    fn watch(&mut self, fd: OwnedFd) -> std::io::Result<WatchId>;

    /// Ends a watch and closes the descriptor.
    fn unwatch(&mut self, id: WatchId);

    /// Monotonic time.
    fn now(&self) -> Duration;

    /// Polls the driver when it is `deadline`, and perhaps before: whoever has to wait longer calls again.
    fn alarm(&mut self, deadline: Duration);
}
