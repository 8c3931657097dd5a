//! The comparison: all servers under the same load and on the same blocks, by turns in rotating order; medians and spread.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::disk::Disk;
use crate::load::{self, FL1, Figures, R1M, RR1, RR32, RW1, RW32, W1M, Workload};
use crate::server::{Server, Usage, usage_of};

/// Bytes of the largest request.
pub const REQUEST_LEN_MAX: usize = 1 << 20;
/// Requests in flight at most.
pub const DEPTH_MAX: usize = 32;
/// Share of the measured time for which a server that has just started is warmed up. Not on a fresh clone, which
/// would not be fresh any more.
const WARM_UP_SHARE: u32 = 5;
/// Name of the default placement in tables and goals.
const FUSED: &str = "archipelago-fused";

/// What a case is measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// A volume that was written once in full.
    Filled,
    /// A clone made for this measurement.
    FreshClone,
}

/// A row of the tables.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The load.
    pub workload: Workload,
    /// What it runs on.
    pub ground: Ground,
}

/// The rows, in order.
pub const CASES: [Case; 9] = [
    Case::filled(RR1),
    Case::filled(RR32),
    Case::filled(RW1),
    Case::filled(RW32),
    Case::filled(FL1),
    Case::filled(R1M),
    Case::filled(W1M),
    Case::fresh_clone(RW32),
    Case::fresh_clone(FL1),
];

impl Case {
    /// On a volume that was written in full.
    #[must_use]
    pub const fn filled(workload: Workload) -> Case {
        let ground = Ground::Filled;
        Case { workload, ground }
    }

    /// On a fresh clone.
    #[must_use]
    pub const fn fresh_clone(workload: Workload) -> Case {
        let ground = Ground::FreshClone;
        Case { workload, ground }
    }

    /// What the tables call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self.ground {
            Ground::Filled => self.workload.name.to_owned(),
            Ground::FreshClone => format!("{} clone", self.workload.name),
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    figures: Figures,
    cpu_us_per_request: f64,
    rss_kib: u64,
}

impl Sample {
    /// What a client saw, and what its server's processes had used `before` and `after`.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    #[must_use]
    pub fn new(figures: Figures, before: &Usage, after: &Usage) -> Sample {
        let cpu = after.cpu.saturating_sub(before.cpu);
        Sample {
            figures,
            cpu_us_per_request: cpu.as_secs_f64() * 1e6 / figures.requests.max(1) as f64,
            rss_kib: after.rss_kib,
        }
    }
}

/// How a case is measured on a server, with a seed for the places of its requests.
pub type Measure<'a, S> = &'a mut dyn FnMut(&mut S, Case, u64) -> Result<Sample>;

/// All measurements: by case, by server, by round.
#[derive(Debug)]
pub struct Results {
    cases: Vec<Case>,
    servers: Vec<String>,
    samples: Vec<Vec<Vec<Sample>>>,
}

/// Measures `case` for `time` with a client of our own, over vhost-user.
///
/// # Errors
/// If the server fails.
pub fn measure(server: &mut dyn Server, case: Case, time: Duration, seed: u64) -> Result<Sample> {
    let socket = match case.ground {
        Ground::Filled => server.filled()?,
        Ground::FreshClone => server.fresh_clone()?,
    };
    let mut disk = connect(&socket)?;
    let pids = server.pids()?;
    if case.ground == Ground::Filled {
        load::run(&mut disk, case.workload, time / WARM_UP_SHARE, !seed)?;
    }
    let before = usage_of(&pids)?;
    let figures = load::run(&mut disk, case.workload, time, seed)?;
    let after = usage_of(&pids)?;
    drop(disk);
    server.release()?;
    Ok(Sample::new(figures, &before, &after))
}

/// Connects a disk that fits all cases.
///
/// # Errors
/// If the server refuses.
pub fn connect(socket: &Path) -> Result<Disk> {
    Disk::connect(socket, DEPTH_MAX, REQUEST_LEN_MAX)
}

