//! Two data threads: volumes are spread over them, and what is done to volumes works whichever thread has them.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use archipelago_crash_tests::model::Model;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::pattern::SECTOR;
use archipelago_crash_tests::seed;
use archipelago_crash_tests::verifier::Verifier;

const SIZE: usize = 16 << 20;
const SECTORS: usize = SIZE / SECTOR;

/// The counter `name` of the peers `peer` of all data threads.
fn counters(node: &Node, peer: &str, name: &str) -> Result<Vec<u64>> {
    let status = node.status()?;
    let processes = status["processes"].as_array().context("processes")?;
    let peers = processes.iter().filter_map(|one| one["peers"].as_array());
    let mut found = BTreeMap::new();
    for one in peers.flatten() {
        let title = one["name"].as_str().context("a name")?;
        if title != peer && !title.starts_with(&format!("{peer}@")) {
            continue;
        }
        let counters = one["counters"].as_array().context("counters")?;
        let value = counters.iter().find(|counter| counter[0] == name);
        let value = value.and_then(|counter| counter[1].as_u64());
        found.insert(title.to_owned(), value.context("a number")?);
    }
    Ok(found.into_values().collect())
}

fn checked(node: &Node) -> Result<()> {
    let report = node.call(&["--json", "doctor"])?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    ensure!(report["clean"] == true, "{report}");
    Ok(())
}

/// A volume of `node` under verified load.
fn disk(node: &Node, name: &str, number: u64) -> Result<Verifier> {
    let socket = node.create(name, SIZE)?;
    Verifier::connect(&socket, Model::new(number, SECTORS), number)
}

/// A clone of `source`, which holds what `model` says.
fn clone(node: &Node, source: &str, name: &str, model: &Model, number: u64) -> Result<Verifier> {
    node.call(&["volume", "clone", source, name])?;
    let socket = node.attach(name)?;
    Verifier::connect(&socket, model.clone_as(number), number)
}

#[test]
fn volumes_are_spread_and_snapshots_and_clones_cross_threads() -> Result<()> {
    let seed = seed();
    let node = Node::builder("fused").threads(2).start()?;
    let mut one = disk(&node, "one", seed)?;
    let mut two = disk(&node, "two", seed + 1)?;
    one.run(300)?;
    two.run(300)?;
    ensure!(counters(&node, "volume", "volumes")? == [1, 1], "one each");
    // Both are written through the thread that has them, and no other.
    let written = counters(&node, "blocker-file", "writes")?;
    ensure!(written.iter().all(|writes| *writes > 100), "{written:?}");

    // Snapshots of open volumes, whose clones are spread as well: one of each pair is on another thread than its parent.
    let mut clones = Vec::new();
    for (name, parent, number) in [("one", &mut one, 10), ("two", &mut two, 20)] {
        let model = parent.settled_model()?;
        let snapshot = format!("{name}-frozen");
        node.call(&["volume", "snapshot", name, &snapshot])?;
        parent.run(200)?;
        for index in 0..2 {
            let clone_name = format!("{snapshot}-{index}");
            let mut reader = clone(&node, &snapshot, &clone_name, &model, number + index)?;
            reader.check_all().context("as its parent was")?;
            reader.run(200)?;
            reader.check_all()?;
            clones.push((clone_name, reader));
        }
    }
    ensure!(
        counters(&node, "volume", "volumes")? == [3, 3],
        "three each"
    );
    checked(&node)?;

    // The process dies with all threads, under load, and finds everything again.
    one.open_window();
    one.run(50)?;
    Node::kill(node.process_of("endpoint")?)?;
    for verifier in [&mut one, &mut two] {
        verifier.run(300)?;
        verifier.drain()?;
        verifier.check_all().context("after the kill")?;
    }
    for (name, verifier) in &mut clones {
        verifier.run(100)?;
        verifier.drain()?;
        let checked = verifier.check_all();
        checked.with_context(|| format!("{name} after the kill"))?;
    }

    // What nobody has open: detached, cloned, removed, attached again.
    for (name, mut verifier) in clones {
        verifier.flush()?;
        drop(verifier);
        node.detach(&name)?;
        if name.ends_with('0') {
            node.call(&["volume", "remove", &name])?;
        } else {
            node.call(&["volume", "snapshot", &name, &format!("{name}-at-rest")])?;
            node.call(&["volume", "resize", &name, &(2 * SIZE).to_string()])?;
        }
    }
    checked(&node)?;
    let model = two.settled_model()?;
    two.flush()?;
    drop(two);
    node.detach("two")?;
    let socket = node.attach("two")?;
    let mut two = Verifier::connect(&socket, model.clone_as(seed + 1), seed + 2)?;
    two.check_all().context("attached again")?;

    // A stop gives everything back: another start, with one thread, takes nothing over.
    let model = two.settled_model()?;
    for verifier in [&mut one, &mut two] {
        verifier.drain()?;
        verifier.flush()?;
    }
    let of_one = one.settled_model()?;
    drop((one, two));
    node.call(&["node", "stop"])?;
    node.configure_threads(1)?;
    node.call(&["node", "start"])?;
    for (name, model, number) in [("one", of_one, seed), ("two", model, seed + 1)] {
        let socket = node.attach(name)?;
        let mut verifier = Verifier::connect(&socket, model.clone_as(number), seed + 9)?;
        verifier.check_all().with_context(|| name.to_owned())?;
    }
    checked(&node)
}

