//! How long requests wait for a channel that is away: within a limit, so that a node that never comes back is an error and not a hang.
//!
//! A channel that is back is not the end of it: what was sent again may be what its process dies of, again and again. The outage ends
//! once all of that is answered.

use std::time::Duration;

use archipelago_runtime::{Clock, SystemClock};

#[derive(Debug, Clone, Copy)]
enum State {
    None,
    Away {
        since: Duration,
    },
    /// The channel is back, and has so many requests to answer that it was not the first to get.
    Resent {
        since: Duration,
        count: usize,
    },
}

/// The outage of one channel, or none.
#[derive(Debug)]
pub struct Outage<C = SystemClock> {
    limit: Duration,
    state: State,
    clock: C,
}

impl<C: Clock> Outage<C> {
    /// None yet; requests wait for up to `limit` in each.
    #[must_use]
    pub fn new(limit: Duration, clock: C) -> Outage<C> {
        Outage {
            limit,
            state: State::None,
            clock,
        }
    }

    /// How long requests wait.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The channel is away, for the first time or once more.
    pub fn begin(&mut self) {
        let since = match self.state {
            State::None => self.clock.now(),
            State::Away { since } | State::Resent { since, .. } => since,
        };
        self.state = State::Away { since };
    }

    /// The channel is back, and `count` requests are sent again: how long the outage has lasted.
    pub fn back(&mut self, count: usize) -> Duration {
        let (State::Away { since } | State::Resent { since, .. }) = self.state else {
            return Duration::ZERO;
        };
        self.state = match count {
            0 => State::None,
            count => State::Resent { since, count },
        };
        self.clock.now() - since
    }

    /// One of those that were sent again is answered.
    pub fn answered(&mut self) {
        if let State::Resent { since, count } = self.state {
            self.state = match count - 1 {
                0 => State::None,
                count => State::Resent { since, count },
            };
        }
    }

    /// Nothing waits any more.
    pub fn end(&mut self) {
        self.state = State::None;
    }

    /// For how long requests wait yet. `None`: the channel is not away; zero: they wait no more.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let State::Away { since } = self.state else {
            return None;
        };
        Some(self.limit.saturating_sub(self.clock.now() - since))
    }

    /// Whether it has lasted for so long that requests fail.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        self.left() == Some(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use archipelago_runtime::ManualClock;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);

    #[test]
    fn an_outage_ends_when_all_that_was_sent_again_is_answered() {
        let mut outage = Outage::new(LIMIT, ManualClock::default());
        outage.begin();
        outage.clock.advance(Duration::from_secs(100));
        assert_eq!(outage.back(2), Duration::from_secs(100));
        outage.answered();
        assert!(outage.left().is_none(), "a live channel has no limit");
        outage.begin();
        assert_eq!(outage.left(), Some(Duration::from_secs(200)));
        outage.back(1);
        outage.answered();
        outage.begin();
        assert_eq!(outage.left(), Some(LIMIT), "another outage");
        outage.back(0);
        outage.begin();
        assert_eq!(outage.left(), Some(LIMIT), "nothing was sent again");
    }

    #[test]
    fn a_request_that_kills_each_process_fails_after_the_limit() {
        let mut outage = Outage::new(LIMIT, ManualClock::default());
        let mut deaths = 0;
        while !outage.is_over_limit() {
            outage.begin();
            outage.clock.advance(Duration::from_secs(10));
            if !outage.is_over_limit() {
                outage.back(1);
            }
            deaths += 1;
            assert!(deaths < 100, "it is sent without end");
        }
        assert_eq!(deaths, 30);
    }
}
