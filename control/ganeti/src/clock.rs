//! The clock, for timeouts.

use std::time::Duration;

use nix::poll::{PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

/// Monotonic time.
pub trait Clock {
    /// Since some fixed moment.
    fn now(&self) -> Duration;

    /// Lets `duration` pass, or a little less.
    fn pause(&self, duration: Duration);
}

/// The kernel's monotonic clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        // This clock always exists; zero would only make waits longer.
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
    }

    fn pause(&self, duration: Duration) {
        let timeout = PollTimeout::try_from(duration).unwrap_or(PollTimeout::MAX);
        // A signal may end the pause early, which is harmless.
        let _paused = poll(&mut [], timeout);
    }
}
