//! What attached idle volumes cost a busy one of the same process: CPU per I/O of the server.
//!
//! Each idle volume has a front end whose ring runs and has done one request. The busy volume is measured before they are
//! attached, beside them, and after their front ends have disconnected.

use std::fmt::{self, Write as _};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::compare::connect;
use crate::disk::{Disk, Op};
use crate::load::{self, RR32};
use crate::server::{Archipelago, Server, usage_of};

/// The goal: CPU per I/O of the busy volume beside the idle ones, relative to without them.
pub const COST_MAX: f64 = 1.05;
const IDLE_LEN: u64 = 1 << 20;
const BLOCK_LEN: usize = 4096;
/// Longest wait for the one request of an idle volume.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Microseconds of CPU that the server takes for one read at queue depth 32, of each round.
struct CpuPerRead(Vec<f64>);

impl CpuPerRead {
    fn measure(
        server: &Archipelago,
        disk: &mut Disk,
        rounds: usize,
        time: Duration,
    ) -> Result<CpuPerRead> {
        ensure!(rounds > 0, "no round is to be measured");
        let mut samples = Vec::with_capacity(rounds);
        for round in 0..rounds {
            let before = usage_of(&server.pids()?)?.cpu;
            let figures = load::run(disk, RR32, time, round as u64)?;
            let cpu = usage_of(&server.pids()?)?.cpu.saturating_sub(before);
            samples.push(cpu.as_secs_f64() * 1e6 / figures.requests.max(1) as f64);
        }
        samples.sort_by(f64::total_cmp);
        Ok(CpuPerRead(samples))
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }
}

impl fmt::Display for CpuPerRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, most] = [self.0[0], self.0[self.0.len() - 1]];
        write!(f, "{:.2} ({least:.2}..{most:.2})", self.median())
    }
}

/// Measures beside `volumes` idle volumes; a Markdown table.
///
/// # Errors
/// If a volume cannot be attached, or a request fails.
pub fn run(
    server: &mut Archipelago,
    volumes: usize,
    rounds: usize,
    time: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<String> {
    let mut disk = connect(&server.filled()?)?;
    let before = CpuPerRead::measure(server, &mut disk, rounds, time)?;
    progress(&format!("{before} us without idle volumes"));
    let mut idle = Vec::with_capacity(volumes);
    for index in 0..volumes {
        let socket = server.volume(&format!("idle-{index}"), IDLE_LEN)?;
        let mut disk = Disk::connect(&socket, 1, BLOCK_LEN)?;
        disk.run(Op::Read, 0, BLOCK_LEN, TIMEOUT)?;
        idle.push(disk);
    }
    let beside = CpuPerRead::measure(server, &mut disk, rounds, time)?;
    progress(&format!("{beside} us beside {volumes} idle volumes"));
    drop(idle);
    let after = CpuPerRead::measure(server, &mut disk, rounds, time)?;
    let ratio = beside.median() / before.median().min(after.median()).max(1e-9);
    let mut text = format!(
        "| {} | us of CPU per read, before | beside {volumes} idle volumes | after | ratio |\n|---|--:|--:|--:|--:|\n",
        server.name()
    );
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "| {} | {before} | {beside} | {after} | {ratio:.2}{} |",
        RR32.name,
        if ratio <= COST_MAX {
            ""
        } else {
            " (goal missed)"
        },
    );
    Ok(text)
}
