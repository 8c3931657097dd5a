//! What a hostile front end does to the latency of its neighbour, a volume of the same process.
//!
//! The adversary is a process of its own on the client's CPU, in the lowest scheduling class: the adversary runs whenever the
//! neighbour's client sleeps and never keeps the client from its CPU, so the figures show the server only.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::adversary::Attack;
use crate::compare::connect;
use crate::load::{self, FL1, Figures, RR1, RR32, RW1, Workload};
use crate::server::{Archipelago, Server};

const WORKLOADS: [Workload; 4] = [RR1, RR32, RW1, FL1];
/// The goal: the neighbour's p99 beside the adversary, relative to its p99 alone.
pub const RATIO_MAX: f64 = 2.0;

/// The adversary's process; killed when dropped.
struct Adversary(Child);

impl Adversary {
    fn start(socket: &Path, attack: Attack, cpu: usize) -> Result<Adversary> {
        let attack =
            clap::ValueEnum::to_possible_value(&attack).context("every attack has a name")?;
        let child = Command::new("chrt")
            .args(["--idle", "0", "taskset", "-c", &cpu.to_string()])
            .arg(std::env::current_exe()?)
            .args(["adversary", "--attack", attack.get_name()])
            .arg(socket)
            .stdin(Stdio::null())
            .spawn()
            .context("start the adversary through chrt and taskset")?;
        Ok(Adversary(child))
    }

    /// Fails if the adversary has ended: it ends by itself only when its server does not answer.
    fn check(&mut self) -> Result<()> {
        let ended = self.0.try_wait()?;
        ensure!(ended.is_none(), "the adversary ended: {ended:?}");
        Ok(())
    }
}

impl Drop for Adversary {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn median(figures: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Measures each workload alone and beside each attack, by turns, if `only` accepts the two names; a Markdown table.
///
/// # Errors
/// If a request of the neighbour fails, or the server stops serving the adversary.
pub fn run(
    server: &mut Archipelago,
    only: &dyn Fn(&str) -> bool,
    rounds: usize,
    time: Duration,
    cpu: usize,
    progress: &mut dyn FnMut(&str),
) -> Result<String> {
    let hostile = server.volume(&format!("hostile-{}", server.name()), 64 << 20)?;
    let mut disk = connect(&server.filled()?)?;
    let mut text = format!(
        "| {} | attack | p50/p99 us alone | p50/p99 us beside it | p99 ratio | IOPS ratio |\n|---|---|--:|--:|--:|--:|\n",
        server.name()
    );
    for workload in WORKLOADS {
        for attack in Attack::ALL {
            if !only(&format!("{} {attack:?}", workload.name)) {
                continue;
            }
            let (mut alone, mut beside) = (Vec::new(), Vec::new());
            for round in 0..rounds {
                let seed = round as u64;
                alone.push(load::run(&mut disk, workload, time, seed)?);
                let mut adversary = Adversary::start(&hostile, attack, cpu)?;
                beside.push(load::run(&mut disk, workload, time, seed)?);
                adversary.check()?;
            }
            let p50 = |figures: &[Figures]| median(figures, |figures| figures.p50_us);
            let p99 = |figures: &[Figures]| median(figures, |figures| figures.p99_us);
            let iops = |figures: &[Figures]| median(figures, |figures| figures.iops);
            let ratio = p99(&beside) / p99(&alone).max(1e-9);
            let line = format!(
                "| {} | {attack:?} | {:.0}/{:.0} | {:.0}/{:.0} | {ratio:.2}{} | {:.2} |",
                workload.name,
                p50(&alone),
                p99(&alone),
                p50(&beside),
                p99(&beside),
                if ratio < RATIO_MAX {
                    ""
                } else {
                    " (goal missed)"
                },
                iops(&beside) / iops(&alone).max(1e-9),
            );
            progress(&line);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        }
    }
    Ok(text)
}
