//! `archipelago-bench-null`: volumes whose storage costs nothing, on one data thread and on several.

#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result};
use archipelago_bench::disk::Op;
use archipelago_bench::server::own_program;
use archipelago_bench_null::contest::{Contestant, Load, Waiting, run_all};
use clap::Parser;

/// Compares data threads under the same load, on storage that costs nothing.
#[derive(Debug, Parser)]
struct Options {
    /// Data threads of each node; rates are relative to the first one
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Volumes of each node, each with a client
    #[arg(long, default_value_t = 2)]
    volumes: usize,
    /// Requests in flight, for each volume
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Writes instead of reads
    #[arg(long)]
    write: bool,
    /// How a client waits
    #[arg(long, default_value = "sleep")]
    wait: Waiting,
    /// Rounds: each measures every node
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of one measurement
    #[arg(long, default_value_t = 1000)]
    milliseconds: u64,
    /// Size of the volumes in MiB
    #[arg(long, default_value_t = 1024)]
    size: usize,
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn main() -> Result<()> {
    let options = Options::parse();
    let daemon = own_program("archipelagod-null")?;
    let daemon = daemon.to_str().context("a path in UTF-8")?;
    let start =
        |threads: &usize| Contestant::start(daemon, *threads, options.volumes, options.size << 20);
    let contestants = options.threads.iter().map(start);
    let contestants = contestants.collect::<Result<Vec<_>>>()?;
    for (contestant, threads) in contestants.iter().zip(&options.threads) {
        eprintln!("{threads} threads: process {}", contestant.pid()?);
    }
    let load = Load {
        depth: options.depth,
        op: if options.write { Op::Write } else { Op::Read },
        waiting: options.wait,
        time: Duration::from_millis(options.milliseconds),
    };
    let table = run_all(&contestants, load, options.rounds, &mut |line| {
        eprintln!("{line}");
    })?;
    println!(
        "{} rounds of {} ms, {} volumes of {} MiB, 4 KiB, {} in flight each\n\n{table}",
        options.rounds, options.milliseconds, options.volumes, options.size, options.depth
    );
    Ok(())
}
