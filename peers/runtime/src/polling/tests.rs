//! A thread whose waits end after given times.

use super::*;

const US: Duration = Duration::from_micros(1);
const BUDGET: Duration = Duration::from_micros(50);
/// What a sleep lasts longer than what it waits for.
const WAKE_UP: Duration = Duration::from_micros(20);

const GUEST: Activity = Activity {
    transfers: 0,
    syncs: 0,
    transfers_max: 1,
    bytes_max: 4096,
};
const DEVICE: Activity = Activity {
    transfers: 1,
    ..GUEST
};

#[derive(Debug)]
struct Thread {
    polling: Polling,
    now: Duration,
    /// Waits that began with a poll.
    polls: u32,
    /// CPU time of polls.
    polled: Duration,
    sleeps: u32,
}

impl Thread {
    fn new() -> Thread {
        Thread {
            polling: Polling::new(BUDGET),
            now: Duration::from_secs(1000),
            polls: 0,
            polled: Duration::ZERO,
            sleeps: 0,
        }
    }

    /// Waits for something that happens after `length`.
    fn wait(&mut self, activity: Activity, length: Duration) {
        let mut wait = self.polling.begin(self.now, activity);
        let event = self.now + length;
        let step = 5 * US;
        if wait.polls(self.now) {
            self.polls += 1;
        }
        while self.now < event && wait.polls(self.now) {
            self.now += step;
            self.polled += step;
        }
        if self.now < event {
            wait.sleeps();
            self.sleeps += 1;
            self.now = event + WAKE_UP;
            assert!(!wait.polls(wait.since), "it has slept in this wait");
        }
        self.polling.end(wait, self.now);
    }

    fn waits(activity: Activity, length: Duration, count: u32) -> Thread {
        let mut thread = Thread::new();
        for _ in 0..count {
            thread.wait(activity, length);
        }
        thread
    }
}

#[test]
fn short_waits_are_polled_through() {
    for activity in [GUEST, DEVICE] {
        let thread = Thread::waits(activity, 40 * US, 1000);
        assert_eq!((thread.polls, thread.sleeps), (1000, 0));
    }
}

#[test]
fn short_waits_with_a_long_one_now_and_then_are_polled_through() {
    let mut thread = Thread::new();
    for count in 0..9000 {
        let long = count % 3 != 0;
        thread.wait(DEVICE, if long { 90 * US } else { 30 * US });
    }
    assert_eq!(thread.polls, 9000, "one in three is short: {thread:?}");
}

#[test]
fn long_waits_are_slept_through() {
    for length in [51 * US, 90 * US, 500 * US, 1_000_000 * US] {
        let thread = Thread::waits(DEVICE, length, 10_000);
        let share = thread.polled.as_secs_f64() / (10_000.0 * length.as_secs_f64());
        assert!(thread.polls < 200 && share < 0.03, "{length:?}: {thread:?}");
    }
}

#[test]
fn waits_that_become_short_are_noticed_though_a_sleep_contains_a_wake_up() {
    let mut thread = Thread::waits(DEVICE, 500 * US, 100_000);
    let before = thread.sleeps;
    for _ in 0..1000 {
        thread.wait(DEVICE, 40 * US);
    }
    assert!(thread.sleeps - before <= CHANGE_MIN, "{thread:?}");
}

#[test]
fn waits_that_become_short_are_noticed_after_any_number_of_changes_in_vain() {
    let mut thread = Thread::waits(DEVICE, 60 * US, 1_000_000);
    let before = thread.sleeps;
    for _ in 0..10_000 {
        thread.wait(DEVICE, 40 * US);
    }
    assert!(
        thread.sleeps - before <= CHANGE_MAX / CREDIT + 1,
        "{thread:?}"
    );
}

#[test]
fn many_or_large_requests_are_never_polled_for() {
    let deep = Activity {
        transfers_max: REQUESTS_MAX + 1,
        ..DEVICE
    };
    let large = Activity {
        bytes_max: BYTES_MAX + 1,
        ..DEVICE
    };
    for activity in [deep, large] {
        assert_eq!(Thread::waits(activity, 5 * US, 1000).polls, 0);
    }
    let most = Activity {
        transfers_max: REQUESTS_MAX,
        bytes_max: BYTES_MAX,
        ..DEVICE
    };
    assert_eq!(Thread::waits(most, 5 * US, 1000).polls, 1000);
}

#[test]
fn a_deep_queue_that_is_empty_now_and_then_is_not_polled_for() {
    let mut thread = Thread::new();
    for count in 0..10 * WINDOW {
        let deep = Activity {
            transfers_max: 32,
            ..GUEST
        };
        thread.wait(if count % WINDOW == 0 { deep } else { GUEST }, 5 * US);
    }
    assert_eq!(thread.polls, 0);
    for _ in 0..2 * WINDOW {
        thread.wait(GUEST, 5 * US);
    }
    assert!(thread.polls > 0, "it is a deep queue no more: {thread:?}");
}

#[test]
fn syncs_are_never_polled_for_and_teach_nothing() {
    let syncs = Activity {
        syncs: 1,
        ..Activity::default()
    };
    let mut thread = Thread::waits(syncs, 1000 * US, 1000);
    assert_eq!(thread.polls, 0);
    thread.wait(GUEST, 5 * US);
    thread.wait(DEVICE, 5 * US);
    assert_eq!(thread.polls, 2);
}

#[test]
fn a_guest_and_a_device_are_known_apart() {
    let mut thread = Thread::new();
    for _ in 0..1000 {
        thread.wait(GUEST, 20 * US);
        thread.wait(DEVICE, 300 * US);
    }
    let of_the_device = thread.polls - 1000;
    assert!(of_the_device <= CREDIT_MAX, "{thread:?}");
}

#[test]
fn a_thread_that_may_not_poll_learns_nothing_from_its_sleeps() {
    let mut polling = Polling::new(BUDGET);
    for now in 0..1000 {
        let mut wait = polling.begin(now * US, DEVICE);
        wait.sleeps();
        polling.end(wait, (now + 500) * US);
    }
    assert!(polling.begin(1000 * US, DEVICE).polls(1000 * US));
}

#[test]
fn without_a_budget_nothing_is_polled_for() {
    let mut polling = Polling::new(Duration::ZERO);
    let mut wait = polling.begin(5 * US, DEVICE);
    assert!(!wait.polls(5 * US));
    polling.end(wait, 9 * US);
}
