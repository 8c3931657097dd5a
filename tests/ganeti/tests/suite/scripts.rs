//! Each script of the provider by itself: run twice, killed in the middle, with wrong parameters, without a node.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_ganeti_tests::cluster::Cluster;
use archipelago_ganeti_tests::footprint::Footprint;
use archipelago_ganeti_tests::random::Random;
use archipelago_ganeti_tests::script::Disk;
use archipelago_ganeti_tests::steps::step;
use archipelago_ganeti_tests::storage::{POOLS, Storage};

/// Kills of each script: as many as fit into seconds.
const ROUNDS: usize = 8;
/// What a script takes that makes or ends a device, and what the others take; some kills come too late on purpose.
const LONG: Duration = Duration::from_millis(70);
const SHORT: Duration = Duration::from_millis(12);
const ACCESSES: [&str; 2] = ["kernelspace", "userspace"];
const MIB: u64 = 1 << 20;

#[test]
fn scripts_twice_killed_and_refused() -> Result<()> {
    let cluster = Cluster::start()?;
    let storage = step(&cluster, "node started, provider installed", || {
        Storage::start(&cluster)
    })?;
    let before = Footprint::of(&storage)?;
    let step_of = |name: &str, does: &mut dyn FnMut() -> Result<()>| step(&cluster, name, does);
    for access in ACCESSES {
        step_of(&format!("every script twice, {access}"), &mut || {
            twice(&storage, access)
        })?;
        step_of("nothing is left", &mut || before.await_again(&storage))?;
    }
    let mut kills = Kills {
        random: Random::announced(),
        hits: 0,
        all: 0,
    };
    for round in 0..ROUNDS {
        let access = ACCESSES[round % 2];
        step_of(
            &format!("every script killed in the middle, {access}, round {round}"),
            &mut || killed(&storage, access, round, &mut kills),
        )?;
    }
    eprintln!(
        "  of {} scripts {} were killed before they ended",
        kills.all, kills.hits
    );
    ensure!(kills.hits > 0, "no script was killed");
    step_of("nothing is left", &mut || before.await_again(&storage))?;
    step_of(
        "wrong parameters are refused in words, nothing is made",
        &mut || wrong(&storage),
    )?;
    step_of("pool= says which pool", &mut || pools(&storage))?;
    step_of("nothing is left", &mut || before.await_again(&storage))?;
    step_of(
        "without a node each script fails, and says how to start it",
        &mut || without_node(&storage),
    )?;
    cluster.stop()
}

/// The scripts in an order in which Ganeti calls them, each of them twice.
fn twice(storage: &Storage<'_>, access: &str) -> Result<()> {
    let disk = Disk::new(storage, "twice.ext.disk0", access);
    disk.call("verify")?;
    disk.call("verify")?;
    let create = disk.with("VOL_SIZE", "64");
    create.call("create")?;
    let said = create.refused("create")?;
    ensure!(said.contains(disk.name()), "what exists is named: {said}");
    let answer = disk.call("attach")?;
    ensure!(disk.call("attach")? == answer, "attach answers differently");
    for exclusive in ["True", "True", "False"] {
        disk.with("VOL_OPEN_EXCLUSIVE", exclusive).call("open")?;
    }
    for instance in ["a.example", "a.example", "b.example"] {
        set_info(&disk, instance)?;
        ensure_label(storage, &disk, instance)?;
    }
    for _ in 0..2 {
        grow(&disk, 96)?;
        ensure_size(storage, &disk, &answer, 96)?;
    }
    let snapshot = disk
        .with("VOL_SNAPSHOT_NAME", "twice.ext.disk0.snap")
        .with("VOL_SNAPSHOT_SIZE", "96");
    snapshot.call("snapshot")?;
    snapshot.refused("snapshot")?;
    let snapshot = Disk::new(storage, "twice.ext.disk0.snap", access);
    let of_snapshot = snapshot.call("attach")?;
    ensure!(
        of_snapshot.starts_with('/'),
        "a backup reads a device: {of_snapshot:?}"
    );
    for action in ["close", "detach", "remove"] {
        disk.call(action)?;
        snapshot.call(action)?;
        if action != "remove" {
            disk.call(action)?;
            snapshot.call(action)?;
        }
    }
    for gone in [&disk, &snapshot] {
        gone.call("remove")?;
        gone.call("detach")?;
        gone.refused("attach")?;
    }
    Ok(())
}

/// Scripts that are killed at random times.
struct Kills {
    random: Random,
    /// Those that had not ended by then.
    hits: usize,
    all: usize,
}

impl Kills {
    /// Kills `action` at a time before `end`: whether it had not ended.
    fn kill(&mut self, disk: &Disk<'_>, action: &str, end: Duration) -> Result<bool> {
        let was_killed = disk.killed(action, self.random.before(end))?;
        self.hits += usize::from(was_killed);
        self.all += 1;
        Ok(was_killed)
    }
}

