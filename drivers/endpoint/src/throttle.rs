//! Limits the rate of actions that cost a client nothing and its neighbours much: a burst is free, and each further action waits.

use std::time::Duration;

/// A bucket of units, one more for each interval.
#[derive(Debug)]
pub struct Throttle {
    burst: u32,
    interval: Duration,
    /// The time at which the units so far are all paid for.
    paid: Duration,
}

impl Throttle {
    /// `burst` units at once, and one more for each `interval`; zero: any number.
    #[must_use]
    pub fn new(burst: u32, interval: Duration) -> Self {
        Throttle {
            burst,
            interval,
            paid: Duration::ZERO,
        }
    }

    /// Counts units at `now`. Returns the wait before the next action, or, for an action that waits first, before this one.
    pub fn count(&mut self, units: u32, now: Duration) -> Duration {
        self.paid = self.paid.max(now) + self.interval * units;
        self.paid.saturating_sub(now + self.interval * self.burst)
    }

    /// The time at which the units so far are all paid for: then a whole burst is free again.
    #[must_use]
    pub fn paid(&self) -> Duration {
        self.paid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTS: u32 = 16;

    #[test]
    fn a_burst_is_free_and_then_each_start_waits_for_its_turn() {
        let second = Duration::from_secs(1);
        let mut throttle = Throttle::new(STARTS, second);
        let mut now = Duration::from_secs(100);
        for _ in 0..STARTS {
            assert_eq!(throttle.count(1, now), Duration::ZERO);
        }
        for _ in 0..3 {
            let wait = throttle.count(1, now);
            assert_eq!(wait, second, "as if it had waited before");
            now += wait;
        }
        now += second * (STARTS + 1);
        assert_eq!(
            throttle.count(1, now),
            Duration::ZERO,
            "a long rest pays all"
        );
        let mut unlimited = Throttle::new(STARTS, Duration::ZERO);
        assert!((0..1000).all(|_| unlimited.count(1, now).is_zero()));
    }
}
