//! Time, for what is waited for.

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

/// The kernel's.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        // The kernel knows this clock always; zero would only make waits longer.
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
    }

    fn pause(&self, duration: Duration) {
        let timeout = PollTimeout::try_from(duration).unwrap_or(PollTimeout::MAX);
        // A signal that ends it early does no harm.
        let _paused = poll(&mut [], timeout);
    }
}
