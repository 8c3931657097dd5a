//! What requests cost, by count: what reached the backend of a real node, never how long it took.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::disk::{Disk, Op};
use archipelago_crash_tests::node::Node;

const BLOCK: usize = 4096;
/// Longest wait for a completion.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Depth of the chain of clones.
const DEPTH: usize = 100;

type Figures = BTreeMap<String, u64>;

/// The figures of peer `peer`.
fn figures(node: &Node, peer: &str) -> Result<Figures> {
    let status = node.status()?;
    let processes = status["processes"].as_array().context("processes")?;
    let found = processes
        .iter()
        .filter_map(|process| process["peers"].as_array())
        .flatten()
        .find(|known| known["name"] == peer)
        .with_context(|| format!("no peer {peer}: {status}"))?;
    let counters = found["counters"].as_array().context("counters")?;
    counters
        .iter()
        .map(|counter| {
            let name = counter[0].as_str().context("a name")?.to_owned();
            Ok((name, counter[1].as_u64().context("a value")?))
        })
        .collect()
}

/// What `action` added to the figures of the blocker and of the mapper. Figures that did not change are left out.
fn cost(node: &Node, action: impl FnOnce() -> Result<()>) -> Result<(Figures, Figures)> {
    let before = [figures(node, "blocker-file")?, figures(node, "mapper")?];
    action()?;
    let after = [figures(node, "blocker-file")?, figures(node, "mapper")?];
    let [blocker, mapper] = [0, 1].map(|peer| {
        after[peer]
            .iter()
            .map(|(name, value)| (name.clone(), value - before[peer][name]))
            .filter(|(_, added)| *added != 0)
            .collect()
    });
    Ok((blocker, mapper))
}

/// Sees that `figures` are those named, leaving aside what is about files rather than requests.
#[track_caller]
fn expect(what: &str, figures: &Figures, expected: &[(&str, u64)]) {
    let seen: Vec<(&str, u64)> = figures
        .iter()
        .filter(|(name, _)| !["opens", "creations", "bounces"].contains(&name.as_str()))
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    assert_eq!(seen, expected, "{what}");
}

/// One write of a block, and nothing else.
const ONE_WRITE: [(&str, u64); 3] = [
    ("requests", 1),
    ("writes", 1),
    ("written_bytes", BLOCK as u64),
];

fn connect(node: &Node, name: &str) -> Result<Disk> {
    Disk::connect(&node.attach(name)?, 1, BLOCK)
}

fn writes_and_flushes(placement: &str) -> Result<()> {
    let node = Node::start(placement)?;
    node.call(&["volume", "create", "disk", "--size", "1G"])?;
    let mut disk = connect(&node, "disk")?;
    disk.fill(0, &[7; BLOCK])?;
    let write = |disk: &mut Disk| disk.run(Op::Write, 0, BLOCK, TIMEOUT);
    let flush = |disk: &mut Disk| disk.run(Op::Flush, 0, 0, TIMEOUT);
    write(&mut disk)?;
    let (blocker, _) = cost(&node, || flush(&mut disk))?;
    // The log is opened by its first append.
    let one_append = [
        ("handle_requests", 1),
        ("requests", 1),
        ("writes", 1),
        ("written_bytes", 2 * BLOCK as u64),
    ];
    expect("a flush of a first write", &blocker, &one_append);
    // The first ordinary flush after it says that the block is home.
    write(&mut disk)?;
    flush(&mut disk)?;

    let (blocker, mapper) = cost(&node, || write(&mut disk))?;
    expect("a write to an owned block", &blocker, &ONE_WRITE);
    ensure!(!mapper.contains_key("object_requests"), "{mapper:?}");
    ensure!(!mapper.contains_key("presence_records"), "{mapper:?}");

    let (blocker, mapper) = cost(&node, || flush(&mut disk))?;
    let nothing_new = [("file_syncs", 1), ("requests", 1), ("syncs", 1)];
    expect("a flush with nothing new", &blocker, &nothing_new);
    ensure!(!mapper.contains_key("object_requests"), "{mapper:?}");

    node.call(&["volume", "snapshot", "disk", "before"])?;
    let (blocker, mapper) = cost(&node, || write(&mut disk))?;
    // A snapshot begins an epoch, whose object is opened by its first write.
    let first_write = [&[("handle_requests", 1)], &ONE_WRITE[..]].concat();
    expect("the first write after a snapshot", &blocker, &first_write);
    ensure!(!mapper.contains_key("object_requests"), "{mapper:?}");
    ensure!(mapper.get("presence_records") == Some(&1), "{mapper:?}");

    let (blocker, mapper) = cost(&node, || write(&mut disk))?;
    expect("the next write to that block", &blocker, &ONE_WRITE);
    ensure!(!mapper.contains_key("presence_records"), "{mapper:?}");
    ensure!(!mapper.contains_key("object_requests"), "{mapper:?}");
    Ok(())
}

