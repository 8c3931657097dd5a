//! Random numbers from a seed that is printed, so that a failure can be had again.

use std::time::Duration;

/// Names the seed.
const VARIABLE: &str = "GANETI_SEED";

/// A sequence of them: SplitMix64.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `$GANETI_SEED`, or of a seed of its own; either is printed.
    #[must_use]
    pub fn announced() -> Random {
        let named = std::env::var(VARIABLE).ok();
        let seed = named
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| u64::from(std::process::id()));
        eprintln!("  seed {seed}; again: {VARIABLE}={seed}");
        Random(seed)
    }

    /// Any time before `end`.
    pub fn before(&mut self, end: Duration) -> Duration {
        let end = u64::try_from(end.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.next() % end)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
