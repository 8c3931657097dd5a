//! A pool without space: writes of guests wait, whatever dies meanwhile, and go on when there is space.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::disk::Op;
use archipelago_crash_tests::disk::{Disk, InFlight, Waited};
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::skip;
use serde_json::Value;

const MIB: usize = 1 << 20;
/// Longest wait for anything that is to happen.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A write that is not done by then waits for space.
const WITHOUT_SPACE: Duration = Duration::from_secs(2);
/// Space that becomes free is used within this.
const GOES_ON: Duration = Duration::from_secs(1);
/// Slots of the writes and of the reads beside them.
const WRITES: usize = 0;
const READS: usize = 1;

/// Calls `test` with the directory of a file system of 48 MiB.
fn on_a_small_file_system(test: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags = nix::mount::MsFlags::empty();
    let mounted = nix::mount::mount(
        Some("tmpfs"),
        dir.path(),
        Some("tmpfs"),
        flags,
        Some("size=48m"),
    );
    if let Err(errno) = mounted {
        return skip(&format!("mounting a small tmpfs needs privileges: {errno}"));
    }
    let result = test(dir.path());
    nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH)?;
    result
}

#[expect(clippy::disallowed_methods, reason = "waits for another process")]
fn now() -> Instant {
    Instant::now()
}

/// What `piece`, a MiB of the disk, holds.
fn content(piece: usize) -> Vec<u8> {
    let byte = u8::try_from(piece % 251).expect("below 251");
    vec![byte + 1; MIB]
}

