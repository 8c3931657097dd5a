//! Settings of a reactor.

use std::time::Duration;

/// Settings of a reactor.
#[derive(Debug, Clone)]
pub struct Config {
    /// Longest time to poll for work before sleeping. The reactor polls only where polling has paid, and never while requests are many or
    /// large. Polling saves wake-ups and costs CPU time.
    pub poll: Duration,
    /// Requests submitted to the kernel in one call. With a whole batch in one call, the device would be idle while we prepare the batch,
    /// and we would be idle while the device works.
    pub submit_chunk: usize,
    /// Entries of the submission ring: a power of two. More requests wait in memory.
    pub entries: u32,
    /// Longest sleep. Work arrives with wake-ups; this only bounds the delay after a lost wake-up.
    pub sleep_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            poll: Duration::from_micros(20),
            submit_chunk: 8,
            entries: 256,
            sleep_max: Duration::from_secs(1),
        }
    }
}
