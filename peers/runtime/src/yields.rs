//! When the thread yields its CPU to other threads.
//!
//! Processes of one node may share a CPU, and wait for each other for microseconds. A thread that always has work (a hostile guest can
//! cause that) would make the next thread wait for a time slice of some milliseconds: so the thread yields now and then. But if it yields
//! to a thread that computes, it waits for the whole slice of that thread: so after a yield that took long, it does not yield for a while.

use std::time::Duration;

use crate::clock::Clock;

/// If a yield between two polls takes longer, the CPU went to a thread that computes: a time slice of some ms, far more than polling saves.
/// The kernel's own workers need a tenth of this for our requests.
const SPIN_YIELD_MAX: Duration = Duration::from_micros(200);
/// The same for a yield between two turns with work: a batch of another peer takes a quarter of this.
const BUSY_YIELD_MAX: Duration = Duration::from_millis(1);
/// After a yield that took too long, there is no yield of that kind for this long. That is fair: a thread that wakes up runs first, and a
/// thread with work has its own time slices.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest work between two yields.
const BUSY_MAX: Duration = Duration::from_micros(100);
/// A shorter sleep may not have been a sleep.
const SLEEP_MIN: Duration = Duration::from_micros(50);

/// Which yields pay.
#[derive(Debug, Default)]
pub(crate) struct Yields {
    /// The thread does not spin before this time.
    spin_from: Duration,
    /// The thread does not yield between turns with work before this time.
    busy_from: Duration,
    /// Since when the thread has had work without a yield or a sleep.
    busy_since: Option<Duration>,
}

impl Yields {
    /// The turn that ends at `now` had work: yields if it is time.
    pub(crate) fn busy(&mut self, now: Duration, clock: &dyn Clock, yield_cpu: impl FnOnce()) {
        let since = *self.busy_since.get_or_insert(now);
        if now.saturating_sub(since) < BUSY_MAX || now < self.busy_from {
            return;
        }
        yield_cpu();
        let back = clock.now();
        self.busy_since = Some(back);
        if back.saturating_sub(now) > BUSY_YIELD_MAX {
            self.busy_from = back + PAUSE;
        }
    }

    /// The thread wanted to sleep at `before`, and is awake again. If something woke it at once, that counts as work: a guest that kicks
    /// without a pause can cause that.
    pub(crate) fn slept(&mut self, before: Duration, clock: &dyn Clock, yield_cpu: impl FnOnce()) {
        let now = clock.now();
        if now.saturating_sub(before) >= SLEEP_MIN {
            self.busy_since = None;
        } else {
            self.busy(now, clock, yield_cpu);
        }
    }

    /// Whether the thread should poll again rather than sleep.
    pub(crate) fn may_spin(&self, now: Duration) -> bool {
        now >= self.spin_from
    }

    /// Yields between two polls.
    pub(crate) fn spin(&mut self, now: Duration, clock: &dyn Clock, yield_cpu: impl FnOnce()) {
        yield_cpu();
        let back = clock.now();
        if back.saturating_sub(now) > SPIN_YIELD_MAX {
            self.spin_from = back + PAUSE;
        }
        self.busy_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const US: Duration = Duration::from_micros(1);

    /// Turns with work of 10 us each: how many yields, each of which takes this long.
    fn yields_in(turns: u32, each_takes: Duration) -> u32 {
        let clock = ManualClock::default();
        let mut yields = Yields::default();
        let mut count = 0;
        for _ in 0..turns {
            clock.advance(10 * US);
            yields.busy(clock.now(), &clock, || {
                count += 1;
                clock.advance(each_takes);
            });
        }
        count
    }

    #[test]
    fn a_thread_that_always_has_work_yields_again_and_again() {
        assert_eq!(yields_in(1001, US), 1000 / 10);
        assert_eq!(
            yields_in(1001, 300 * US),
            1000 / 10,
            "others' work is short"
        );
    }

    #[test]
    fn whoever_computes_gets_a_slice_now_and_then_only() {
        let slice = 3000 * US;
        // 200 ms of turns.
        assert_eq!(yields_in(20_000, slice), 2);
    }

    #[test]
    fn a_thread_that_sleeps_in_between_need_not_yield() {
        let clock = ManualClock::default();
        let mut yields = Yields::default();
        for _ in 0..1000 {
            clock.advance(10 * US);
            yields.busy(clock.now(), &clock, || panic!("it has just slept"));
            clock.advance(80 * US);
            yields.busy(clock.now(), &clock, || panic!("it has just slept"));
            let before = clock.now();
            clock.advance(60 * US);
            yields.slept(before, &clock, || panic!("it has just slept"));
        }
    }

    #[test]
    fn a_thread_that_is_woken_at_once_yields_as_if_it_had_work() {
        let clock = ManualClock::default();
        let mut yields = Yields::default();
        let mut count = 0;
        for _ in 0..1001 {
            let before = clock.now();
            clock.advance(10 * US);
            yields.slept(before, &clock, || count += 1);
        }
        assert_eq!(count, 100);
    }

    #[test]
    fn nobody_spins_beside_whoever_computes() {
        let clock = ManualClock::default();
        let mut yields = Yields::default();
        yields.spin(clock.now(), &clock, || clock.advance(20 * US));
        assert!(yields.may_spin(clock.now()));
        yields.spin(clock.now(), &clock, || clock.advance(3000 * US));
        assert!(!yields.may_spin(clock.now()));
        clock.advance(PAUSE);
        assert!(yields.may_spin(clock.now()));
    }
}
