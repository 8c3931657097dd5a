//! `archipelago-bench`: Archipelago in both placements beside `qemu-storage-daemon`, one client, one file system.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use archipelago_bench::compare::{self, CASES, Case, REQUEST_LEN_MAX};
use archipelago_bench::hostile::{Torment, torment};
use archipelago_bench::load;
use archipelago_bench::neighbour;
use archipelago_bench::server::{Archipelago, QemuStorageDaemon, Server};
use clap::{Parser, Subcommand};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// CPU of the client.
const CLIENT_CPU: usize = 1;

/// Compares Archipelago with qemu-storage-daemon under the same load.
#[derive(Debug, Parser)]
struct Options {
    /// Directory for all data, on the file system to be measured
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// Rounds: each measures every workload on every server
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of one measurement
    #[arg(long, default_value_t = 700)]
    milliseconds: u64,
    /// Size of the volumes in MiB
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// Only workloads whose name contains this; of a neighbour, as in `rr1 Pieces`, of the torment too
    #[arg(long, default_value = "")]
    only: String,
    /// Only servers whose name contains this; qemu-storage-daemon always takes part
    #[arg(long, default_value = "")]
    server: String,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures what a hostile front end does to a volume of the same process
    Neighbour,
    /// Is that hostile front end, until it is killed
    Torment {
        /// Only in this way; without it in all of them by turns
        #[arg(long)]
        way: Option<Torment>,
        /// vhost-user socket of a volume that may be harmed
        socket: PathBuf,
    },
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(Command::Torment { way, socket }) = &options.command {
        let ways = way.map_or(Torment::ALL.to_vec(), |way| vec![way]);
        return torment(socket, &ways, &AtomicBool::new(false), 1).map(drop);
    }
    let mut cpus = CpuSet::new();
    cpus.set(CLIENT_CPU)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("pin the client to its CPU")?;
    std::fs::create_dir_all(&options.dir)?;
    let dir = tempfile::tempdir_in(&options.dir)?;
    let size = options.size << 20;
    let fill = |socket: &Path| load::fill(&mut compare::connect(socket)?, REQUEST_LEN_MAX);
    let time = Duration::from_millis(options.milliseconds);
    if let Some(Command::Neighbour) = options.command {
        for placement in ["fused", "split"] {
            if placement.contains(&options.server) {
                let mut server = Archipelago::start(dir.path(), placement, size, &fill)?;
                let mut progress = |line: &str| eprintln!("{line}");
                let only = |name: &str| name.contains(&options.only);
                let table = neighbour::run(
                    &mut server,
                    &only,
                    options.rounds,
                    time,
                    CLIENT_CPU,
                    &mut progress,
                )?;
                println!("{table}");
            }
        }
        return Ok(());
    }
    let mut servers: Vec<Box<dyn Server>> = Vec::new();
    for placement in ["fused", "split"]
        .into_iter()
        .filter(|name| name.contains(&options.server))
    {
        eprintln!("starting archipelago, {placement}");
        servers.push(Box::new(Archipelago::start(
            dir.path(),
            placement,
            size,
            &fill,
        )?));
    }
    eprintln!("starting qemu-storage-daemon");
    servers.push(Box::new(QemuStorageDaemon::start(dir.path(), size, &fill)?));
    let cases: Vec<Case> = CASES
        .into_iter()
        .filter(|case| case.name().contains(&options.only))
        .collect();
    let results = compare::run(&mut servers, &cases, options.rounds, time, &mut |line| {
        eprintln!("{line}");
    })?;
    println!(
        "{} rounds of {} ms, {} MiB volumes, O_DIRECT, one queue; server on CPU 0, client on CPU {CLIENT_CPU}\n\n{}",
        options.rounds,
        options.milliseconds,
        options.size,
        results.table()
    );
    for missed in results.missed_goals() {
        println!("goal missed: {missed}");
    }
    Ok(())
}
