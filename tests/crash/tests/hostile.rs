//! A hostile front end at full speed, and a process that ends as after a panic: neither harms a neighbour's data or service.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]
#![expect(clippy::print_stdout, reason = "how to replay, and what was done")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::adversary::{Attack, Tally, attack};
use archipelago_bench::waiting::now;
use archipelago_crash_tests::model::Model;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::pattern::SECTOR;
use archipelago_crash_tests::verifier::Verifier;
use nix::sys::signal::Signal;

const SIZE: usize = 32 << 20;
/// Duration of each attack.
const ATTACK_TIME: Duration = Duration::from_millis(700);

fn seed() -> u64 {
    let text = std::env::var("CRASH_SEED").ok();
    let seed = text.and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("replay with CRASH_SEED={seed}");
    seed
}

/// Sets its flag, however its scope is left.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Verified load on one volume while the front end of another volume attacks the process that serves both.
fn harms_no_neighbour(placement: &str) -> Result<()> {
    let seed = seed();
    let node = Node::start(placement)?;
    let socket = node.create("disk", SIZE)?;
    let hostile = node.create("hostile", SIZE)?;
    let mut verifier = Verifier::connect(&socket, Model::new(seed, SIZE / SECTOR), seed)?;
    let served_by = node.process_of("endpoint")?;
    for kind in Attack::ALL {
        let stop = AtomicBool::new(false);
        let requests = AtomicU64::new(0);
        let tally = std::thread::scope(|scope| -> Result<Tally> {
            let adversary = scope.spawn(|| attack(&hostile, &[kind], &stop, seed));
            let stopper = Stop(&stop);
            let end = now() + ATTACK_TIME;
            while now() < end && !adversary.is_finished() {
                verifier.run(50)?;
                requests.fetch_add(50, Ordering::Relaxed);
            }
            drop(stopper);
            adversary.join().expect("the adversary reports errors")
        })
        .with_context(|| format!("{kind:?} beside a neighbour, {placement}"))?;
        println!("{placement}, {kind:?}: {tally:?}; the neighbour did {requests:?} requests");
        ensure!(tally.connections > 0, "{kind:?} did nothing");
    }
    verifier.check_all()?;
    verifier.flush()?;
    ensure!(
        node.process_of("endpoint")? == served_by,
        "the process that serves both has been restarted"
    );
    // The adversary's volume is served at once to a front end that keeps the rules.
    Verifier::connect(&hostile, Model::new(seed, SIZE / SECTOR), seed)?.run(50)
}

#[test]
fn a_hostile_front_end_harms_no_neighbour_fused() -> Result<()> {
    harms_no_neighbour("fused")
}

#[test]
fn a_hostile_front_end_harms_no_neighbour_split() -> Result<()> {
    harms_no_neighbour("split")
}

/// SIGABRT is what a panic of any thread of a data process ends in (`peers/host/src/containment.rs`).
fn goes_on_after_an_abort(placement: &str, roles: &[&str]) -> Result<()> {
    let seed = seed();
    let node = Node::start(placement)?;
    let socket = node.create("disk", SIZE)?;
    let mut verifier = Verifier::connect(&socket, Model::new(seed, SIZE / SECTOR), seed)?;
    for role in roles {
        verifier.run(200)?;
        let victim = node.process_of(role)?;
        Node::signal(victim, Signal::SIGABRT)?;
        verifier
            .run(200)
            .and_then(|()| verifier.check_all())
            .with_context(|| format!("after the {role} of {placement} aborted"))?;
        ensure!(node.process_of(role)? != victim, "the {role} lives on");
    }
    verifier.flush()
}

#[test]
fn service_goes_on_after_an_abort_fused() -> Result<()> {
    goes_on_after_an_abort("fused", &["endpoint", "endpoint"])
}

#[test]
fn service_goes_on_after_an_abort_split() -> Result<()> {
    goes_on_after_an_abort("split", &["endpoint", "mapper", "blocker"])
}
