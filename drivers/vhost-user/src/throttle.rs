//! Limits for actions that cost a guest or front end nothing and its neighbours much.
//!
//! * Connecting, and starting the rings anew. The first start after a connection or a stop opens the volume, and the end of the run closes
//!   it: some synced writes of metadata each, which delay every volume of the pool; and a connection is logged. An honest guest starts a
//!   few times in a row (firmware, boot loader, kernel) and then not for hours.
//! * Memory slots. Each is mapped here and in the blocker's process, and a message waits for both. An honest guest has a
//!   few, and adds one now and then.
//! * Requests that are answered without the volume: refused ones, empty ones, the serial. No storage delays them, so a guest could keep the
//!   data thread busy with them alone. An honest guest asks for its serial, and now and then sends an unsupported request.
//!
//! So a burst is free, and further actions wait: a front end on its own thread, a guest because its rings are not served for a while.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use archipelago_endpoint::Throttle;
use archipelago_runtime::{Clock, SystemClock};

/// Starts in quick succession that do not wait.
pub(crate) const STARTS: u32 = 16;
/// Memory slots that do not wait: more than guests have, except those with hundreds of DIMMs.
const SLOTS: u32 = 128;
/// The wait of each further one: some 20 times the work that it causes. A whole table of 509 takes 0.8 s.
const SLOT_INTERVAL: Duration = Duration::from_millis(2);
/// Descriptors of requests answered without the volume that do not wait.
const DESCRIPTORS: u32 = 256;
/// The wait of each further one: 250 a millisecond, some 10 ns of work each.
const DESCRIPTOR_INTERVAL: Duration = Duration::from_micros(4);

/// The throttle for requests answered without the volume, in descriptors.
fn of_answers() -> Throttle {
    Throttle::new(DESCRIPTORS, DESCRIPTOR_INTERVAL)
}

/// Pauses the rings for a while after too many requests that were answered without the volume.
#[derive(Debug)]
pub(crate) struct AnswerThrottle {
    answers: Throttle,
    paused_until: Option<Duration>,
}

impl AnswerThrottle {
    pub(crate) fn new() -> Self {
        AnswerThrottle {
            answers: of_answers(),
            paused_until: None,
        }
    }

    /// Counts a request of so many descriptors. `true`: a pause begins.
    pub(crate) fn count(&mut self, descriptors: u32, now: Duration) -> bool {
        let over = !self.answers.count(descriptors, now).is_zero();
        if over {
            self.paused_until = Some(self.answers.paid());
        }
        over
    }

    /// Whether the rings are paused now.
    pub(crate) fn is_paused(&mut self, now: impl FnOnce() -> Duration) -> bool {
        if let Some(until) = self.paused_until
            && until <= now()
        {
            self.paused_until = None;
        }
        self.has_paused()
    }

    /// Whether a pause has begun whose end was not noticed yet.
    pub(crate) fn has_paused(&self) -> bool {
        self.paused_until.is_some()
    }

    /// When the pause is over.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.paused_until
    }
}

/// The actions that the front ends of one volume may do without a wait, all together: one is connected at a time.
#[derive(Debug)]
pub(crate) struct Allowance {
    starts: Mutex<Throttle>,
    slots: Mutex<Throttle>,
}

impl Allowance {
    /// Allows one more start in each interval.
    pub(crate) fn new(start_interval: Duration) -> Self {
        Allowance {
            starts: Mutex::new(Throttle::new(STARTS, start_interval)),
            slots: Mutex::new(Throttle::new(SLOTS, SLOT_INTERVAL)),
        }
    }

    /// Counts a start now; returns how long it has to wait.
    pub(crate) fn start(&self) -> Duration {
        count(&self.starts, 1)
    }

    /// Counts memory slots now; returns how long they have to wait.
    pub(crate) fn slots(&self, number: usize) -> Duration {
        count(&self.slots, u32::try_from(number).unwrap_or(u32::MAX))
    }
}

fn count(throttle: &Mutex<Throttle>, units: u32) -> Duration {
    let mut throttle = throttle.lock().unwrap_or_else(PoisonError::into_inner);
    throttle.count(units, SystemClock.now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_requests_wait_longer() {
        let mut throttle = of_answers();
        let now = Duration::from_secs(100);
        assert_eq!(throttle.count(DESCRIPTORS, now), Duration::ZERO);
        assert_eq!(throttle.count(2, now), 2 * DESCRIPTOR_INTERVAL);
        assert_eq!(throttle.count(510, now), 512 * DESCRIPTOR_INTERVAL);
    }
}
