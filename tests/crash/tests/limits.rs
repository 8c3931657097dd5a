//! File descriptors and the run directory run out: attach refuses by number; running volumes wait, and continue by themselves.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::disk::Op;
use archipelago_bench::program::stdout_of;
use archipelago_bench::server::own_program;
use archipelago_bench::waiting::now;
use archipelago_crash_tests::disk::{Disk, InFlight};
use archipelago_crash_tests::loaded_volumes::LoadedVolumes;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::verifier::Load;
use archipelago_crash_tests::{seed, skip};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::Pid;
use serde_json::Value;

const GIB: usize = 1 << 30;
/// How long anything may take before a test gives up: a synced write takes some milliseconds, a retry half a second.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A request that has not been answered for so long waits.
const WAITS: Duration = Duration::from_millis(1500);
/// No volume under load goes without service for so much longer than a plain writer.
const UNHURT: Duration = Duration::from_secs(5);
/// Descriptors that stay free: what runs may need some of a sudden.
const RESERVE: u64 = 64;
const BLOCK: usize = 4096;
/// What an open volume takes in the run directory.
const JOURNAL: u64 = 1_573_040;

fn connect(socket: &Path) -> Result<Disk> {
    Disk::connect(socket, 4, BLOCK, InFlight::Tracked, TIMEOUT)
}

fn write(disk: &mut Disk, offset: usize) -> Result<()> {
    disk.run(Op::Write, offset as u64, BLOCK, TIMEOUT)
        .with_context(|| format!("a write at {offset}"))
}

/// The result of the request in flight; `None`: it is not answered within `timeout`.
fn answer(disk: &mut Disk, timeout: Duration) -> Result<Option<i32>> {
    let done = disk.done_within(timeout, TIMEOUT)?;
    Ok(done.map(|done| done.result))
}

fn limit(pid: Pid, limits: &str) -> Result<()> {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &pid.to_string()]);
    stdout_of(prlimit.arg(format!("--nofile={limits}"))).map(drop)
}

/// A node whose processes start with a limit, as prlimit(1) takes it.
fn node_with(limit: &str) -> Result<Node> {
    let node = Node::start("fused")?;
    node.call(&["node", "stop"])?;
    let mut start = Command::new("prlimit");
    start
        .arg(limit)
        .arg(own_program("archipelago")?)
        .arg("--root")
        .arg(node.root())
        .args(["node", "start"]);
    stdout_of(&mut start)?;
    Ok(node)
}

/// Descriptors of the data process: used, allowed.
fn descriptors(node: &Node) -> Result<(u64, u64)> {
    let status = node.status()?;
    let of = |value: &Value, name: &str| value["descriptors"][name].as_u64();
    let process = &status["processes"][0];
    ensure!(
        of(&status, "allowed").is_some(),
        "the daemon's own: {status}"
    );
    of(process, "used")
        .zip(of(process, "allowed"))
        .with_context(|| format!("{process}"))
}

