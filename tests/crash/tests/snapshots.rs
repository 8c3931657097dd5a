//! Snapshots and clones on real processes under verified load, in both placements.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use anyhow::{Context, Result};
use archipelago_crash_tests::model::Model;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::pattern::SECTOR;
use archipelago_crash_tests::seed;
use archipelago_crash_tests::verifier::Verifier;

const SIZE: usize = 64 << 20;
const SECTORS: usize = SIZE / SECTOR;

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
