//! Two pools in one node: what one of them suffers, the guests of the other do not notice.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::waiting::pause;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::rewriter::{BLOCK, Rewriter};
use archipelago_crash_tests::skip;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

/// Blocks of each guest's disk.
const BLOCKS: usize = 512;
/// Longest request of the guest that shall notice nothing, on a machine that does something else.
const UNNOTICED: Duration = Duration::from_secs(2);
/// What the guest of the pool that suffers waits for.
const PATIENT: Duration = Duration::from_secs(120);
/// How long the pool suffers.
const SUFFERING: Duration = Duration::from_secs(5);

/// A directory that is mounted elsewhere, as a pool on a disk of its own is.
struct Mounted<'a> {
    from: &'a Path,
    at: &'a Path,
}

impl Mounted<'_> {
    fn mount(&self) -> Result<()> {
        tool(
            Command::new("mount")
                .arg("--bind")
                .args([self.from, self.at]),
        )
    }

    fn unmount(&self) -> Result<()> {
        tool(Command::new("umount").arg("--lazy").arg(self.at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _gone = self.unmount();
    }
}

fn tool(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(())
}

/// The processes of a pool.
fn processes(node: &Node, pool: &str) -> Result<Vec<Pid>> {
    let status = node.status()?;
    let processes = status["processes"].as_array().context("processes")?;
    let ours = processes.iter().filter(|process| process["pool"] == pool);
    ours.map(|process| {
        let pid = process["pid"].as_i64().context("a number")?;
        Ok(Pid::from_raw(i32::try_from(pid)?))
    })
    .collect()
}

/// Why a pool is not served, as `node status` says.
fn unserved(status: &Value, pool: &str) -> Option<String> {
    let pools = status["pools"].as_array()?;
    let pool = pools.iter().find(|one| one["name"] == pool)?;
    pool["unserved"].as_str().map(str::to_owned)
}

/// What is done with the pool of the guest that shall notice nothing.
fn use_first_pool(node: &Node, round: &str) -> Result<()> {
    let name = |what: &str| format!("{what}-{round}");
    node.call(&["volume", "snapshot", "quiet", &name("snapshot")])?;
    node.call(&["volume", "clone", &name("snapshot"), &name("clone")])?;
    node.create(&name("new"), 1 << 20)?;
    node.detach(&name("new"))?;
    let list = node.call(&["volume", "list"])?;
    ensure!(list.contains(&name("clone")), "{list}");
    node.call(&["volume", "remove", &name("clone")]).map(drop)
}

fn check_unnoticed(quiet: &Rewriter, what: &str) -> Result<()> {
    let longest = quiet.longest();
    ensure!(longest < UNNOTICED, "{what}: a request took {longest:?}");
    Ok(())
}

fn check(placement: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (disk, at) = (dir.path().join("disk"), dir.path().join("mount"));
    std::fs::create_dir(&disk)?;
    std::fs::create_dir(&at)?;
    let mounted = Mounted {
        from: &disk,
        at: &at,
    };
    mounted.mount()?;
    let node = Node::start(placement)?;
    let directory = at.join("pool");
    node.call(&[
        "pool",
        "add",
        "second",
        "--dir",
        directory.to_str().context("UTF-8")?,
    ])?;
    let size = BLOCKS * BLOCK;
    let quiet = Rewriter::start(&node.create("quiet", size)?, BLOCKS, 1, PATIENT)?;
    node.call(&[
        "volume",
        "create",
        "loud",
        "--size",
        &size.to_string(),
        "--pool",
        "second",
    ])?;
    let loud = Rewriter::start(&node.attach("loud")?, BLOCKS, 2, PATIENT)?;
    let _before = quiet.longest();

    // Its processes hang, as over storage that does not answer.
    let hanging = processes(&node, "second")?;
    ensure!(!hanging.is_empty(), "{:?}", node.status()?);
    for pid in &hanging {
        Node::freeze(*pid)?;
    }
    let done = quiet.done();
    use_first_pool(&node, "frozen")?;
    pause(SUFFERING);
    ensure!(quiet.done() > done, "the other guest goes on");
    check_unnoticed(&quiet, "the other pool hangs")?;
    for pid in &hanging {
        Node::thaw(*pid)?;
    }

    // It is unmounted under load, and its processes are killed: there is no pool for the next ones.
    mounted.unmount()?;
    for pid in processes(&node, "second")? {
        Node::signal(pid, Signal::SIGKILL)?;
    }
    node.wait_for_status("the pool is not served", |status| {
        unserved(status, "second").is_some()
    })?;
    let why = unserved(&node.status()?, "second").context("not served")?;
    ensure!(why.contains(directory.to_str().context("UTF-8")?), "{why}");
    let done = (quiet.done(), loud.done());
    use_first_pool(&node, "unmounted")?;
    pause(SUFFERING);
    ensure!(quiet.done() > done.0, "the other guest goes on");
    ensure!(loud.done() <= done.1 + 1, "there is nothing to read");
    check_unnoticed(&quiet, "the other pool is unmounted")?;

    // Both guests read what they wrote.
    mounted.mount()?;
    node.wait_for_status("the pool is served again", |status| {
        unserved(status, "second").is_none()
    })?;
    let done = loud.done();
    for _ in 0..600 {
        if loud.done() > done + 100 {
            break;
        }
        pause(Duration::from_millis(100));
    }
    ensure!(loud.done() > done + 100, "its guest goes on");
    check_unnoticed(&quiet, "the other pool comes back")?;
    loud.finish()?;
    quiet.finish()?;
    node.call(&["node", "stop"]).map(drop)
}

#[test]
fn what_one_pool_suffers_the_guests_of_the_other_do_not_notice() -> Result<()> {
    if !geteuid().is_root() {
        return skip("mounting needs root");
    }
    ["fused", "split"].into_iter().try_for_each(check)
}
