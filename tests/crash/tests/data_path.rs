//! What must not happen for each request: what the data thread of a real node does for an owned read and an owned write, in the fused
//! placement, counted by allocations, locks, system calls and log lines.
//!
//! A lock that nobody else holds costs no system call and is not seen here: what is counted are calls of `futex`, which a thread makes that
//! waits for a lock, or wakes whoever waits.

#![expect(
    clippy::tests_outside_test_module,
    clippy::print_stdout,
    reason = "an integration test is all test, and prints what it counts"
)]

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use archipelago_api::layout::Layout;
use archipelago_bench::disk::Disk;
use archipelago_bench::load::{self, RR32, RW32, Workload};
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::skip;
use archipelago_crash_tests::system_calls::SystemCalls;

const COUNTING: &str = env!("CARGO_BIN_EXE_archipelagod-counting");
/// The call that announces an allocation in that program.
const ALLOCATION: &str = "getppid";
const DISK_LEN: usize = 64 << 20;
const FILL_LEN: usize = 1 << 20;
/// Length of a load; a round has as many as its requests take.
const ROUND: Duration = Duration::from_millis(250);
/// Requests of a round at least.
const ROUND_REQUESTS: u64 = 4000;
/// The best of so many rounds counts: beside other processes the thread is woken for less, and what it does for each request, it does in every
/// round.
const ROUNDS: usize = 8;
/// Once a second the thread looks after its sockets. A round of more than a second, on a slow machine, may have so many allocations and locks in
/// each second of it.
const EACH_SECOND: u64 = 2;
/// System calls for a request of 4 KiB at queue depth 32. Untraced they are 0.31 to 0.34; strace slows the thread, so that its guest sleeps more
/// often and is interrupted more often.
const CALLS_MAX: f64 = 0.5;

/// What the data thread did for some requests.
struct Cost {
    requests: u64,
    /// Looks after sockets that every round of this length has.
    looks: u64,
    calls: BTreeMap<String, u64>,
}

impl Cost {
    fn of(&self, call: &str) -> u64 {
        self.calls.get(call).copied().unwrap_or(0)
    }

    /// How often `call` was made beyond what the looks after sockets need.
    fn beyond_looks(&self, call: &str) -> u64 {
        self.of(call).saturating_sub(EACH_SECOND * self.looks)
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn calls_per_request(&self) -> f64 {
        let calls: u64 = self.calls.values().sum();
        (calls - self.of(ALLOCATION)) as f64 / self.requests as f64
    }
}

/// Counts what the data thread of `node` does for a round of `workload`.
#[expect(clippy::disallowed_methods, reason = "measures another process")]
fn round(node: &Node, disk: &mut Disk, workload: Workload, seed: u64) -> Result<Cost> {
    // The thread that hosts the peers is the first one of its process.
    let calls = SystemCalls::of(node.process_of("endpoint")?)?;
    let began = Instant::now();
    let mut requests = 0;
    while requests < ROUND_REQUESTS {
        requests += load::run(disk, workload, ROUND, seed + requests)?.requests;
    }
    // Below a second there are rounds without a look.
    let looks = match began.elapsed().as_secs() {
        0 => 0,
        seconds => seconds + 1,
    };
    let calls = calls.finish()?;
    Ok(Cost {
        requests,
        looks,
        calls,
    })
}

fn check(node: &Node, disk: &mut Disk, workload: Workload) -> Result<()> {
    load::run(disk, workload, ROUND, 1)?;
    let log = || fs::metadata(Layout::new(Some(node.root()))?.log()).map_err(anyhow::Error::from);
    let log_len = log()?.len();
    let mut costs = Vec::with_capacity(ROUNDS);
    for seed in 0..ROUNDS {
        let cost = round(node, disk, workload, 1000 * seed as u64)?;
        let calls_per_request = cost.calls_per_request();
        let (name, requests, calls) = (workload.name, cost.requests, &cost.calls);
        println!("{name}: {calls_per_request:.3} calls for each of {requests} requests: {calls:?}");
        costs.push(cost);
    }
    let name = workload.name;
    let fewest = |call: &str| costs.iter().map(|cost| cost.beyond_looks(call)).min();
    ensure!(fewest(ALLOCATION) == Some(0), "{name}: it allocates");
    ensure!(fewest("futex") == Some(0), "{name}: it waits for locks");
    let calls = costs.iter().map(Cost::calls_per_request);
    let calls = calls.fold(f64::MAX, f64::min);
    ensure!(calls < CALLS_MAX, "{name}: {calls:.3} calls for a request");
    ensure!(log()?.len() == log_len, "{name}: it logs");
    Ok(())
}

#[test]
fn an_owned_read_and_an_owned_write_allocate_nothing_lock_nothing_and_share_their_calls()
-> Result<()> {
    let node = Node::builder("fused").program(COUNTING).start()?;
    let mut disk = Disk::connect(&node.create("disk", DISK_LEN)?, RR32.depth, FILL_LEN)?;
    load::fill(&mut disk, FILL_LEN)?;
    if let Err(error) = SystemCalls::of(node.process_of("endpoint")?).and_then(SystemCalls::finish)
    {
        return skip(&format!("no system calls can be counted: {error:#}"));
    }
    for workload in [RR32, RW32] {
        check(&node, &mut disk, workload)?;
    }
    Ok(())
}