/// Measures every case on every server, `rounds` times, in rotating order.
///
/// # Errors
/// If a server fails.
pub fn run<S: Server + ?Sized>(
    servers: &mut [Box<S>],
    cases: &[Case],
    rounds: usize,
    measure: Measure<'_, S>,
    progress: &mut dyn FnMut(&str),
) -> Result<Results> {
    let mut samples = vec![vec![Vec::with_capacity(rounds); servers.len()]; cases.len()];
    for round in 0..rounds {
        for (row, case) in cases.iter().enumerate() {
            for turn in 0..servers.len() {
                let column = (turn + round + row) % servers.len();
                let server = servers[column].as_mut();
                let seed = (round * cases.len() + row) as u64;
                let sample = measure(server, *case, seed)
                    .with_context(|| format!("{} on {}", case.name(), server.name()))?;
                progress(&format!(
                    "round {} {} {}: {:.0} IOPS, CPU {:.1} us per I/O",
                    round + 1,
                    case.name(),
                    server.name(),
                    sample.figures.iops,
                    sample.cpu_us_per_request
                ));
                samples[row][column].push(sample);
            }
        }
    }
    let servers = servers
        .iter()
        .map(|server| server.name().to_owned())
        .collect();
    Ok(Results {
        cases: cases.to_vec(),
        servers,
        samples,
    })
}

/// Median, lowest and highest.
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

fn spread(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> Spread {
    let values: Vec<f64> = samples.iter().map(of).collect();
    Spread {
        low: values.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0),
        high: values.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0),
        median: median(values),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    // Of an even number the mean of the two in the middle.
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    f64::midpoint(at(low), at(high))
}

fn rate(sample: &Sample) -> f64 {
    sample.figures.iops
}

fn cpu(sample: &Sample) -> f64 {
    sample.cpu_us_per_request
}

impl Results {
    /// The server that ratios are relative to: the last one.
    fn baseline(&self) -> usize {
        self.servers.len() - 1
    }

    /// A server relative to the baseline: median of the rounds' ratios, whose measurements are seconds apart. The machine may
    /// differ from round to round.
    fn ratio(&self, row: usize, column: usize, of: impl Fn(&Sample) -> f64) -> f64 {
        let own = &self.samples[row][column];
        let baseline = &self.samples[row][self.baseline()];
        let pairs = own.iter().zip(baseline);
        median(
            pairs
                .map(|(own, baseline)| of(own) / of(baseline).max(1e-9))
                .collect(),
        )
    }

    /// The table as Markdown: rate and CPU (median, lowest and highest, ratio to the last server), latency.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    #[must_use]
    pub fn table(&self) -> String {
        let baseline = &self.servers[self.baseline()];
        let mut text = format!(
            "| workload | server | IOPS (min..max) | vs {baseline} | p50/p99 us | CPU us per I/O (min..max) | vs {baseline} |\n"
        );
        text.push_str("|---|---|--:|--:|--:|--:|--:|\n");
        for (row, case) in self.cases.iter().enumerate() {
            for (column, server) in self.servers.iter().enumerate() {
                let samples = &self.samples[row][column];
                let (rates, cpus) = (spread(samples, rate), spread(samples, cpu));
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "| {} | {server} | {:.0} ({:.0}..{:.0}) | {:.2} | {:.0}/{:.0} | {:.1} ({:.1}..{:.1}) | {:.2} |",
                    case.name(),
                    rates.median,
                    rates.low,
                    rates.high,
                    self.ratio(row, column, rate),
                    spread(samples, |sample| sample.figures.p50_us).median,
                    spread(samples, |sample| sample.figures.p99_us).median,
                    cpus.median,
                    cpus.low,
                    cpus.high,
                    self.ratio(row, column, cpu),
                );
            }
        }
        text.push('\n');
        for (column, server) in self.servers.iter().enumerate() {
            let of_all_cases = self.samples.iter().flat_map(|row| &row[column]);
            let rss_kib = of_all_cases.map(|sample| sample.rss_kib).max();
            let _ = writeln!(
                text,
                "{server}: {:.1} MiB resident at most, all processes",
                rss_kib.unwrap_or_default() as f64 / 1024.0,
            );
        }
        text
    }

    /// Those of the `goals` of `docs/performance.md` that this run did not reach.
    #[must_use]
    pub fn missed_goals(&self, goals: &dyn Fn(&Case) -> Goals) -> Vec<String> {
        let Some(fused) = self.servers.iter().position(|server| server == FUSED) else {
            return Vec::new();
        };
        let baseline = &self.servers[self.baseline()];
        let mut missed = Vec::new();
        for (row, case) in self.cases.iter().enumerate() {
            let goals = goals(case);
            let rates = self.ratio(row, fused, rate);
            if let Some(goal) = goals.rate_min.filter(|goal| rates < *goal) {
                missed.push(format!(
                    "{}: {rates:.2} of the rate of {baseline}, goal {goal}",
                    case.name()
                ));
            }
            let cpus = self.ratio(row, fused, cpu);
            if let Some(goal) = goals.cpu_max.filter(|goal| cpus > *goal) {
                missed.push(format!(
                    "{}: {cpus:.2} of the CPU per I/O of {baseline}, goal {goal}",
                    case.name()
                ));
            }
        }
        missed
    }
}

