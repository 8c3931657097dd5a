//! The policy of a volume for a full pool, seen by its guest: what waits, what fails, when, and what a change or a death does to it.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::small_pool::{MIB, Writer, Written, on_a_small_file_system};
use serde_json::Value;

/// What is answered at once is answered within this, also on a machine that does something else. Less than [`LIMIT_SECONDS`].
const AT_ONCE: Duration = Duration::from_secs(5);
/// What is not answered within this waits.
const UNANSWERED: Duration = Duration::from_secs(2);
/// A volume's limit.
const LIMIT_SECONDS: u64 = 8;
const LIMIT: Duration = Duration::from_secs(LIMIT_SECONDS);
/// Longest wait for what is to happen.
const TIMEOUT: Duration = Duration::from_secs(20);
/// What the guest sees: an I/O error.
const IOERR: i32 = -nix::libc::EIO;

/// A node whose pool has room for 16 MiB or so, and the file that takes the rest.
fn node_with_ballast(dir: &Path, placement: &str) -> Result<(Node, std::path::PathBuf)> {
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![1; 24 * MIB])?;
    let node = Node::builder(placement).pool(&dir.join("pool")).start()?;
    Ok((node, ballast))
}

fn create(node: &Node, policy: Option<&str>) -> Result<Writer> {
    let mut create = vec!["volume", "create", "disk", "--size", "256M"];
    create.extend(policy.map(|_| "--on-full"));
    create.extend(policy);
    node.call(&create)?;
    Writer::connect(&node.attach("disk")?)
}

fn fails_at_once(written: Written, what: &str) -> Result<()> {
    ensure!(written.result == IOERR, "{what}: {written:?}");
    ensure!(written.after < AT_ONCE, "{what}: {written:?}");
    Ok(())
}

/// What `node status` says of the space that the volume `disk` waits for, or has waited for.
fn space_wait(status: &Value) -> Option<String> {
    let waits = status["waits"].as_array()?;
    let ours = waits.iter().find(|wait| wait["volume"] == "disk")?;
    let what = ours["what"].as_str()?;
    what.contains("space").then(|| what.to_owned())
}

fn wait_for_space_wait(node: &Node, part: Option<&str>) -> Result<()> {
    node.wait_for_status(&format!("space: {part:?}"), |status| {
        let wait = space_wait(status);
        wait.is_some() == part.is_some()
            && part.is_none_or(|part| wait.is_some_and(|wait| wait.contains(part)))
    })
}

/// A counter of the device in `node status`.
fn counter(node: &Node, name: &str) -> Result<u64> {
    let status = node.status()?;
    let processes = status["processes"].as_array().context("processes")?;
    let peers = processes.iter().filter_map(|one| one["peers"].as_array());
    let device = peers
        .flatten()
        .find(|peer| peer["name"] == "vhost-user:disk");
    let counters = device.context("the device")?["counters"].as_array();
    let found = counters
        .context("counters")?
        .iter()
        .find(|counter| counter[0] == name);
    found.context("the counter")?[1]
        .as_u64()
        .context("a number")
}

fn log_lines(node: &Node, part: &str) -> Result<usize> {
    let log = fs::read_to_string(node.root().join("run/archipelagod.log"))?;
    Ok(log.lines().filter(|line| line.contains(part)).count())
}

/// Every write fails until there is space, and only the failures are logged; then the volume is served again.
fn report(placement: &str) -> Result<()> {
    on_a_small_file_system(|dir| {
        let (node, ballast) = node_with_ballast(dir, placement)?;
        let mut guest = create(&node, Some("report"))?;
        fails_at_once(guest.fill()?, "the first")?;
        for _ in 0..50 {
            fails_at_once(guest.write()?, "another")?;
        }
        ensure!(counter(&node, "errors_no_space")? == 51);
        let logged = log_lines(&node, "no space left")?;
        ensure!((1..=2).contains(&logged), "{logged} lines for 51 errors");
        ensure!(space_wait(&node.status()?).is_none(), "nothing waits");
        guest.check()?;
        fs::remove_file(&ballast)?;
        ensure!(guest.write()?.result == 0, "with space again");
        guest.check()?;
        drop(guest);
        node.detach("disk")
    })
}

#[test]
fn fused_a_volume_that_reports_fails_at_once_and_serves_when_there_is_space() -> Result<()> {
    report("fused")
}

#[test]
fn split_a_volume_that_reports_fails_at_once_and_serves_when_there_is_space() -> Result<()> {
    report("split")
}

#[test]
fn a_volume_with_a_limit_waits_as_long_once_and_again_after_there_was_space() -> Result<()> {
    let policy = format!("wait:{LIMIT_SECONDS}");
    let fails_after_the_limit = |written: Written| {
        ensure!(written.result == IOERR, "{written:?}");
        let rounded = Duration::from_millis(50);
        ensure!(written.after + rounded >= LIMIT, "too early: {written:?}");
        ensure!(written.after < LIMIT + AT_ONCE, "too late: {written:?}");
        Ok(())
    };
    on_a_small_file_system(|dir| {
        let (node, ballast) = node_with_ballast(dir, "fused")?;
        let mut guest = create(&node, Some(&policy))?;
        fails_after_the_limit(guest.fill()?)?;
        for _ in 0..10 {
            fails_at_once(guest.write()?, "after the limit")?;
        }
        wait_for_space_wait(&node, Some("I/O errors"))?;
        for line in [
            format!("writes wait for space in the pool (on full: {policy})"),
            format!("gets I/O errors (on full: {policy})"),
        ] {
            ensure!(log_lines(&node, &line)? == 1, "one line says `{line}`");
        }
        guest.check()?;
        fs::remove_file(&ballast)?;
        ensure!(guest.write()?.result == 0, "with space again");
        wait_for_space_wait(&node, None)?;
        fails_after_the_limit(guest.fill()?)?;
        guest.check()?;
        drop(guest);
        node.detach("disk")
    })
}

#[test]
fn a_policy_that_is_set_reaches_writes_that_wait_and_outlives_every_process() -> Result<()> {
    on_a_small_file_system(|dir| {
        let (node, ballast) = node_with_ballast(dir, "fused")?;
        let mut guest = create(&node, None)?;
        guest.fill_until_it_waits(UNANSWERED)?;
        wait_for_space_wait(&node, Some("writes wait"))?;
        let set = |policy: &str| node.call(&["volume", "set", "disk", "--on-full", policy]);
        let answered = |guest: &mut Writer| {
            let written = guest.wait(TIMEOUT)?;
            written.context("the write that waits is answered")
        };
        set("report")?;
        fails_at_once(answered(&mut guest)?, "set to report")?;
        fails_at_once(guest.write()?, "after that")?;
        // Those to come wait, and the next change reaches them as well.
        set("wait")?;
        guest.submit()?;
        ensure!(guest.wait(LIMIT)?.is_none(), "it waits again");
        set(&format!("wait:{LIMIT_SECONDS}"))?;
        fails_at_once(answered(&mut guest)?, "waited for longer than that already")?;
        set("report")?;
        for victim in ["endpoint", "daemon"] {
            if victim == "daemon" {
                Node::kill(node.daemon()?)?;
                node.restart()?;
            } else {
                Node::kill(node.process_of(victim)?)?;
            }
            let written = guest.write()?;
            ensure!(written.result == IOERR, "after a kill: {written:?}");
            fails_at_once(guest.write()?, "and at once")?;
        }
        fs::remove_file(&ballast)?;
        // Its session could not begin: that is tried again twice a second.
        guest.write_within(AT_ONCE)?;
        guest.check()?;
        drop(guest);
        node.detach("disk")
    })
}