#[test]
fn fused_writes_cost_what_is_promised() -> Result<()> {
    writes_and_flushes("fused")
}

#[test]
fn split_writes_cost_what_is_promised() -> Result<()> {
    writes_and_flushes("split")
}

/// What reading block `block` of `disk` costs the blocker.
fn read_cost(node: &Node, disk: &mut Disk, block: usize) -> Result<Figures> {
    let read = || disk.run(Op::Read, (block * BLOCK) as u64, BLOCK, TIMEOUT);
    cost(node, read).map(|(blocker, _)| blocker)
}

#[test]
fn a_clone_100_deep_is_read_as_the_first() -> Result<()> {
    let node = Node::start("fused")?;
    node.call(&["volume", "create", "clone-0", "--size", "64M"])?;
    for depth in 0..DEPTH {
        let (name, frozen) = (format!("clone-{depth}"), format!("frozen-{depth}"));
        // Something of its own on each level.
        let mut disk = connect(&node, &name)?;
        disk.fill(0, &[1 + u8::try_from(depth)?; BLOCK])?;
        disk.run(Op::Write, (depth * BLOCK) as u64, BLOCK, TIMEOUT)?;
        disk.run(Op::Flush, 0, 0, TIMEOUT)?;
        drop(disk);
        node.detach(&name)?;
        node.call(&["volume", "snapshot", &name, &frozen])?;
        node.call(&["volume", "clone", &frozen, &format!("clone-{}", depth + 1)])?;
    }
    let one_read = [("read_bytes", BLOCK as u64), ("reads", 1), ("requests", 1)];
    // The data of a level is opened by the first read of it.
    let first_read = [&[("handle_requests", 1)], &one_read[..]].concat();
    for name in ["clone-1", &format!("clone-{DEPTH}")] {
        let mut disk = connect(&node, name)?;
        let levels = if name == "clone-1" { 1 } else { DEPTH };
        // Its map page comes into memory.
        disk.run(Op::Read, 0, BLOCK, TIMEOUT)?;
        let blocks = BTreeSet::from([0, levels / 2, levels - 1]);
        for (index, block) in blocks.into_iter().enumerate() {
            let first = if index == 0 {
                &one_read[..]
            } else {
                &first_read
            };
            expect(name, &read_cost(&node, &mut disk, block)?, first);
            expect(name, &read_cost(&node, &mut disk, block)?, &one_read);
            let mut data = [0; BLOCK];
            disk.take(0, &mut data)?;
            ensure!(
                data == [1 + u8::try_from(block)?; BLOCK],
                "{name}: block {block}"
            );
        }
    }
    Ok(())
}

#[test]
fn names_cost_the_same_at_any_size() -> Result<()> {
    let node = Node::start("fused")?;
    let costs = |size: &str| -> Result<[Figures; 3]> {
        let [volume, frozen, clone] =
            ["volume", "frozen", "clone"].map(|name| format!("{name}-{size}"));
        let commands: [&[&str]; 3] = [
            &["volume", "create", &volume, "--size", size],
            &["volume", "snapshot", &volume, &frozen],
            &["volume", "clone", &frozen, &clone],
        ];
        let mut figures = Vec::new();
        for command in commands {
            figures.push(cost(&node, || node.call(command).map(drop))?.0);
        }
        figures.try_into().ok().context("three commands")
    };
    // The first change of a pool may create files.
    costs("1M")?;
    let (small, large) = (costs("1G")?, costs("10T")?);
    ensure!(small == large, "1G: {small:?}\n10T: {large:?}");
    // A snapshot of a volume that was never opened looks for its head, then for its log: neither must have been lost.
    for (figures, (what, most)) in small
        .iter()
        .zip([("create", 2), ("snapshot", 3), ("clone", 2)])
    {
        // What is opened for it is its own: a handle at most for each request.
        let handles = figures.get("handle_requests").copied().unwrap_or(0);
        ensure!(
            figures["requests"] <= most && handles < most,
            "{what}: {figures:?}"
        );
    }
    Ok(())
}
