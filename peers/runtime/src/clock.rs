//! Time, passed in: monotonic time for intervals, wall time only for people.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A source of time.
pub trait Clock: std::fmt::Debug + Send + Sync {
    /// Time since some fixed moment in the past; never goes backwards.
    fn now(&self) -> Duration;

    /// Seconds since 1970, for people; may jump.
    fn wall_seconds(&self) -> u64;
}

/// A clock that several owners share.
impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Duration {
        (**self).now()
    }

    fn wall_seconds(&self) -> u64 {
        (**self).wall_seconds()
    }
}

/// The kernel's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

fn read(clock: ClockId) -> Duration {
    // Both clocks exist on every kernel, and the call has no other error.
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        read(ClockId::CLOCK_MONOTONIC)
    }

    fn wall_seconds(&self) -> u64 {
        read(ClockId::CLOCK_REALTIME).as_secs()
    }
}

/// A clock that a test moves.
#[derive(Debug, Default)]
pub struct ManualClock {
    now_ns: AtomicU64,
}

impl ManualClock {
    /// Advances the time.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        // Relaxed: the number orders no other memory access.
        self.now_ns.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns.load(Ordering::Relaxed))
    }

    fn wall_seconds(&self) -> u64 {
        self.now().as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on() {
        let (before, after) = (SystemClock.now(), SystemClock.now());
        assert!(before <= after);
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(2));
        assert_eq!(
            (clock.now(), clock.wall_seconds()),
            (Duration::from_secs(2), 2)
        );
    }
}
