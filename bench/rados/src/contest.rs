//! What both sides have in common: a load, and what each server measures of itself.

use std::time::Duration;

use anyhow::Result;
use archipelago_bench::compare::{Case, Sample};
use archipelago_bench::load::{Figures, RW1, Workload};
use archipelago_bench::server::{Server, Usage};

/// Bytes of an object, on both sides.
pub(crate) const OBJECT_LEN: u64 = 4 << 20;

/// The first 4 KiB of each object of a volume, one write at a time, and nothing else.
pub(crate) const FIRST: Workload = Workload {
    name: "first",
    random: false,
    ..RW1
};

/// A server that can be measured.
pub(crate) trait Contestant: Server {
    /// Measures `case` for `time`; [`FIRST`] for as long as it takes.
    ///
    /// # Errors
    /// If the server or the client fails.
    fn measure(&mut self, case: Case, time: Duration, seed: u64) -> Result<Sample>;
}

/// A sample of something short, without its CPU: fio's start would be most of what fio uses.
pub(crate) fn without_cpu(figures: Figures) -> Sample {
    let unknown = Usage::default();
    Sample::new(figures, &unknown, &unknown)
}
