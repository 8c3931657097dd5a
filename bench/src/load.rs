//! Workloads and their figures.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::disk::{Disk, Op};
use crate::waiting::now;

/// Longest wait for one completion: far beyond any healthy server's.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A pattern of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// What the tables call it.
    pub name: &'static str,
    /// Reads or writes.
    pub op: Op,
    /// Requests in flight.
    pub depth: usize,
    /// Bytes of a request.
    pub len: usize,
    /// Random offsets, or one after the other.
    pub random: bool,
    /// A flush after each write.
    pub flush: bool,
}

const fn random(name: &'static str, op: Op, depth: usize) -> Workload {
    Workload {
        name,
        op,
        depth,
        len: 4096,
        random: true,
        flush: false,
    }
}

/// 4 KiB random reads, one at a time.
pub const RR1: Workload = random("rr1", Op::Read, 1);
/// 4 KiB random reads, 32 in flight.
pub const RR32: Workload = random("rr32", Op::Read, 32);
/// 4 KiB random writes, one at a time.
pub const RW1: Workload = random("rw1", Op::Write, 1);
/// 4 KiB random writes, 32 in flight.
pub const RW32: Workload = random("rw32", Op::Write, 32);
/// 4 KiB random writes, each followed by a flush.
pub const FL1: Workload = Workload {
    flush: true,
    ..random("fl1", Op::Write, 1)
};
/// 1 MiB sequential reads, 8 in flight.
pub const R1M: Workload = Workload {
    len: 1 << 20,
    random: false,
    ..random("r1m", Op::Read, 8)
};
/// 1 MiB sequential writes, 8 in flight.
pub const W1M: Workload = Workload {
    len: 1 << 20,
    random: false,
    ..random("w1m", Op::Write, 8)
};

/// What a run showed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Reads or writes a second; flushes are not counted.
    pub iops: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of latency in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile of latency in microseconds.
    pub p999_us: f64,
    /// Reads or writes done.
    pub requests: u64,
}

/// A small, fast and repeatable stream of numbers (xorshift64*).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    #[expect(
        clippy::should_implement_trait,
        reason = "an endless stream needs no Option"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Writes the whole disk once, so that nothing of it is a hole.
///
/// # Errors
/// If a write fails.
pub fn fill(disk: &mut Disk, len: usize) -> Result<()> {
    let mut random = Random::new(7);
    let data: Vec<u8> = (0..len / 8)
        .flat_map(|_| random.next().to_le_bytes())
        .collect();
    disk.fill(0, &data)?;
    for offset in (0..disk.capacity()).step_by(len) {
        disk.run(Op::Write, offset, len, TIMEOUT)?;
    }
    disk.run(Op::Flush, 0, 0, TIMEOUT)
}

/// Runs `workload` for `time` and returns its figures.
///
/// # Errors
/// If a request fails or none completes for a long time.
pub fn run(disk: &mut Disk, workload: Workload, time: Duration, seed: u64) -> Result<Figures> {
    let places = disk.capacity() / workload.len as u64;
    let mut random = Random::new(seed);
    let mut place = random.below(places);
    let mut next_offset = move || {
        place = if workload.random {
            random.below(places)
        } else {
            (place + 1) % places
        };
        place * workload.len as u64
    };
    let start = now();
    let mut submitted = vec![start; workload.depth];
    let mut flushing = vec![false; workload.depth];
    let mut latencies_ns: Vec<u64> = Vec::with_capacity(1 << 20);
    for slot in 0..workload.depth {
        disk.submit(slot, workload.op, next_offset(), workload.len)?;
    }
    disk.kick()?;
    let mut in_flight = workload.depth;
    let mut end = start;
    while in_flight > 0 {
        let mut progress = false;
        while let Some(done) = disk.next_done() {
            progress = true;
            ensure!(
                done.result == 0,
                "a request of {} failed with {}",
                workload.name,
                done.result
            );
            let time_done = now();
            if workload.flush && !flushing[done.slot] {
                flushing[done.slot] = true;
                disk.submit(done.slot, Op::Flush, 0, 0)?;
                continue;
            }
            flushing[done.slot] = false;
            let latency = time_done.duration_since(submitted[done.slot]);
            latencies_ns.push(u64::try_from(latency.as_nanos())?);
            end = time_done;
            if time_done.duration_since(start) < time {
                submitted[done.slot] = time_done;
                disk.submit(done.slot, workload.op, next_offset(), workload.len)?;
            } else {
                in_flight -= 1;
            }
        }
        if progress {
            disk.kick()?;
        }
        if in_flight > 0 {
            disk.wait(TIMEOUT)?;
        }
    }
    Ok(figures(&mut latencies_ns, end.duration_since(start)))
}

/// The figures of requests with these latencies, done within `time`.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
#[must_use]
pub fn figures(latencies_ns: &mut [u64], time: Duration) -> Figures {
    latencies_ns.sort_unstable();
    let at = |per_mille: usize| {
        let last = latencies_ns.len().saturating_sub(1);
        let index = (latencies_ns.len() * per_mille / 1000).min(last);
        latencies_ns
            .get(index)
            .map_or(0.0, |ns| *ns as f64 / 1000.0)
    };
    Figures {
        iops: latencies_ns.len() as f64 / time.as_secs_f64().max(1e-9),
        p50_us: at(500),
        p99_us: at(990),
        p999_us: at(999),
        requests: latencies_ns.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_medians_and_rates() {
        let mut latencies: Vec<u64> = (1..=1000).map(|us| us * 1000).collect();
        let figures = figures(&mut latencies, Duration::from_secs(2));
        assert!((figures.iops - 500.0).abs() < 1e-6);
        assert!((figures.p50_us - 501.0).abs() < 1e-6);
        assert!((figures.p99_us - 991.0).abs() < 1e-6);
        assert!((figures.p999_us - 1000.0).abs() < 1e-6);
    }
}
