//! Settings of a reactor.

use std::time::Duration;

/// Settings of a reactor.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long to poll for work before sleeping, at most: where that has paid, and never while requests are many or large.
    /// Saves wake-ups, and costs CPU.
    pub poll: Duration,
    /// Requests handed to the kernel at once. A whole batch in one call makes the device and us take turns.
    pub submit_chunk: usize,
    /// Entries of the submission ring: a power of two. More requests wait in memory.
    pub entries: u32,
    /// Longest sleep. Work arrives by wake-ups; this only bounds what a lost one costs.
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
