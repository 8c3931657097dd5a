//! Verified load on real processes, and `kill -9` of each of them, in both placements.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]
#![expect(
    clippy::print_stdout,
    reason = "how to replay, and why something is skipped"
)]

use anyhow::{Context, Result};
use archipelago_bench::load::Random;
use archipelago_crash_tests::model::Model;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::pattern::SECTOR;
use archipelago_crash_tests::verifier::Verifier;

const SIZE: usize = 64 << 20;
const SECTORS: usize = SIZE / SECTOR;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Daemon,
    Role(&'static str),
}

fn seed() -> u64 {
    let seed = std::env::var("CRASH_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    println!("replay with CRASH_SEED={seed}");
    seed
}

fn kills() -> u64 {
    std::env::var("CRASH_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(8)
}

fn survives_kills(placement: &str, victims: &[Victim]) -> Result<()> {
    let seed = seed();
    let mut random = Random::new(seed);
    let node = Node::start(placement)?;
    let socket = node.create("disk", SIZE)?;
    let mut verifier = Verifier::connect(&socket, Model::new(seed, SECTORS), seed)?;
    for round in 0..kills() {
        verifier.run(random.below(400))?;
        let victim = victims[usize::try_from(random.below(victims.len() as u64))?];
        let pid = match victim {
            Victim::Daemon => node.daemon()?,
            Victim::Role(role) => node.process_of(role)?,
        };
        verifier.run(1 + random.below(100))?;
        Node::kill(pid)?;
        if victim == Victim::Daemon {
            node.call(&["node", "start"])?;
        }
        let endpoint_died =
            placement == "fused" || matches!(victim, Victim::Daemon | Victim::Role("endpoint"));
        if endpoint_died {
            verifier.reconnect()?;
        }
        verifier
            .run(50)
            .and_then(|()| verifier.check_all())
            .with_context(|| {
                format!(
                    "after kill {round} ({victim:?}, {placement}); replay with CRASH_SEED={seed}"
                )
            })?;
    }
    verifier.flush()
}

#[test]
fn fused_survives_kills_of_the_data_process() -> Result<()> {
    survives_kills("fused", &[Victim::Role("endpoint")])
}

#[test]
fn fused_survives_kills_of_the_daemon() -> Result<()> {
    survives_kills("fused", &[Victim::Daemon])
}

#[test]
fn split_survives_kills_of_the_blocker() -> Result<()> {
    survives_kills("split", &[Victim::Role("blocker")])
}

#[test]
fn split_survives_kills_of_the_mapper() -> Result<()> {
    survives_kills("split", &[Victim::Role("mapper")])
}

#[test]
fn split_survives_kills_of_the_endpoint() -> Result<()> {
    survives_kills("split", &[Victim::Role("endpoint")])
}

#[test]
fn split_survives_kills_of_anybody() -> Result<()> {
    let anybody = [
        Victim::Daemon,
        Victim::Role("endpoint"),
        Victim::Role("mapper"),
        Victim::Role("blocker"),
    ];
    survives_kills("split", &anybody)
}

/// Snapshots at rest and under load, clones of them, and what each holds after further writes.
fn snapshots_and_clones_hold(placement: &str) -> Result<()> {
    let seed = seed();
    let node = Node::start(placement)?;
    let socket = node.create("disk", SIZE)?;
    let mut disk = Verifier::connect(&socket, Model::new(seed, SECTORS), seed)?;
    let mut frozen = Vec::new();
    for round in 0..4_u64 {
        disk.run(400)?;
        let at_rest = format!("rest-{round}");
        let model = disk.settled_model()?;
        node.call(&["volume", "snapshot", "disk", &at_rest])?;
        frozen.push((at_rest, model));
        disk.run(100)?;
        disk.open_window();
        let under_load = format!("load-{round}");
        std::thread::scope(|scope| -> Result<()> {
            let (node, name) = (&node, &under_load);
            let asked = scope.spawn(move || node.call(&["volume", "snapshot", "disk", name]));
            while !asked.is_finished() {
                disk.run(20)?;
            }
            asked.join().expect("the command does not panic").map(drop)
        })?;
        disk.drain()?;
        let window = disk.close_window()?;
        // Read through a clone, since only volumes are attached for writing.
        let clone = format!("read-{round}");
        node.call(&["volume", "clone", &under_load, &clone])?;
        let socket = node.attach(&clone)?;
        let mut reader = Verifier::connect(&socket, Model::new(seed, SECTORS), seed)?;
        let model = window.settle(1024, |first, data| reader.read(first, data))?;
        drop(reader);
        frozen.push((under_load, model));
    }
    disk.check_all()?;
    for (index, (name, model)) in frozen.iter().enumerate() {
        let volume = 1000 + index as u64;
        let clone = format!("{name}-clone");
        node.call(&["volume", "clone", name, &clone])?;
        let socket = node.attach(&clone)?;
        let mut clone = Verifier::connect(&socket, model.clone_as(volume), volume)?;
        clone
            .check_all()
            .with_context(|| format!("a fresh clone of {name}"))?;
        clone.run(200)?;
        clone
            .check_all()
            .with_context(|| format!("a clone of {name} after writes"))?;
        clone.flush()?;
    }
    disk.check_all()
        .context("the volume after its clones were written")
}

#[test]
fn fused_snapshots_and_clones_hold() -> Result<()> {
    snapshots_and_clones_hold("fused")
}

#[test]
fn split_snapshots_and_clones_hold() -> Result<()> {
    snapshots_and_clones_hold("split")
}
