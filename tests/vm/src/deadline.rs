//! How long anything may take. Patience is six times what a busy machine of two cores was seen to need.

use std::time::{Duration, Instant};

/// A boot: 3 to 6 s when quiet, 17 s seen at a load of 13.
pub const BOOT: Duration = Duration::from_secs(120);
/// One command on the console.
pub const COMMAND: Duration = Duration::from_secs(240);
/// An answer of QEMU's monitor, or an event that follows at once.
pub const MONITOR: Duration = Duration::from_secs(60);

/// A point in time after which a test gives up.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// `timeout` from now.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "tests with real processes live in real time"
    )]
    pub fn after(timeout: Duration) -> Self {
        Deadline(Instant::now() + timeout)
    }

    /// What is left; `None` when it has passed.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "tests with real processes live in real time"
    )]
    pub fn left(self) -> Option<Duration> {
        self.0
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }
}
