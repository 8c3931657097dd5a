//! `archipelago-bench-rados`: volumes of a pool on RADOS beside RBD, on one throw-away cluster, in one run.
//!
//! * [`contest`]: what both sides have in common. [`own`]: a node of ours; [`rbd`]: fio's engine `rbd`, with its cache on and off.
//! * [`commands`]: create, snapshot, clone, remove, over connections that are kept open.
//!
//! One design decision: the cluster's daemons have one CPU, and all that a guest's host would run has the other one: fio with librbd in
//! it, or our client with the processes of a node. So a rate shows what one core of a host reaches, and CPU per I/O is the host's.

mod commands;
mod contest;
mod own;
mod rbd;

use std::time::Duration;

use anyhow::{Context, Result};
use archipelago_bench::compare::{self, Case, Goals, Ground};
use archipelago_bench::load::{FL1, R1M, RR1, RR32, RW1, RW32, W1M};
use archipelago_ceph::{CephCluster, ClusterOptions, Store};
use clap::{Parser, ValueEnum};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::contest::{Contestant, FIRST};
use crate::own::Own;
use crate::rbd::{Images, Rbd};

/// CPU of the cluster's daemons.
const CLUSTER_CPU: usize = 0;
/// CPU of clients, and of a node.
const CLIENT_CPU: usize = 1;

/// Compares volumes on RADOS with RBD images under the same load.
#[derive(Debug, Parser)]
struct Options {
    /// OSDs of the cluster, and copies of what it stores
    #[arg(long, default_value_t = 1)]
    osds: u32,
    /// What the OSDs store on
    #[arg(long, default_value = "memory")]
    store: StoreName,
    /// Rounds: each measures every workload on every server
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of one measurement
    #[arg(long, default_value_t = 2000)]
    milliseconds: u64,
    /// Size of the volumes in MiB
    #[arg(long, default_value_t = 512)]
    size: u64,
    /// How long an idle thread of the node polls before it sleeps, in microseconds; without it, what a new node has
    #[arg(long)]
    poll_us: Option<u32>,
    /// Only workloads whose name contains one of these, separated by commas; `commands` is the last one
    #[arg(long, default_value = "", value_delimiter = ',')]
    only: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StoreName {
    /// Memory of the OSDs' processes.
    Memory,
    /// BlueStore on files in shared memory.
    Blue,
}

/// The rows, in order.
const CASES: [Case; 8] = [
    Case::filled(RR1),
    Case::filled(RR32),
    Case::filled(RW1),
    Case::filled(RW32),
    Case::filled(R1M),
    Case::filled(W1M),
    Case::fresh_clone(FL1),
    Case::fresh_clone(FIRST),
];

/// What is promised beside RBD without its cache.
fn goals(case: &Case) -> Goals {
    let (rate_min, cpu_max) = match (case.ground, case.workload.name) {
        (Ground::Filled, _) => (Some(1.0), Some(0.8)),
        (Ground::FreshClone, "first") => (Some(10.0), None),
        (Ground::FreshClone, _) => (Some(1.0), None),
    };
    Goals { rate_min, cpu_max }
}

fn run_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("run on CPU {cpu}"))
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn main() -> Result<()> {
    let options = Options::parse();
    run_on(CLUSTER_CPU)?;
    let ceph = CephCluster::start(ClusterOptions {
        osds: options.osds,
        store: match options.store {
            StoreName::Memory => Store::Memory,
            StoreName::Blue => Store::Blue,
        },
        keys: false,
    });
    for pool in [own::POOL, rbd::POOL] {
        ceph.create_pool(pool, options.osds);
    }
    run_on(CLIENT_CPU)?;
    eprintln!("filling the volumes");
    let time = Duration::from_millis(options.milliseconds);
    let own = Own::start(&ceph, options.size << 20, options.poll_us)?;
    let images = Images::make(&ceph, options.size << 20)?;
    let is_wanted = |name: &str| options.only.iter().any(|only| name.contains(only.as_str()));
    if is_wanted("commands") {
        let table = commands::run(&own, &images, options.rounds)?;
        println!("{} rounds\n\n{table}", options.rounds);
    }
    let cases: Vec<Case> = CASES
        .into_iter()
        .filter(|case| is_wanted(&case.name()))
        .collect();
    if cases.is_empty() {
        return Ok(());
    }
    let mut contestants: Vec<Box<dyn Contestant>> = vec![
        Box::new(own),
        Box::new(Rbd::new(&images, "rbd-cached", true)?),
        Box::new(Rbd::new(&images, "rbd", false)?),
    ];
    let results = compare::run(
        &mut contestants,
        &cases,
        options.rounds,
        &mut |contestant, case, seed| contestant.measure(case, time, seed),
        &mut |line| eprintln!("{line}"),
    )?;
    println!(
        "{} rounds of {} ms, {} MiB volumes, {} OSDs ({:?}) with as many copies on CPU {CLUSTER_CPU}, all of the client side on CPU {CLIENT_CPU}\n\n{}",
        options.rounds,
        options.milliseconds,
        options.size,
        options.osds,
        options.store,
        results.table()
    );
    for missed in results.missed_goals(&goals) {
        println!("goal missed: {missed}");
    }
    Ok(())
}