/// Each script is killed once at a random time, then called again, and all is right.
fn killed(storage: &Storage<'_>, access: &str, round: usize, kills: &mut Kills) -> Result<()> {
    let disk = Disk::new(storage, &format!("killed{round}.ext.disk0"), access);
    let create = disk.with("VOL_SIZE", "64");
    kills.kill(&create, "create", LONG)?;
    // Ganeti takes another name the next time, but for recreate-disks: what the killed one made is whole, and in the way. Its request
    // may still be under way when it is not listed yet.
    let is_there = || anyhow::Ok(storage.volumes()?.iter().any(|name| name == disk.name()));
    let was_there = is_there()?;
    let made = create.output("create")?.status.success();
    ensure!(!(was_there && made), "the same disk was made twice");
    ensure!(
        made || is_there()?,
        "the disk was not made, and is not there"
    );
    kills.kill(&disk, "attach", SHORT)?;
    let answer = disk.call("attach")?;
    let expected = if access == "userspace" { "\nkvm:" } else { "/" };
    ensure!(answer.starts_with(expected), "attach answers {answer:?}");
    ensure_size(storage, &disk, &answer, 64)?;
    let labelled = disk.with("VOL_METADATA", "originstname+a.example");
    kills.kill(&labelled, "setinfo", SHORT)?;
    set_info(&disk, "a.example")?;
    ensure_label(storage, &disk, "a.example")?;
    let grown = disk.with("VOL_SIZE", "64").with("VOL_NEW_SIZE", "96");
    kills.kill(&grown, "grow", SHORT)?;
    grow(&disk, 96)?;
    ensure_size(storage, &disk, &answer, 96)?;
    let name = format!("{}.snap", disk.name());
    let snapshot = disk
        .with("VOL_SNAPSHOT_NAME", &name)
        .with("VOL_SNAPSHOT_SIZE", "96");
    let was_killed = kills.kill(&snapshot, "snapshot", SHORT)?;
    let again = snapshot.output("snapshot")?.status.success();
    ensure!(was_killed || !again, "the same snapshot was made twice");
    let snapshot = Disk::new(storage, &name, access);
    kills.kill(&snapshot, "attach", LONG)?;
    snapshot.call("attach")?;
    for disk in [&snapshot, &disk] {
        kills.kill(disk, "detach", LONG)?;
        disk.call("detach")?;
        kills.kill(disk, "remove", SHORT)?;
        disk.call("remove")?;
        disk.refused("attach")?;
    }
    Ok(())
}

fn set_info(disk: &Disk<'_>, instance: &str) -> Result<()> {
    let metadata = format!("originstname+{instance}");
    disk.with("VOL_METADATA", &metadata)
        .call("setinfo")
        .map(drop)
}

fn grow(disk: &Disk<'_>, mib: u64) -> Result<()> {
    let grown = disk
        .with("VOL_SIZE", "64")
        .with("VOL_NEW_SIZE", &mib.to_string());
    grown.call("grow").map(drop)
}

/// That the volume has so many MiB, and the device of `answer`, if there is one.
fn ensure_size(storage: &Storage<'_>, disk: &Disk<'_>, answer: &str, mib: u64) -> Result<()> {
    let said = storage.ask(&["volume", "info", disk.name()])?;
    ensure!(
        said["size"].as_u64() == Some(mib * MIB),
        "{mib} MiB are expected: {said}"
    );
    let device = answer.lines().next().unwrap_or_default();
    if !device.is_empty() {
        let bytes = storage
            .cluster()
            .run("blockdev", &["--getsize64", device])?;
        ensure!(
            bytes.trim() == (mib * MIB).to_string(),
            "{device} has {bytes} bytes, not {mib} MiB"
        );
    }
    Ok(())
}

/// That the volume says whose disk it is.
fn ensure_label(storage: &Storage<'_>, disk: &Disk<'_>, instance: &str) -> Result<()> {
    let said = storage.ask(&["volume", "info", disk.name()])?;
    ensure!(
        said["labels"].to_string().contains(instance),
        "{instance} is not among the labels: {said}"
    );
    Ok(())
}

fn wrong(storage: &Storage<'_>) -> Result<()> {
    let disk = Disk::new(storage, "wrong.ext.disk0", "kernelspace");
    for (variable, value, named) in [
        ("EXTP_BOGUS", "1", "bogus"),
        ("EXTP_POOL", "none", "none"),
        ("EXTP_ORIGIN", "nothing", "nothing"),
        ("VOL_SIZE", "many", "VOL_SIZE"),
    ] {
        let said = disk
            .with("VOL_SIZE", "64")
            .with(variable, value)
            .refused("create")?;
        ensure!(
            said.contains(named),
            "{variable}={value} is refused without its name: {said}"
        );
    }
    ensure!(storage.volumes()?.is_empty(), "{:?}", storage.volumes()?);
    Ok(())
}

fn pools(storage: &Storage<'_>) -> Result<()> {
    for pool in POOLS {
        let disk = Disk::new(storage, &format!("in-{pool}.ext.disk0"), "userspace")
            .with("EXTP_POOL", pool);
        disk.with("VOL_SIZE", "64").call("create")?;
        let said = storage.ask(&["volume", "info", disk.name()])?;
        ensure!(said["pool"] == pool, "{pool} is expected: {said}");
        disk.call("remove")?;
    }
    Ok(())
}

fn without_node(storage: &Storage<'_>) -> Result<()> {
    let disk = Disk::new(storage, "stopped.ext.disk0", "kernelspace");
    disk.with("VOL_SIZE", "64").call("create")?;
    storage.call(&["node", "stop"])?;
    for (action, variable, value) in [
        ("create", "VOL_SIZE", "64"),
        ("attach", "", ""),
        ("grow", "VOL_NEW_SIZE", "96"),
        ("setinfo", "VOL_METADATA", "originstname+a.example"),
        ("snapshot", "VOL_SNAPSHOT_NAME", "snap"),
        ("open", "VOL_OPEN_EXCLUSIVE", "True"),
        ("close", "", ""),
        ("verify", "", ""),
        ("remove", "", ""),
    ] {
        let asked = if variable.is_empty() {
            disk.clone()
        } else {
            disk.with(variable, value)
        };
        let said = asked
            .refused(action)
            .with_context(|| format!("{action} without a node"))?;
        ensure!(
            said.contains("node start"),
            "{action} does not say how to go on: {said}"
        );
    }
    storage.call(&["node", "start"])?;
    disk.call("attach")?;
    disk.call("remove").map(drop)
}
