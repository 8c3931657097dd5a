//! `archipelago-bench`: Archipelago in both placements beside `qemu-storage-daemon`, one client, one file system.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use archipelago_bench::adversary::{Attack, attack};
use archipelago_bench::catalogue;
use archipelago_bench::compare::{self, Case, REQUEST_LEN_MAX};
use archipelago_bench::fio;
use archipelago_bench::idle;
use archipelago_bench::load;
use archipelago_bench::neighbour;
use archipelago_bench::server::{Archipelago, Build, Server, Volumes};
use archipelago_bench::transport::Transport;
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
    /// Only workloads whose name contains this; with `neighbour`, the name includes the attack, as in `rr1 Pieces`
    #[arg(long, default_value = "")]
    only: String,
    /// Only servers whose name contains this, also other builds; qemu-storage-daemon is always measured
    #[arg(long, default_value = "")]
    server: String,
    /// Measures another build too, in the fused placement: the programs in a directory, and optionally another setting, or a pool of its own with the
    /// same data for a build whose format of pools differs
    #[arg(long, value_name = "NAME=DIRECTORY[,poll_us=N][,own_pool]", value_parser = Build::parse)]
    also: Vec<Build>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures what a hostile front end does to a volume of the same process
    Neighbour,
    /// Measures what attached idle volumes cost a busy one of the same process
    Idle {
        /// Idle volumes, each with a front end
        #[arg(long, default_value_t = 1000)]
        volumes: usize,
    },
    /// Measures a pool of many volumes: its start, listings, and what making volumes costs a busy one
    Catalogue {
        /// Volumes beside the busy one
        #[arg(long, default_value_t = 100_000)]
        entries: usize,
    },
    /// Compares over NBD, with fio as the client and qemu-nbd as the peer
    Nbd,
    /// Compares files, with fio as the client and the FUSE export of qemu-storage-daemon as the peer; needs root and /dev/fuse
    Fuse,
    /// Runs as that hostile front end until it is killed
    Adversary {
        /// Only this attack; without the option all attacks by turns
        #[arg(long)]
        attack: Option<Attack>,
        /// vhost-user socket of the volume to attack; its data is lost
        socket: PathBuf,
    },
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(Command::Adversary {
        attack: one,
        socket,
    }) = &options.command
    {
        let attacks = one.map_or(Attack::ALL.to_vec(), |one| vec![one]);
        return attack(socket, &attacks, &AtomicBool::new(false), 1).map(drop);
    }
    let mut cpus = CpuSet::new();
    cpus.set(CLIENT_CPU)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("pin the client to its CPU")?;
    std::fs::create_dir_all(&options.dir)?;
    let dir = tempfile::tempdir_in(&options.dir)?;
    let fill = |socket: &Path| load::fill(&mut compare::connect(socket)?, REQUEST_LEN_MAX);
    let time = Duration::from_millis(options.milliseconds);
    let builds: Vec<Build> = ["fused", "split"]
        .into_iter()
        .map(Build::own)
        .chain(options.also.into_iter().map(Ok))
        .filter(|build| !matches!(build, Ok(build) if !build.name.contains(&options.server)))
        .collect::<Result<_>>()?;
    eprintln!("making the volumes");
    let volumes = Volumes::make(dir.path(), &builds, options.size << 20, &fill)?;
    if let Some(Command::Neighbour) = options.command {
        for build in &builds {
            let mut server = Archipelago::new(dir.path(), build)?;
            let mut progress = |line: &str| eprintln!("{line}");
            let only = |name: &str| name.contains(&options.only);
            let rounds = options.rounds;
            let table =
                neighbour::run(&mut server, &only, rounds, time, CLIENT_CPU, &mut progress)?;
            println!("{table}");
            server.release()?;
        }
        return Ok(());
    }
    if let Some(Command::Idle { volumes }) = options.command {
        for build in &builds {
            let mut server = Archipelago::new(dir.path(), build)?;
            let mut progress = |line: &str| eprintln!("{line}");
            let table = idle::run(&mut server, volumes, options.rounds, time, &mut progress)?;
            println!("{table}");
            server.release()?;
        }
        return Ok(());
    }
    if let Some(Command::Catalogue { entries }) = options.command {
        for build in &builds {
            let mut server = Archipelago::new(dir.path(), build)?;
            let mut progress = |line: &str| eprintln!("{line}");
            let table = catalogue::run(&mut server, entries, options.rounds, time, &mut progress)?;
            println!("{table}");
            server.release()?;
        }
        return Ok(());
    }
    let transport = match options.command {
        Some(Command::Nbd) => Transport::Fio(fio::Way::Nbd),
        Some(Command::Fuse) => Transport::Fio(fio::Way::File),
        _ => Transport::VhostUser,
    };
    let mut servers: Vec<Box<dyn Server>> = Vec::new();
    for build in &builds {
        let server = Archipelago::new(dir.path(), build)?;
        servers.push(Box::new(server.attached_by(transport.attach_option())));
    }
    servers.push(transport.peer(dir.path(), &volumes)?);
    let is_wanted = |case: &&Case| case.name().contains(&options.only);
    let cases: Vec<Case> = transport
        .cases()
        .iter()
        .filter(is_wanted)
        .copied()
        .collect();
    let results = compare::run(
        &mut servers,
        &cases,
        options.rounds,
        &mut |server, case, seed| transport.measure(server, case, time, seed),
        &mut |line| eprintln!("{line}"),
    )?;
    println!(
        "{} rounds of {} ms, {} MiB volumes, the same blocks for all, O_DIRECT, one queue; server on CPU 0, client on CPU {CLIENT_CPU}\n\n{}",
        options.rounds,
        options.milliseconds,
        options.size,
        results.table()
    );
    for missed in results.missed_goals(&|case| transport.goals(case)) {
        println!("goal missed: {missed}");
    }
    Ok(())
}
