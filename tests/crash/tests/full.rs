//! A pool without space: writes of guests wait, whatever process dies meanwhile, and continue when there is space.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::small_pool::{MIB, Writer, on_a_small_file_system};
use serde_json::Value;

/// Longest wait for anything that is to happen.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A write that is not done by then waits for space.
const WITHOUT_SPACE: Duration = Duration::from_secs(2);
/// Space that becomes free is used within this.
const GOES_ON: Duration = Duration::from_secs(1);

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

/// A node whose pool is full, and a guest whose write waits for space.
struct Full {
    node: Node,
    guest: Writer,
    /// A file beside the pool.
    ballast: PathBuf,
}

impl Full {
    /// The ballast takes `mib` MiB of the file system at `dir`.
    fn new(dir: &Path, placement: &str, mib: usize) -> Result<Full> {
        let ballast = dir.join("ballast");
        fs::write(&ballast, vec![1; mib * MIB])?;
        let node = Node::builder(placement).pool(&dir.join("pool")).start()?;
        let mut guest = Writer::connect(&node.create("disk", 256 * MIB)?)?;
        guest.fill_until_it_waits(WITHOUT_SPACE)?;
        ensure!(guest.written() >= 4, "full after {} MiB", guest.written());
        status_says(&node, true)?;
        guest.check()?;
        Ok(Full {
            node,
            guest,
            ballast,
        })
    }

    /// There is space: the write completes within `timeout`, all data is as written, and the volume can be detached.
    fn goes_on(mut self, timeout: Duration) -> Result<()> {
        let written = self.guest.wait(timeout)?;
        ensure!(
            written.is_some_and(|written| written.result == 0),
            "with space again: {written:?}"
        );
        status_says(&self.node, false)?;
        self.guest.flush()?;
        self.guest.check()?;
        drop(self.guest);
        self.node.detach("disk")
    }
}

/// The process of `victim` is killed while writes wait.
fn writes_wait_for_space(placement: &str, victim: &str) -> Result<()> {
    on_a_small_file_system(|dir| {
        let mut full = Full::new(dir, placement, 16)?;
        // What waits is not lost with the process that knows of it, and not answered.
        Node::kill(full.node.process_of(victim)?)?;
        let written = full.guest.wait(WITHOUT_SPACE)?;
        ensure!(written.is_none(), "answered without space: {written:?}");
        full.guest.check().context("after the death of a process")?;
        status_says(&full.node, true)?;
        fs::remove_file(&full.ballast)?;
        full.goes_on(GOES_ON)
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
        let full = Full::new(dir, "fused", 32)?;
        full.node.call(&["node", "stop"])?;
        fs::remove_file(&full.ballast)?;
        full.node.call(&["node", "start"])?;
        full.goes_on(TIMEOUT)
    })
}

/// A node stops after a death of its data process in a full pool: the session that could not begin ends all the same, and
/// nothing of what it had to recover is lost.
#[test]
fn a_node_that_lost_its_data_process_in_a_full_pool_stops_and_serves_reads_when_it_is_started()
-> Result<()> {
    on_a_small_file_system(|dir| {
        let mut full = Full::new(dir, "fused", 32)?;
        Node::kill(full.node.process_of("endpoint")?)?;
        full.guest
            .check()
            .context("after the death of the data process")?;
        full.node.call(&["node", "stop"])?;
        // The journal is void after a boot: what was acknowledged is in the pool by now.
        fs::remove_dir_all(full.node.root().join("run/journal"))?;
        full.node.call(&["node", "start"])?;
        full.guest.check().context("after a stop and a start")?;
        status_says(&full.node, true)?;
        fs::remove_file(&full.ballast)?;
        full.goes_on(TIMEOUT)
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
