//! SIGKILL, and SIGSTOP with SIGCONT, of every process under verified load, with requests done late and out of order, in
//! both placements.
//!
//! | variable | says |
//! |---|---|
//! | `CRASH_SEED` | which sequence; the seed of a failure is printed |
//! | `CRASH_KILLS` | signals in all, shared by the placements |

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]
#![expect(clippy::print_stdout, reason = "figures, and how to replay")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::disk::Op;
use archipelago_bench::load::Random;
use archipelago_crash_tests::disk::{Disk, InFlight, Waited};
use archipelago_crash_tests::fault::{FUSED, Fault, SPLIT, Victim};
use archipelago_crash_tests::loaded_volumes::LoadedVolumes;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::verifier::Load;
use archipelago_crash_tests::{seed, skip};

/// The daemon with a delaying backend.
const DELAYING: &str = env!("CARGO_BIN_EXE_archipelagod-delaying");
/// Longest delay before a request and before its reply: far longer than a request takes, far shorter than a restart.
const DELAY_MS: u64 = 20;
const VOLUMES: usize = 4;
/// Small, so that what is written is soon written again: a request done twice or too late is then seen.
const SIZE: usize = 8 << 20;
const LOAD: Load = Load {
    depth: 32,
    sectors_max: 256,
    in_flight: InFlight::Tracked,
    timeout: Duration::from_secs(60),
    rest: Duration::ZERO,
};
/// Each volume has done this many after a kill when it counts as served again: more than were in flight.
const SERVED: u64 = 64;
/// How long a front end without the region waits for what will never come.
const FORGOTTEN_TIMEOUT: Duration = Duration::from_secs(3);
const BLOCK: usize = 4096;
/// Signals when nobody says how many.
const KILLS: u64 = 200;

/// Gaps in service by kind of fault.
#[derive(Debug, Default)]
struct Gaps(BTreeMap<String, Vec<Duration>>);

impl Gaps {
    fn note(&mut self, fault: Fault, gap: Duration) {
        self.0.entry(fault.name()).or_default().push(gap);
    }

    fn print(mut self, what: &str) {
        println!("{what}: gap in service, ms");
        println!("  {:<20} {:>5} {:>7} {:>7}", "", "times", "median", "worst");
        for (name, gaps) in &mut self.0 {
            gaps.sort_unstable();
            let worst = gaps.last().copied().unwrap_or_default();
            println!(
                "  {name:<20} {:>5} {:>7} {:>7}",
                gaps.len(),
                gaps[gaps.len() / 2].as_millis(),
                worst.as_millis()
            );
        }
    }
}

fn kills() -> u64 {
    std::env::var("CRASH_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(KILLS)
}

fn survives(placement: &str, endpoint: Option<&str>, victims: &[Victim], kills: u64) -> Result<()> {
    let mut builder = Node::builder(placement).delaying(DELAYING, DELAY_MS);
    if let Some(section) = endpoint {
        builder = builder.endpoint(section);
    }
    node_survives(&builder.start()?, placement, victims, kills)
}

fn node_survives(node: &Node, placement: &str, victims: &[Victim], kills: u64) -> Result<()> {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut volumes = LoadedVolumes::start(node, VOLUMES, SIZE, LOAD, seed)?;
    let (mut signals, mut gaps) = (0, Gaps::default());
    while signals < kills {
        volumes.run(random.below(1000))?;
        let fault = Fault::draw(&mut random, victims);
        let pause = Duration::from_millis(random.below(200));
        signals += fault.signals();
        volumes.begin();
        let gap = fault
            .inject(node, pause)
            .and_then(|()| volumes.served(SERVED))
            .with_context(|| {
                format!("{fault:?}, signal {signals} of {placement}; replay with CRASH_SEED={seed}")
            })?;
        gaps.note(fault, gap);
    }
    let done = volumes.done();
    volumes
        .finish()
        .with_context(|| format!("at the end of {placement}; replay with CRASH_SEED={seed}"))?;
    gaps.print(&format!(
        "{placement}, {signals} signals, {done} requests verified"
    ));
    Ok(())
}

#[test]
fn fused_survives_kills_of_anybody() -> Result<()> {
    survives("fused", None, FUSED, kills() * 3 / 10)
}

/// Two volumes on each of two data threads.
#[test]
fn two_data_threads_survive_kills_of_anybody() -> Result<()> {
    let node = Node::builder("fused")
        .threads(2)
        .delaying(DELAYING, DELAY_MS);
    node_survives(&node.start()?, "two data threads", FUSED, kills() * 3 / 10)
}

#[test]
fn split_survives_kills_of_anybody() -> Result<()> {
    survives("split", None, SPLIT, kills() * 4 / 10)
}

/// The same with an endpoint whose user is not the daemon's: which processes die with the daemon, and which connect to which
/// again, depends on users.
#[test]
fn split_survives_kills_of_anybody_with_a_user_for_the_endpoint() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return skip("another user's process takes root to start");
    }
    survives("split", Some("user = 64001"), SPLIT, kills() * 3 / 10)
}