/// How long a load runs: `$LIMITS_SECONDS`, else 10.
fn load_time() -> Duration {
    let seconds = std::env::var("LIMITS_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(10))
}

/// Volumes in use beside each other, none of them alone a load.
fn in_use(node: &Node, count: usize) -> Result<LoadedVolumes> {
    let load = Load {
        depth: 2,
        sectors_max: 64,
        timeout: TIMEOUT,
        rest: Duration::from_millis(20),
        ..Load::default()
    };
    LoadedVolumes::named(node, "used", count, 4 << 20, load, seed())
}

/// Runs `beside` again and again under load, and says how it went.
#[expect(clippy::print_stdout, reason = "the figures of a run")]
fn under_load(volumes: &mut LoadedVolumes, mut beside: impl FnMut() -> Result<()>) -> Result<()> {
    let _before = volumes.witness().longest();
    let (before, began) = (volumes.done(), now());
    volumes.begin();
    let mut longest = Duration::ZERO;
    while began.elapsed() < load_time() {
        longest = longest.max(volumes.served(1)?);
        beside()?;
    }
    let done = volumes.done() - before;
    println!(
        "{done} requests in {:?}, no volume without service for longer than {longest:?}",
        began.elapsed()
    );
    let witnessed = volumes.witness().longest();
    ensure!(
        longest < UNHURT + witnessed,
        "a volume was without service for {longest:?}, a plain writer for {witnessed:?}"
    );
    Ok(())
}

#[test]
fn two_hundred_volumes_are_attached_and_sixty_in_use_though_the_soft_limit_is_1024() -> Result<()> {
    let node = node_with("--nofile=1024:4096")?;
    let (before, allowed) = descriptors(&node)?;
    ensure!(allowed == 4096, "{allowed} are allowed");
    for number in 0..140 {
        node.create(&format!("v{number}"), GIB)?;
    }
    let (attached, _) = descriptors(&node)?;
    let mut volumes = in_use(&node, 60)?;
    let mut running = attached;
    under_load(&mut volumes, || {
        let (used, allowed) = descriptors(&node)?;
        running = running.max(used);
        ensure!(used <= allowed - RESERVE, "{used} of {allowed}");
        Ok(())
    })?;
    println!(
        "descriptors: {before} idle; {} for each of 140 attached; {} for each of 60 attached and in use, files of the pool included",
        (attached - before) / 140,
        (running - attached) / 60
    );
    let text = node.call(&["node", "status"])?;
    ensure!(
        text.contains("DESCRIPTORS") && text.contains("4096"),
        "{text}"
    );
    volumes.finish()
}

/// An attach that is refused by number, at 512 descriptors.
fn refused_by_number(node: &Node, name: &str, attached: usize) -> Result<()> {
    let output = node.output(&["volume", "attach", name])?;
    ensure!(output.status.code() == Some(6), "{output:?}");
    let refused = String::from_utf8(output.stderr)?;
    let attached = format!("{attached} attached volumes");
    for part in ["512 file descriptors", &attached, "LimitNOFILE"] {
        ensure!(refused.contains(part), "{refused}");
    }
    Ok(())
}

#[test]
fn an_attach_beyond_the_limit_is_refused_by_number_and_all_that_are_attached_run() -> Result<()> {
    let node = node_with("--nofile=512:512")?;
    let mut volumes = in_use(&node, 20)?;
    node.call(&["volume", "create", "further", "--size", "1G"])?;
    under_load(&mut volumes, || {
        refused_by_number(&node, "further", 20)?;
        let (used, allowed) = descriptors(&node)?;
        ensure!(used <= allowed - RESERVE, "{used} of {allowed}");
        Ok(())
    })?;
    volumes.finish()?;
    node.detach("used-3")?;
    node.attach("further")?;
    refused_by_number(&node, "used-3", 20)
}

#[test]
fn without_descriptors_guests_wait_and_go_on_by_themselves() -> Result<()> {
    let node = Node::start("fused")?;
    let socket = node.create("disk", 400 * GIB)?;
    let late = node.create("late", GIB)?;
    let mut disk = connect(&socket)?;
    write(&mut disk, 0)?;
    let process = node.process_of("blocker")?;
    let (_, allowed) = descriptors(&node)?;
    for round in 1..3 {
        // Each round in a container that was never opened.
        limit(process, &format!("8:{allowed}"))?;
        disk.submit(0, Op::Write, (round * 70 * GIB) as u64, BLOCK)?;
        disk.kick()?;
        let early = answer(&mut disk, WAITS)?;
        ensure!(early.is_none(), "answered {early:?} without descriptors");
        let connecting = std::thread::spawn({
            let late = late.clone();
            move || connect(&late)
        });
        // A flush needs descriptors, too: names, logs, heads.
        disk.submit(1, Op::Flush, 0, 0)?;
        disk.kick()?;
        let early = answer(&mut disk, WAITS)?;
        ensure!(early.is_none_or(|result| result == 0), "{early:?}");
        limit(process, &format!("{allowed}:{allowed}"))?;
        let left = if early.is_some() { 1 } else { 2 };
        for _ in 0..left {
            let result = answer(&mut disk, TIMEOUT)?;
            ensure!(
                result == Some(0),
                "{result:?} when there are descriptors again"
            );
        }
        let mut other = connecting.join().expect("a front end reports errors")?;
        write(&mut other, 0)?;
    }
    write(&mut disk, 0)?;
    disk.run(Op::Flush, 0, 0, TIMEOUT)?;
    ensure!(
        node.process_of("blocker")? == process,
        "it lived through it"
    );
    let log = fs::read_to_string(node.root().join("run/archipelagod.log"))?;
    let of = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    let lines = (
        of("no file descriptor is free"),
        of("cannot be accepted yet"),
    );
    ensure!(
        (1..=4).contains(&lines.0) && lines.1 <= 4,
        "{lines:?}: {log}"
    );
    Ok(())
}

/// A small file system for presence journals, away when dropped.
struct Small {
    path: PathBuf,
}

impl Small {
    /// `None`: not to be had here.
    fn mount(path: &Path, journals: u64) -> Result<Option<Small>> {
        // Some pages for directories and rounding.
        let size = format!("size={}", journals * JOURNAL + (256 << 10));
        let flags = MsFlags::empty();
        if let Err(errno) = mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(&*size)) {
            skip(&format!("mounting a small tmpfs needs privileges: {errno}"))?;
            return Ok(None);
        }
        Ok(Some(Small {
            path: path.to_owned(),
        }))
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all that is free.
    fn fill(&self) -> Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.ballast())?;
        match file.write_all(&vec![1; 64 << 20]) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(()),
            other => other.context("filled without an end"),
        }
    }

    fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _gone = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// A node with room for `journals` presence journals.
