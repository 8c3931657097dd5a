//! How often a front end may connect, or start its rings anew.
//!
//! The first start after a connection or a stop opens the volume, and the end of the run closes it: some synced writes
//! of metadata each, which every volume of the pool feels; and a connection is told in the log. An honest guest starts a few times in a row (firmware, boot
//! loader, kernel) and then not for hours; so a burst is free, and whoever goes on waits, on his own thread.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use archipelago_runtime::{Clock, SystemClock};

/// Starts in quick succession that need not wait.
pub(crate) const BURST: u32 = 16;

/// A bucket of [`BURST`] starts, one more for each interval.
#[derive(Debug)]
pub(crate) struct Throttle {
    interval: Duration,
    /// When the starts so far are all paid for.
    paid: Duration,
}

impl Throttle {
    pub(crate) fn new(interval: Duration) -> Self {
        Throttle {
            interval,
            paid: Duration::ZERO,
        }
    }

    /// Counts a start at `now`: how long it has to wait.
    pub(crate) fn start(&mut self, now: Duration) -> Duration {
        let due = self.paid.max(now);
        self.paid = due + self.interval;
        due.saturating_sub(now + self.interval * (BURST - 1))
    }
}

/// Counts a start now: how long it has to wait.
pub(crate) fn start(throttle: &Mutex<Throttle>) -> Duration {
    let mut throttle = throttle.lock().unwrap_or_else(PoisonError::into_inner);
    throttle.start(SystemClock.now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_each_start_waits_for_its_turn() {
        let second = Duration::from_secs(1);
        let mut throttle = Throttle::new(second);
        let mut now = Duration::from_secs(100);
        for _ in 0..BURST {
            assert_eq!(throttle.start(now), Duration::ZERO);
        }
        for _ in 0..3 {
            let wait = throttle.start(now);
            assert_eq!(wait, second, "as if it had waited before");
            now += wait;
        }
        now += second * (BURST + 1);
        assert_eq!(throttle.start(now), Duration::ZERO, "a long rest pays all");
        let mut unlimited = Throttle::new(Duration::ZERO);
        assert!((0..1000).all(|_| unlimited.start(now).is_zero()));
    }
}