/// Waits until the request in `slot` is done: its result. `None`: not within `timeout`.
fn result_of(disk: &mut Disk, slot: usize, timeout: Duration) -> Result<Option<i32>> {
    let deadline = now() + timeout;
    loop {
        if let Some(done) = disk.next_done()? {
            ensure!(done.slot == slot, "slot {} was done, not {slot}", done.slot);
            return Ok(Some(done.result));
        }
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Ok(None);
        }
        // Waits are in whole milliseconds, rounded down: one more, so that a wait never ends before the deadline.
        match disk.wait(left + Duration::from_millis(1)) {
            Ok(Waited::Rung) => {}
            Ok(Waited::HungUp) => disk.reconnect(TIMEOUT)?,
            // Nothing came in that time.
            Err(_) if now() >= deadline => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn write(disk: &mut Disk, piece: usize, timeout: Duration) -> Result<Option<i32>> {
    disk.fill(WRITES, &content(piece))?;
    disk.submit(WRITES, Op::Write, (piece * MIB) as u64, MIB)?;
    disk.kick()?;
    result_of(disk, WRITES, timeout)
}

fn check(disk: &mut Disk, piece: usize) -> Result<()> {
    disk.submit(READS, Op::Read, (piece * MIB) as u64, MIB)?;
    disk.kick()?;
    let result = result_of(disk, READS, TIMEOUT)?.context("a read waits in a full pool")?;
    ensure!(result == 0, "reading MiB {piece} failed with {result}");
    let mut data = vec![0; MIB];
    disk.take(READS, &mut data)?;
    ensure!(
        data == content(piece),
        "MiB {piece} is not what was written"
    );
    Ok(())
}

/// Waits until `node status` says of the volume `disk` that its writes wait, or that nothing does.
fn status_says(node: &Node, waits: bool) -> Result<()> {
    let is_ours = |wait: &Value| {
        let what = wait["what"].as_str();
        wait["volume"] == "disk" && what.is_some_and(|what| what.contains("space"))
    };
    node.wait_for_status(&format!("`disk` waits for space: {waits}"), |status| {
        let found = status["waits"].as_array();
        found.is_some_and(|found| found.iter().any(is_ours) == waits)
    })
}

/// The process of `victim` is killed while writes wait.
fn writes_wait_for_space(placement: &str, victim: &str) -> Result<()> {
    on_a_small_file_system(|dir| {
        let ballast = dir.join("ballast");
        fs::write(&ballast, vec![1; 16 * MIB])?;
        let pool = dir.join("pool");
        let node = Node::builder(placement).pool(&pool).start()?;
        let socket = node.create("disk", 256 * MIB)?;
        let mut disk = Disk::connect(&socket, 2, MIB, InFlight::Tracked, TIMEOUT)?;
        let mut full = 0;
        loop {
            match write(&mut disk, full, WITHOUT_SPACE)? {
                Some(0) => full += 1,
                Some(result) => bail!("MiB {full} failed with {result}"),
                None => break,
            }
            ensure!(full < 48, "48 MiB took more than that");
        }
        ensure!(full >= 8, "full after {full} MiB only");
        status_says(&node, true)?;
        (0..full).try_for_each(|piece| check(&mut disk, piece))?;

        // What waits is not lost with the process that knows of it, and not answered.
        Node::kill(node.process_of(victim)?)?;
        let result = result_of(&mut disk, WRITES, WITHOUT_SPACE)?;
        ensure!(result.is_none(), "answered without space: {result:?}");
        (0..full)
            .try_for_each(|piece| check(&mut disk, piece))
            .context("after the death of a process")?;
        status_says(&node, true)?;

        fs::remove_file(&ballast)?;
        let result = result_of(&mut disk, WRITES, GOES_ON)?;
        ensure!(result == Some(0), "with space again: {result:?}");
        status_says(&node, false)?;
        disk.submit(WRITES, Op::Flush, 0, 0)?;
        disk.kick()?;
        ensure!(result_of(&mut disk, WRITES, TIMEOUT)? == Some(0), "flush");
        (0..=full).try_for_each(|piece| check(&mut disk, piece))?;
        drop(disk);
        node.detach("disk")
    })
}

#[test]
fn fused_writes_wait_for_space_over_the_death_of_the_data_process() -> Result<()> {
    writes_wait_for_space("fused", "endpoint")
}

#[test]
fn split_writes_wait_for_space_over_the_death_of_the_mapper() -> Result<()> {
    writes_wait_for_space("split", "mapper")
}

#[test]
fn split_writes_wait_for_space_over_the_death_of_the_endpoint() -> Result<()> {
    writes_wait_for_space("split", "endpoint")
}

/// A node stops while writes wait: they are neither answered nor lost.
#[test]
fn a_node_with_writes_that_wait_stops_and_they_go_on_with_the_next_one() -> Result<()> {
    on_a_small_file_system(|dir| {
        let ballast = dir.join("ballast");
        fs::write(&ballast, vec![1; 32 * MIB])?;
        let node = Node::builder("fused").pool(&dir.join("pool")).start()?;
        let socket = node.create("disk", 64 * MIB)?;
        let mut disk = Disk::connect(&socket, 2, MIB, InFlight::Tracked, TIMEOUT)?;
        let mut full = 0;
        while write(&mut disk, full, WITHOUT_SPACE)? == Some(0) {
            full += 1;
        }
        status_says(&node, true)?;
        node.call(&["node", "stop"])?;
        fs::remove_file(&ballast)?;
        node.call(&["node", "start"])?;
        let result = result_of(&mut disk, WRITES, TIMEOUT)?;
        ensure!(result == Some(0), "after the restart: {result:?}");
        (0..=full).try_for_each(|piece| check(&mut disk, piece))?;
        drop(disk);
        node.detach("disk")
    })
}

/// A node stops after a death of its data process in a full pool: the session that could not begin ends all the same, and
/// nothing of what it had to recover is lost.
#[test]
fn a_node_that_lost_its_data_process_in_a_full_pool_stops_and_serves_reads_when_it_is_started()
-> Result<()> {
    on_a_small_file_system(|dir| {
        let ballast = dir.join("ballast");
        fs::write(&ballast, vec![1; 32 * MIB])?;
        let node = Node::builder("fused").pool(&dir.join("pool")).start()?;
        let socket = node.create("disk", 64 * MIB)?;
        let mut disk = Disk::connect(&socket, 2, MIB, InFlight::Tracked, TIMEOUT)?;
        let mut full = 0;
        while write(&mut disk, full, WITHOUT_SPACE)? == Some(0) {
            full += 1;
        }
        ensure!(full >= 4, "full after {full} MiB only");
        Node::kill(node.process_of("endpoint")?)?;
        check(&mut disk, 0).context("after the death of the data process")?;
        node.call(&["node", "stop"])?;
        // The journal is void after a boot: what was acknowledged is in the pool by now.
        fs::remove_dir_all(node.root().join("run/journal"))?;
        node.call(&["node", "start"])?;
        (0..full)
            .try_for_each(|piece| check(&mut disk, piece))
            .context("after a stop and a start")?;
        status_says(&node, true)?;
        fs::remove_file(&ballast)?;
        let result = result_of(&mut disk, WRITES, TIMEOUT)?;
        ensure!(result == Some(0), "with space again: {result:?}");
        (0..=full).try_for_each(|piece| check(&mut disk, piece))?;
        drop(disk);
        node.detach("disk")
    })
}

/// A bulk copy does not wait: whoever runs the command can act.
#[test]
fn an_import_into_a_full_pool_is_refused_with_exit_code_6() -> Result<()> {
    on_a_small_file_system(|dir| {
        let node = Node::builder("fused").pool(&dir.join("pool")).start()?;
        let source = node.root().join("source.raw");
        fs::write(&source, vec![7; 64 * MIB])?;
        let path = source.to_str().context("a path in UTF-8")?;
        let output = node.output(&["image", "import", path, "image"])?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(6),
            "{}: {error}",
            output.status
        );
        ensure!(error.contains("full"), "{error}");
        Ok(())
    })
}