/// Bytes that the volume `name` has data for, as its mapper says.
fn mapped(node: &Node, name: &str) -> Result<u64> {
    let info = node.call(&["--json", "volume", "info", name])?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    let mapped = info["usage"]["mapped"].as_u64();
    mapped.with_context(|| format!("{name} is not counted: {info}"))
}

#[test]
fn a_question_gives_a_volume_to_no_thread_and_is_answered_by_the_one_that_has_it() -> Result<()> {
    let seed = seed();
    let node = Node::builder("fused").threads(2).start()?;
    node.call(&["volume", "create", "asked", "--size", &SIZE.to_string()])?;
    ensure!(mapped(&node, "asked")? == 0);
    let mut volumes = Vec::new();
    for (name, number) in [("one", 1), ("two", 2), ("three", 3)] {
        let mut verifier = disk(&node, name, seed + number)?;
        verifier.run(100)?;
        volumes.push((name, verifier));
    }
    let spread = counters(&node, "volume", "volumes")?;
    ensure!(spread == [2, 1], "the first thread comes first: {spread:?}");
    // Open on either thread, and not stored yet.
    for (name, verifier) in &mut volumes {
        verifier.drain()?;
        let before = mapped(&node, name)?;
        ensure!(before > 0, "{name}");
        // What a snapshot shares, only the thread of its volume knows, whichever thread has the snapshot.
        let snapshot = format!("{name}-frozen");
        node.call(&["volume", "snapshot", name, &snapshot])?;
        node.attach(&snapshot)?;
        verifier.run(50)?;
        ensure!(mapped(&node, &snapshot)? == before, "{snapshot}");
    }
    for (name, mut verifier) in volumes {
        verifier.flush()?;
        drop(verifier);
        node.detach(&format!("{name}-frozen"))?;
        let open = mapped(&node, name)?;
        node.detach(name)?;
        ensure!(mapped(&node, name)? == open, "{name} is closed");
    }
    checked(&node)
}

#[test]
fn a_removed_volume_gives_its_space_back_though_another_thread_has_read_it() -> Result<()> {
    let seed = seed();
    let node = Node::builder("fused").threads(2).start()?;
    let mut parent = disk(&node, "parent", seed)?;
    parent.run(200)?;
    let model = parent.settled_model()?;
    node.call(&["volume", "snapshot", "parent", "frozen"])?;
    // On the other thread, which has the parent's files open then.
    let mut reader = clone(&node, "frozen", "reader", &model, seed + 1)?;
    reader.check_all()?;
    drop((parent, reader));
    for name in ["parent", "reader"] {
        node.detach(name)?;
    }
    let pid = node.process_of("endpoint")?;
    for name in ["reader", "frozen", "parent"] {
        node.call(&["volume", "remove", name])?;
    }
    let still_open = || -> Result<usize> {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
        let targets = files
            .flatten()
            .filter_map(|file| file.path().read_link().ok());
        let is_of_pool = |path: &std::path::PathBuf| {
            let path = path.to_string_lossy();
            path.ends_with(" (deleted)") && path.contains("/pool/")
        };
        Ok(targets.filter(is_of_pool).count())
    };
    let left = || "deleted files of the pool stay open".to_owned();
    archipelago_bench::waiting::wait_until(archipelago_crash_tests::node::TIMEOUT, left, || {
        let deleted: u64 = counters(&node, "mapper", "lineages_deleted")?.iter().sum();
        Ok((deleted >= 3 && still_open()? == 0).then_some(()))
    })
}
