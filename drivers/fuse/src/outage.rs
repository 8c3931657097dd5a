//! How long requests wait for a channel that is away: in bounds, so that a node that never comes back is an error and no hang.

use std::time::Duration;

use archipelago_runtime::{Clock, SystemClock};

/// The outage of one channel, or none.
#[derive(Debug)]
pub(crate) struct Outage {
    limit: Duration,
    since: Option<Duration>,
    clock: SystemClock,
}

impl Outage {
    /// None yet; requests wait for up to `limit` in each.
    pub(crate) fn new(limit: Duration) -> Outage {
        Outage {
            limit,
            since: None,
            clock: SystemClock,
        }
    }

    /// How long requests wait.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// The channel is away.
    pub(crate) fn begin(&mut self) {
        self.since = Some(self.clock.now());
    }

    /// It is back: for how long it was away.
    pub(crate) fn end(&mut self) -> Duration {
        let since = self.since.take();
        since.map_or(Duration::ZERO, |since| self.clock.now() - since)
    }

    /// For how long requests wait yet. `None`: there is no outage; zero: they wait no more.
    pub(crate) fn left(&self) -> Option<Duration> {
        let waited = self.clock.now() - self.since?;
        Some(self.limit.saturating_sub(waited))
    }

    /// Whether it has lasted for so long that requests fail.
    pub(crate) fn is_over_limit(&self) -> bool {
        self.left() == Some(Duration::ZERO)
    }
}
