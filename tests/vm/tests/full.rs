//! A guest whose pool is full: its monitor stops, resets and ends it within seconds, and no write of it fails.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::skip;
use archipelago_vm_tests::guest::{Disk, Guest};
use serde_json::json;

const MIB: usize = 1 << 20;
/// A stop of the guest's rings waits a second for room; QEMU and a busy host take the rest.
const ANSWERED: Duration = Duration::from_secs(8);

#[expect(clippy::disallowed_methods, reason = "measures another process")]
fn within<T>(what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let result = act()?;
    let took = begun.elapsed();
    ensure!(took < ANSWERED, "{what} took {took:?}");
    Ok(result)
}

fn waits(node: &Node, wanted: bool) -> Result<()> {
    node.wait_for_status(&format!("`disk` waits for space: {wanted}"), |status| {
        let waits = status["waits"].as_array();
        waits.is_some_and(|waits| waits.iter().any(|wait| wait["volume"] == "disk") == wanted)
    })
}

/// The guest writes `pieces` of 64 KiB, until there is no room.
fn fill(node: &Node, guest: &Guest, pieces: u64) -> Result<()> {
    guest.run(&format!(
        "(dd if=/dev/zero of=/dev/vda bs=64k count={pieces} oflag=direct; echo $? > /tmp/dd) > /dev/null 2>&1 &"
    ))?;
    waits(node, true)
}

fn on_a_full_pool(pool: &Path, ballast: &Path) -> Result<()> {
    fs::write(ballast, vec![1; 80 * MIB])?;
    let node = Node::builder("fused").pool(pool).start()?;
    let socket = node.create("disk", 256 * MIB)?;
    let guest = Guest::builder().disk(Disk::new(&socket)).boot()?;
    // Paused and continued: the waiting write keeps waiting, and completes when there is room.
    fill(&node, &guest, 40 * 16)?;
    let mut monitor = guest.monitor()?;
    within("`stop`", || monitor.execute("stop", &json!({})))?;
    monitor.execute("cont", &json!({}))?;
    drop(monitor);
    guest.run("dd if=/dev/vda of=/dev/null bs=64k count=1 iflag=direct && test ! -e /tmp/dd")?;
    waits(&node, true)?;
    fs::remove_file(ballast)?;
    guest.run(
        "while test ! -e /tmp/dd; do usleep 10000; done; test $(cat /tmp/dd) = 0 && no_errors",
    )?;
    // Reset while writes wait: it boots again, and reads its disk.
    fill(&node, &guest, 256 * 16)?;
    guest.reset()?;
    guest.run("dd if=/dev/vda of=/dev/null bs=64k count=1 iflag=direct && no_errors")?;
    fill(&node, &guest, 256 * 16)?;
    let mut monitor = guest.monitor()?;
    within("`quit`", || {
        monitor.execute("quit", &json!({}))?;
        // The process has ended when its monitor has.
        while monitor.wait_event("SHUTDOWN").is_ok() {}
        Ok(())
    })?;
    drop((monitor, guest));
    node.detach("disk")
}

#[test]
fn a_guest_on_a_full_pool_is_stopped_continued_reset_and_switched_off() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags = nix::mount::MsFlags::empty();
    let tmpfs = Some("tmpfs");
    let options = Some("size=112m");
    if let Err(errno) = nix::mount::mount(tmpfs, dir.path(), tmpfs, flags, options) {
        return skip(&format!("mounting a small tmpfs needs privileges: {errno}"));
    }
    let result = on_a_full_pool(&dir.path().join("pool"), &dir.path().join("ballast"));
    nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH)?;
    result
}