/// What is promised for a case, relative to the baseline.
#[derive(Debug, Clone, Copy, Default)]
pub struct Goals {
    /// Lowest rate, as a part of the baseline's.
    pub rate_min: Option<f64>,
    /// Highest CPU per request, as a part of the baseline's.
    pub cpu_max: Option<f64>,
}

/// What is promised over vhost-user, beside qemu-storage-daemon.
#[must_use]
pub fn goals(case: &Case) -> Goals {
    let (rate_min, cpu_max) = match (case.ground, case.workload.name) {
        (Ground::Filled, "rr1" | "rr32" | "rw1" | "rw32") => (Some(1.0), None),
        (Ground::Filled, "w1m") => (Some(0.95), Some(1.0)),
        (Ground::FreshClone, "rw32") => (Some(5.0), None),
        (Ground::FreshClone, "fl1") => (Some(3.0), None),
        _ => (None, None),
    };
    Goals { rate_min, cpu_max }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(iops: f64, cpu_us_per_request: f64) -> Sample {
        let figures = Figures {
            iops,
            p50_us: 1.0,
            p99_us: 2.0,
            p999_us: 3.0,
            requests: 1,
        };
        Sample {
            figures,
            cpu_us_per_request,
            rss_kib: 2048,
        }
    }

    /// Three rounds, in which the machine's speed is 1, 2 and 4.
    fn results(fused: Sample) -> Results {
        let rounds = |of: Sample| {
            let at = |speed: f64| sample(of.figures.iops * speed, of.cpu_us_per_request / speed);
            [1.0, 2.0, 4.0].map(at).to_vec()
        };
        Results {
            cases: vec![Case::filled(W1M)],
            servers: vec![FUSED.to_owned(), "peer".to_owned()],
            samples: vec![vec![rounds(fused), rounds(sample(1000.0, 100.0))]],
        }
    }

    #[test]
    fn goals_are_for_rate_and_cpu() {
        assert!(results(sample(951.0, 99.0)).missed_goals(&goals).is_empty());
        assert_eq!(
            results(sample(940.0, 101.0)).missed_goals(&goals),
            [
                "w1m: 0.94 of the rate of peer, goal 0.95",
                "w1m: 1.01 of the CPU per I/O of peer, goal 1"
            ]
        );
    }

    #[test]
    fn tables_show_medians_with_their_spread_and_the_ratio_of_rounds() {
        let table = results(sample(500.0, 50.0)).table();
        let row = "| w1m | archipelago-fused | 1000 (500..2000) | 0.50 | 1/2 | 25.0 (12.5..50.0) | 0.50 |";
        assert!(table.contains(row), "{table}");
        assert!(table.contains("peer: 2.0 MiB"), "{table}");
    }

    #[test]
    fn a_median_of_two_is_between_them() {
        assert!((median(vec![3.0, 1.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![9.0, 3.0, 1.0]) - 3.0).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }
}
