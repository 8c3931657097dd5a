//! The comparison: all servers under the same load, interleaved in rotating order, medians and spread.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::disk::Disk;
use crate::load::{self, FL1, Figures, R1M, RR1, RR32, RW1, RW32, W1M, Workload};
use crate::server::Server;

/// Bytes of the largest request.
pub const REQUEST_LEN_MAX: usize = 1 << 20;
/// Requests in flight at most.
pub const DEPTH_MAX: usize = 32;

/// What is measured on.
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
    Case {
        workload: RR1,
        ground: Ground::Filled,
    },
    Case {
        workload: RR32,
        ground: Ground::Filled,
    },
    Case {
        workload: RW1,
        ground: Ground::Filled,
    },
    Case {
        workload: RW32,
        ground: Ground::Filled,
    },
    Case {
        workload: FL1,
        ground: Ground::Filled,
    },
    Case {
        workload: R1M,
        ground: Ground::Filled,
    },
    Case {
        workload: W1M,
        ground: Ground::Filled,
    },
    Case {
        workload: RW32,
        ground: Ground::FreshClone,
    },
    Case {
        workload: FL1,
        ground: Ground::FreshClone,
    },
];

impl Case {
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
struct Sample {
    figures: Figures,
    cpu_us_per_request: f64,
}

/// All measurements: by case, by server, by round.
#[derive(Debug)]
pub struct Results {
    cases: Vec<Case>,
    servers: Vec<String>,
    samples: Vec<Vec<Vec<Sample>>>,
    rss_kib: Vec<u64>,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn measure(server: &mut dyn Server, case: Case, time: Duration, seed: u64) -> Result<Sample> {
    let socket = match case.ground {
        Ground::Filled => server.filled()?,
        Ground::FreshClone => server.fresh_clone()?,
    };
    let mut disk = connect(&socket)?;
    let before = server.usage()?.cpu;
    let figures = load::run(&mut disk, case.workload, time, seed)?;
    let cpu = server.usage()?.cpu.saturating_sub(before);
    let cpu_us_per_request = cpu.as_secs_f64() * 1e6 / figures.requests.max(1) as f64;
    Ok(Sample {
        figures,
        cpu_us_per_request,
    })
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
pub fn run(
    servers: &mut [Box<dyn Server>],
    cases: &[Case],
    rounds: usize,
    time: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<Results> {
    let mut samples = vec![vec![Vec::with_capacity(rounds); servers.len()]; cases.len()];
    for round in 0..rounds {
        for (row, case) in cases.iter().enumerate() {
            for turn in 0..servers.len() {
                let column = (turn + round + row) % servers.len();
                let server = servers[column].as_mut();
                let seed = (round * cases.len() + row) as u64;
                let sample = measure(server, *case, time, seed)
                    .with_context(|| format!("{} on {}", case.name(), server.name()))?;
                progress(&format!(
                    "round {} {} {}: {:.0} IOPS",
                    round + 1,
                    case.name(),
                    server.name(),
                    sample.figures.iops
                ));
                samples[row][column].push(sample);
            }
        }
    }
    let rss_kib = servers
        .iter()
        .map(|server| server.usage().map(|usage| usage.rss_kib))
        .collect::<Result<_>>()?;
    let servers = servers
        .iter()
        .map(|server| server.name().to_owned())
        .collect();
    Ok(Results {
        cases: cases.to_vec(),
        servers,
        samples,
        rss_kib,
    })
}

fn sorted(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let values = sorted(samples, of);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

impl Results {
    /// Median rate of a server relative to another one's.
    fn ratio(&self, row: usize, column: usize, baseline: usize) -> f64 {
        let rate = |column: usize| median(&self.samples[row][column], |sample| sample.figures.iops);
        rate(column) / rate(baseline).max(1e-9)
    }

    /// The table as Markdown: rate (median, lowest and highest), ratio to the last server, latency, CPU.
    #[must_use]
    pub fn table(&self) -> String {
        let baseline = self.servers.len() - 1;
        let mut text = format!(
            "| workload | server | IOPS (min..max) | vs {} | p50/p99 us | CPU us per I/O |\n",
            self.servers[baseline]
        );
        text.push_str("|---|---|--:|--:|--:|--:|\n");
        for (row, case) in self.cases.iter().enumerate() {
            for (column, server) in self.servers.iter().enumerate() {
                let samples = &self.samples[row][column];
                let rates = sorted(samples, |sample| sample.figures.iops);
                let (low, high) = (
                    rates.first().copied().unwrap_or_default(),
                    rates.last().copied().unwrap_or_default(),
                );
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "| {} | {server} | {:.0} ({low:.0}..{high:.0}) | {:.2} | {:.0}/{:.0} | {:.1} |",
                    case.name(),
                    median(samples, |sample| sample.figures.iops),
                    self.ratio(row, column, baseline),
                    median(samples, |sample| sample.figures.p50_us),
                    median(samples, |sample| sample.figures.p99_us),
                    median(samples, |sample| sample.cpu_us_per_request),
                );
            }
        }
        text.push('\n');
        for (server, rss) in self.servers.iter().zip(&self.rss_kib) {
            let _ = writeln!(
                text,
                "{server}: {:.1} MiB resident at most, all processes",
                *rss as f64 / 1024.0
            );
        }
        text
    }

    /// The goals of `docs/performance.md` that this run did not reach.
    #[must_use]
    pub fn missed_goals(&self) -> Vec<String> {
        let Some(fused) = self
            .servers
            .iter()
            .position(|server| server == "archipelago-fused")
        else {
            return Vec::new();
        };
        let baseline = self.servers.len() - 1;
        let goal = |case: &Case| match (case.ground, case.workload.name) {
            (Ground::Filled, "rr1" | "rr32" | "rw1" | "rw32") => Some(1.0),
            (Ground::FreshClone, "rw32") => Some(5.0),
            (Ground::FreshClone, "fl1") => Some(3.0),
            _ => None,
        };
        let missed = |(row, case): (usize, &Case)| {
            let (goal, ratio) = (goal(case)?, self.ratio(row, fused, baseline));
            (ratio < goal).then(|| {
                format!(
                    "{}: {ratio:.2} of {}, goal {goal}",
                    case.name(),
                    self.servers[baseline]
                )
            })
        };
        self.cases.iter().enumerate().filter_map(missed).collect()
    }
}