fn small_node(placement: &str, journals: u64) -> Result<Option<(Small, Node)>> {
    let node = Node::start(placement)?;
    node.call(&["node", "stop"])?;
    let Some(small) = Small::mount(&node.root().join("run/journal"), journals)? else {
        return Ok(None);
    };
    node.call(&["node", "start"])?;
    Ok(Some((small, node)))
}

#[test]
fn an_attach_without_room_for_its_journal_is_refused_by_path_and_size() -> Result<()> {
    let Some((small, node)) = small_node("fused", 2)? else {
        return Ok(());
    };
    let first = node.create("a", GIB)?;
    node.create("b", GIB)?;
    let mut disk = connect(&first)?;
    write(&mut disk, 0)?;
    node.call(&["volume", "create", "c", "--size", "1G"])?;
    let output = node.output(&["volume", "attach", "c"])?;
    ensure!(output.status.code() == Some(6), "{output:?}");
    let refused = String::from_utf8(output.stderr)?;
    for part in ["run/journal", "1573040", "remount"] {
        ensure!(refused.contains(part), "{refused}");
    }
    node.detach("b")?;
    node.call(&["volume", "attach", "c"])?;
    drop(disk);
    node.call(&["node", "stop"])?;
    drop(small);
    Ok(())
}

#[test]
fn a_kill_with_a_full_run_directory_costs_an_open_volume_nothing() -> Result<()> {
    for placement in ["fused", "split"] {
        let Some((small, node)) = small_node(placement, 2)? else {
            return Ok(());
        };
        let socket = node.create("disk", GIB)?;
        let mut disk = connect(&socket)?;
        write(&mut disk, 0)?;
        small.fill()?;
        // Its journal is used again in place; not flushed, so it is also what brings the write back.
        disk.fill(0, &[7; BLOCK])?;
        write(&mut disk, 1 << 20)?;
        Node::kill(node.process_of("mapper")?)?;
        write(&mut disk, 2 << 20)?;
        disk.run(Op::Read, 1 << 20, BLOCK, TIMEOUT)?;
        let mut read = [0; BLOCK];
        disk.take(0, &mut read)?;
        ensure!(read == [7; BLOCK], "an acknowledged write is lost");
        disk.run(Op::Flush, 0, 0, TIMEOUT)?;
        // Without any: it waits until there is room.
        let journal = fs::read_dir(&small.path)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| *path != small.ballast())
            .context("an open volume has a journal")?;
        let process = node.process_of("mapper")?;
        Node::freeze(process)?;
        // Too short to be used again, and there is no room for another one.
        OpenOptions::new()
            .write(true)
            .open(journal)?
            .set_len(BLOCK as u64)?;
        small.fill()?;
        Node::kill(process)?;
        disk.submit(0, Op::Write, 3 << 20, BLOCK)?;
        // Its bell may have no server at the moment; whoever comes looks at the ring.
        let _rung = disk.kick();
        let early = answer(&mut disk, WAITS)?;
        ensure!(
            early.is_none(),
            "{placement}: answered {early:?} without a journal"
        );
        small.empty()?;
        let result = answer(&mut disk, TIMEOUT)?;
        ensure!(result == Some(0), "{result:?} when there is room again");
        write(&mut disk, 4 << 20)?;
        drop(disk);
        node.call(&["node", "stop"])?;
    }
    Ok(())
}

