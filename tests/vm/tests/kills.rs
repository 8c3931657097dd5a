//! SIGKILL, and SIGSTOP with SIGCONT, of every process under a guest with a file system and verified load, with requests done
//! late and out of order, in both placements: the guest waits and never sees an error. At the end the power goes, too.
//!
//! | variable | says |
//! |---|---|
//! | `GUEST_KILLS_SEED` | which sequence; the seed of a failure is printed |
//! | `GUEST_KILLS` | signals in all, shared by the placements |

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]
#![expect(clippy::print_stdout, reason = "figures, and how to replay")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use archipelago_bench::load::Random;
use archipelago_bench::server::own_program;
use archipelago_crash_tests::fault::{FUSED, Fault, SPLIT, Victim};
use archipelago_crash_tests::node::Node;
use archipelago_vm_tests::guest::{Disk, Guest};

/// Runs in the guest.
const VERIFIER: &str = env!("CARGO_BIN_EXE_disk-verifier");
/// Longest delay before a request and before its reply: far longer than a request takes, far shorter than a restart.
const DELAY_MS: u64 = 20;
/// A file system in the first half; behind it a raw place.
const SIZE: usize = 256 << 20;
/// What the load works on: 3 MiB of the raw end with twelve workers, and a file of 1 MiB with four.
const PLACES: &str = "/dev/vda:201326592:3145728:12 /mnt/load:0:1048576:4";
/// Signals when nobody says how many.
const KILLS: u64 = 200;

fn number(variable: &str, or: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(or)
}

#[expect(clippy::disallowed_methods, reason = "a figure for people")]
fn now() -> Instant {
    Instant::now()
}

fn boot(socket: &Path) -> Result<Guest> {
    Guest::builder()
        .disk(Disk::new(socket))
        .program(Path::new(VERIFIER))
        .boot()
}

/// What a guest says of its load.
struct Progress {
    in_flight: u64,
    /// In each of which every worker has done a request.
    rounds: u64,
    requests: u64,
}

impl Progress {
    /// After a pause.
    fn of(guest: &Guest, pause: Duration) -> Result<Self> {
        let text = guest.run(&format!(
            "usleep {}; in_flight vda; cat /tmp/verifier/progress",
            pause.as_micros()
        ))?;
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        match numbers.as_deref() {
            Ok([in_flight, rounds, requests]) => Ok(Progress {
                in_flight: *in_flight,
                rounds: *rounds,
                requests: *requests,
            }),
            _ => anyhow::bail!("the guest reports no progress: {text}"),
        }
    }
}

fn survives(placement: &str, victims: &[Victim], kills: u64) -> Result<()> {
    let seed = number("GUEST_KILLS_SEED", 1);
    let mut random = Random::new(seed);
    let daemon = own_program("archipelagod-delaying")?;
    let daemon = daemon.to_str().context("a path in UTF-8")?;
    let node = Node::builder(placement)
        .delaying(daemon, DELAY_MS)
        .start()?;
    let socket = node.create("disk", SIZE)?;
    let guest = boot(&socket)?;
    guest.run(
        "mkfs.ext4 -q -F /dev/vda 128M && mount -t ext4 /dev/vda /mnt && make_files 10 200 && truncate -s 1M /mnt/load",
    )?;
    guest.run(&format!("start_verifier {seed} {PLACES}"))?;
    let (mut signals, mut faults, mut met, mut gap_max) = (0, 0, 0, Duration::ZERO);
    let began = now();
    while signals < kills {
        let fault = Fault::draw(&mut random, victims);
        let before = Duration::from_millis(random.below(200));
        let pause = Duration::from_millis(random.below(200));
        signals += fault.signals();
        faults += 1;
        let mut inject = || -> Result<()> {
            let progress = Progress::of(&guest, before)?;
            met += u64::from(progress.in_flight > 0);
            let injected = now();
            fault.inject(&node, pause)?;
            // The round after the one under way began after the fault, so the wait ends.
            guest.run(&format!("await_verifier {}", progress.rounds + 1))?;
            gap_max = gap_max.max(injected.elapsed());
            Ok(())
        };
        inject().with_context(|| {
            format!(
                "{fault:?}, signal {signals} of {placement}; replay with GUEST_KILLS_SEED={seed}"
            )
        })?;
    }
    let last = Progress::of(&guest, Duration::ZERO)?;
    println!(
        "{placement}, seed {seed}: {signals} signals in {} s, {faults} faults, {met} with requests in flight, \
         {} requests, every worker served again after {} ms at most",
        began.elapsed().as_secs(),
        last.requests,
        gap_max.as_millis()
    );
    power_off(&node, guest, &socket).with_context(|| {
        format!("at the end of {placement}; replay with GUEST_KILLS_SEED={seed}")
    })?;
    ensure!(2 * met > faults, "most faults met no request in flight");
    Ok(())
}

/// Stops the load, then all processes at once, the guest's too: what was flushed is there after the next boot.
fn power_off(node: &Node, guest: Guest, socket: &Path) -> Result<()> {
    let digest = guest.run("end_verifier && check_files && no_errors")?;
    Node::kill(node.daemon()?)?;
    drop(guest);
    node.restart()?;
    let guest = boot(socket)?;
    guest.run("recover_fs /dev/vda && mount -t ext4 /dev/vda /mnt && check_files")?;
    let found = guest.run(&format!("disk-verifier digest {PLACES}"))?;
    ensure!(found == digest, "flushed: {digest}, found: {found}");
    guest.run("umount /mnt && check_fs /dev/vda && no_errors")?;
    Ok(())
}

#[test]
fn a_guest_outlives_kills_of_anybody_fused() -> Result<()> {
    survives("fused", FUSED, number("GUEST_KILLS", KILLS) * 3 / 10)
}

#[test]
fn a_guest_outlives_kills_of_anybody_split() -> Result<()> {
    survives("split", SPLIT, number("GUEST_KILLS", KILLS) * 7 / 10)
}
