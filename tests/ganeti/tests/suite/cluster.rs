//! The harness itself: a cluster comes, is sound, and goes without a trace.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::process::Command;

use anyhow::{Result, ensure};
use archipelago_bench::program::stdout_of;
use archipelago_ganeti_tests::cluster::Cluster;

/// What an installed Ganeti, and ssh, would write to.
const OF_THE_HOST: [&str; 7] = [
    "/etc/ganeti",
    "/etc/hosts",
    "/etc/passwd",
    "/etc/ssh",
    "/srv",
    "/var/lib/ganeti",
    "/var/log/ganeti",
];

#[test]
fn a_cluster_comes_and_goes() -> Result<()> {
    let before = host()?;
    let cluster = Cluster::start()?;
    cluster.verify()?;
    let dir = cluster.dir().display().to_string();
    cluster.stop()?;
    ensure!(
        host()? == before,
        "files of the host are others:\n{before}\n{}",
        host()?
    );
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let loops = stdout_of(Command::new("losetup").arg("--all"))?;
    ensure!(!mounts.contains(&dir), "a mount is left: {mounts}");
    ensure!(!loops.contains(&dir), "a loop device is left: {loops}");
    Ok(())
}

/// Names, lengths and times of files of the host.
fn host() -> Result<String> {
    let mut command = Command::new("find");
    command.args(OF_THE_HOST).args(["-printf", "%p %s %T@\\n"]);
    stdout_of(&mut command)
}