/// What saves the requests of the tests above: the same, but for a front end that keeps no in-flight region.
#[test]
fn the_same_without_the_in_flight_region_fails() -> Result<()> {
    let seed = seed();
    let mut random = Random::new(seed);
    let load = Load {
        in_flight: InFlight::Forgotten,
        timeout: FORGOTTEN_TIMEOUT,
        ..LOAD
    };
    let node = Node::builder("fused")
        .delaying(DELAYING, DELAY_MS)
        .start()?;
    let mut volumes = LoadedVolumes::start(&node, VOLUMES, SIZE, load, seed)?;
    for kill in 1..=20 {
        volumes.run(random.below(1000))?;
        let victim = Victim::Role("endpoint");
        victim.kill(&node, victim.pid(&node)?)?;
        if let Err(error) = volumes.served(SERVED) {
            let error = format!("{error:#}");
            println!("after kill {kill} without the region: {error}");
            // The ring breaks when the device finds a request offered that it is doing already.
            let signs = [
                "completed twice",
                "not done within",
                "nothing was completed",
                "the ring is broken",
                "holds write",
            ];
            let seen = signs.iter().any(|sign| error.contains(sign));
            ensure!(seen, "another failure: {error}");
            return Ok(());
        }
    }
    bail!("20 kills did no harm without the region, so the kills with it prove nothing")
}

/// What became of requests that a kill met.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Fate {
    /// Not done by the dead server.
    met: usize,
    lost: usize,
    doubled: usize,
}

/// Writes that are offered once, a kill when some of them are done, and what comes back of the rest.
fn fate_of_requests(node: &Node, socket: &Path, in_flight: InFlight) -> Result<Fate> {
    let timeout = Duration::from_secs(60);
    let mut disk = Disk::connect(socket, LOAD.depth, BLOCK, in_flight, timeout)?;
    let mut times = vec![0; LOAD.depth];
    let data_process = node.process_of("endpoint")?;
    for slot in 0..LOAD.depth {
        disk.submit(slot, Op::Write, (slot * BLOCK) as u64, BLOCK)?;
    }
    disk.kick()?;
    while times.iter().sum::<usize>() < LOAD.depth / 2 {
        match disk.next_done()? {
            Some(done) => times[done.slot] += 1,
            None => ensure!(
                disk.wait(timeout)? == Waited::Rung,
                "who killed the server?"
            ),
        }
    }
    Node::kill(data_process)?;
    let mut fate = Fate::default();
    loop {
        match disk.next_done()? {
            Some(done) => times[done.slot] += 1,
            None => match disk.wait(FORGOTTEN_TIMEOUT) {
                Ok(Waited::Rung) => {}
                Ok(Waited::Disconnected) => {
                    fate.met = times.iter().filter(|times| **times == 0).count();
                    disk.reconnect(timeout)?;
                }
                // Nothing more comes, or the ring is broken.
                Ok(Waited::Nothing) | Err(_) => break,
            },
        }
    }
    fate.lost = times.iter().filter(|times| **times == 0).count();
    fate.doubled = times.iter().filter(|times| **times > 1).count();
    Ok(fate)
}

#[test]
fn the_in_flight_region_is_what_keeps_requests() -> Result<()> {
    let node = Node::builder("fused")
        .delaying(DELAYING, DELAY_MS)
        .start()?;
    let socket = node.create("disk", SIZE)?;
    for in_flight in [InFlight::Tracked, InFlight::Forgotten] {
        let mut sum = Fate::default();
        for _kill in 0..4 {
            let fate = fate_of_requests(&node, &socket, in_flight)?;
            sum.met += fate.met;
            sum.lost += fate.lost;
            sum.doubled += fate.doubled;
        }
        println!("{in_flight:?}: {sum:?}");
        ensure!(sum.met > 0, "no kill met a request in flight");
        match in_flight {
            InFlight::Tracked => ensure!(sum.lost == 0 && sum.doubled == 0, "with the region"),
            InFlight::Forgotten => ensure!(sum.lost > 0 && sum.doubled > 0, "without the region"),
        }
    }
    Ok(())
}