#[test]
fn the_first_guest_of_a_volume_waits_for_room_in_the_run_directory() -> Result<()> {
    let Some((small, node)) = small_node("fused", 2)? else {
        return Ok(());
    };
    let socket = node.create("disk", GIB)?;
    small.fill()?;
    let mut disk = connect(&socket)?;
    disk.submit(0, Op::Write, 0, BLOCK)?;
    disk.kick()?;
    let early = answer(&mut disk, WAITS)?;
    ensure!(early.is_none(), "answered {early:?} without a journal");
    // A guest that goes away meanwhile leaves nothing behind.
    drop(disk);
    node.detach("disk")?;
    small.empty()?;
    let socket = node.attach("disk")?;
    small.fill()?;
    let mut disk = connect(&socket)?;
    disk.submit(0, Op::Write, 0, BLOCK)?;
    disk.kick()?;
    ensure!(answer(&mut disk, WAITS)?.is_none(), "answered again");
    small.empty()?;
    let result = answer(&mut disk, TIMEOUT)?;
    ensure!(result == Some(0), "{result:?} when there is room again");
    drop(disk);
    node.call(&["node", "stop"]).map(drop)
}

/// The kernel ends a process that writes beyond the limit, and no room lifts the limit: the guest's write fails, nothing else.
#[test]
fn a_write_beyond_the_limit_of_file_sizes_fails_and_ends_nothing() -> Result<()> {
    const SOFT: u64 = 64 << 20;
    let node = node_with(&format!("--fsize={SOFT}:"))?;
    let mut disk = connect(&node.create("disk", GIB)?)?;
    write(&mut disk, GIB - BLOCK).context("a soft limit is raised")?;
    drop(disk);
    node.call(&["node", "stop"])?;
    let node = node_with(&format!("--fsize={SOFT}:{SOFT}"))?;
    let mut disk = connect(&node.create("disk", GIB)?)?;
    disk.submit(0, Op::Write, (GIB - BLOCK) as u64, BLOCK)?;
    disk.kick()?;
    let result = answer(&mut disk, TIMEOUT)?.context("the write waits for what never comes")?;
    ensure!(result != 0, "written beyond the limit");
    write(&mut disk, 0).context("within the limit")?;
    disk.run(Op::Flush, 0, 0, TIMEOUT)?;
    let restarts = &node.status()?["processes"][0]["restarts"];
    ensure!(restarts == 0, "{restarts} restarts");
    drop(disk);
    node.detach("disk")
}
