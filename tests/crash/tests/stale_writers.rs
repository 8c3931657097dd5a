//! Stale writers: processes that were stopped, and are continued after their successors have started. They write nothing any more.
//!
//! A stopped process is not replaced: its supervisor sees deaths only. So a successor of a living process can come from a
//! new daemon only, and there are two lines of defence:
//!
//! 1. The kernel kills the data processes of a daemon that dies, stopped or not, so that none of them can be continued.
//! 2. Where that failed, the pool's lock keeps a second blocker out for as long as the first one lives.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::waiting::{pause, wait_until};
use archipelago_crash_tests::loaded_volumes::LoadedVolumes;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::seed;
use archipelago_crash_tests::verifier::Load;
use nix::unistd::Pid;

const DELAYING: &str = env!("CARGO_BIN_EXE_archipelagod-delaying");
const DELAY_MS: u64 = 20;
const VOLUMES: usize = 2;
const SIZE: usize = 8 << 20;
/// Requests of each volume after which it counts as served again.
const SERVED: u64 = 64;
/// For so long a successor must not serve beside a stopped process that holds the pool.
const BESIDE: Duration = Duration::from_secs(1);
/// Longest wait for the death of a killed process.
const TIMEOUT: Duration = Duration::from_secs(10);

fn load() -> Load {
    Load {
        depth: 32,
        sectors_max: 256,
        ..Load::default()
    }
}

fn a_stopped_process_is_dead_before_its_successor_serves(
    placement: &str,
    roles: &[&str],
) -> Result<()> {
    let seed = seed();
    let node = Node::builder(placement)
        .delaying(DELAYING, DELAY_MS)
        .start()?;
    let mut volumes = LoadedVolumes::start(&node, VOLUMES, SIZE, load(), seed)?;
    for role in roles {
        volumes.run(300)?;
        let (stopped, daemon) = (node.process_of(role)?, node.daemon()?);
        Node::freeze(stopped)?;
        Node::kill(daemon)?;
        node.restart()?;
        ensure!(
            Node::is_dead(stopped),
            "the stopped {role} outlived the start of its successor"
        );
        Node::thaw(stopped)?;
        volumes
            .served(SERVED)
            .with_context(|| format!("after the {role}'s end; replay with CRASH_SEED={seed}"))?;
    }
    volumes
        .finish()
        .with_context(|| format!("replay with CRASH_SEED={seed}"))
}

#[test]
fn fused_a_stopped_process_is_dead_before_its_successor_serves() -> Result<()> {
    a_stopped_process_is_dead_before_its_successor_serves("fused", &["endpoint"])
}

#[test]
fn split_a_stopped_process_is_dead_before_its_successor_serves() -> Result<()> {
    let roles = ["endpoint", "mapper", "blocker"];
    a_stopped_process_is_dead_before_its_successor_serves("split", &roles)
}

/// With data processes that the kernel does not kill: those of the product cannot be had like this.
#[test]
fn nobody_serves_a_pool_beside_a_process_that_lives() -> Result<()> {
    let seed = seed();
    let node = Node::builder("fused")
        .delaying(DELAYING, DELAY_MS)
        .orphans()
        .start()?;
    let mut volumes = LoadedVolumes::start(&node, VOLUMES, SIZE, load(), seed)?;
    volumes.run(300)?;
    let (stopped, daemon) = (node.process_of("endpoint")?, node.daemon()?);
    // In this order: the kernel sends SIGHUP to a stopped process whose process group becomes an orphan.
    Node::kill(daemon)?;
    await_death(daemon)?;
    Node::freeze(stopped)?;
    std::thread::scope(|scope| -> Result<()> {
        let successor = scope.spawn(|| node.restart());
        pause(BESIDE);
        if successor.is_finished() {
            successor.join().expect("the command does not panic")?;
            bail!("a successor served beside a stopped process");
        }
        // The stopped process has no successor, so it may continue, and does; then it is killed.
        Node::thaw(stopped)?;
        let served = volumes.served(SERVED);
        Node::kill(stopped)?;
        successor.join().expect("the command does not panic")?;
        served.map(drop)
    })
    .with_context(|| format!("replay with CRASH_SEED={seed}"))?;
    volumes.served(SERVED)?;
    volumes
        .finish()
        .with_context(|| format!("replay with CRASH_SEED={seed}"))
}

fn await_death(pid: Pid) -> Result<()> {
    let alive = || format!("process {pid} is not dead");
    wait_until(TIMEOUT, alive, || Ok(Node::is_dead(pid).then_some(())))
}
