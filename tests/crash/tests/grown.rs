//! Five guests fill a pool's file system, wait while processes die and the node is restarted, and continue when the file system is grown.
//!
//! `GROWN_SECONDS` says for how long it is full (6).

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::time::Duration;

use anyhow::{Result, ensure};
use archipelago_bench::waiting::{now, pause, wait_until};
use archipelago_crash_tests::filesystem::Kind;
use archipelago_crash_tests::growing_pool::{
    GROWN_WITHIN, GrowingPool, full_time, grow, replace_process, waiting,
};
use archipelago_crash_tests::loaded_volumes::LoadedVolumes;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::seed;
use archipelago_crash_tests::small_pool::{MIB, Writer, Written};
use archipelago_crash_tests::verifier::Load;

const GUESTS: usize = 5;
/// Size of a guest's disk: together more than the file system has.
const DISK: usize = 512 << 20;
/// Longest time that a guest waits before all do.
const FILL_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks at the guests of a full file system.
const LOOK: Duration = Duration::from_millis(50);
/// Longest time of anything else.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What fails at once fails within this, also on a machine that does something else. A write that waited would wait until there is room.
const AT_ONCE: Duration = Duration::from_secs(10);
/// What a guest sees then: an I/O error.
const IOERR: i32 = -nix::libc::EIO;
/// What each guest does at least in the grown file system.
const REQUESTS: u64 = 200;

/// Waits until all guests wait for space again.
fn all_wait(node: &Node, volumes: &mut LoadedVolumes) -> Result<()> {
    let missing = || format!("not all of {GUESTS} guests wait for space");
    wait_until(TIMEOUT, missing, || {
        volumes.check()?;
        Ok((waiting(node)? == GUESTS).then_some(()))
    })
}

/// Waits for `time`, in which no guest may fail.
fn hold(volumes: &mut LoadedVolumes, time: Duration) -> Result<()> {
    let deadline = now() + time;
    while now() < deadline {
        volumes.check()?;
        pause(LOOK);
    }
    Ok(())
}

/// Names of the volumes.
fn volumes() -> Vec<String> {
    (0..GUESTS).map(|guest| format!("disk-{guest}")).collect()
}

#[expect(clippy::print_stdout, reason = "the figures of a run")]
fn five_guests(kind: Kind, placement: &str) -> Result<()> {
    let Some(pool) = GrowingPool::new(kind)? else {
        return Ok(());
    };
    let node = Node::builder(placement).pool(&pool.directory()).start()?;
    let load = Load {
        timeout: FILL_TIMEOUT + full_time() + TIMEOUT,
        ..Load::default()
    };
    let began = now();
    let mut loaded = LoadedVolumes::start(&node, GUESTS, DISK, load, seed())?;
    pool.filled(&node, GUESTS, || {
        loaded.check()?;
        Ok(loaded.done())
    })?;
    println!(
        "{kind}: full after {:?}, {} requests",
        began.elapsed(),
        loaded.done()
    );

    hold(&mut loaded, full_time() / 3)?;
    replace_process(&node, "mapper")?;
    all_wait(&node, &mut loaded)?;
    hold(&mut loaded, full_time() / 3)?;
    node.call(&["node", "stop"])?;
    node.call(&["node", "start"])?;
    all_wait(&node, &mut loaded)?;
    replace_process(&node, "endpoint")?;
    all_wait(&node, &mut loaded)?;
    hold(&mut loaded, full_time() / 3)?;

    let took = grow(&pool, || loaded.served(1).map(drop))?;
    println!("{kind}: all guests continue {took:?} after the file system was grown");
    loaded.served(REQUESTS)?;
    let done = loaded.done();
    loaded.finish()?;
    println!("{kind}: {done} requests, all verified");
    pool.finish(&node, &volumes())
}

#[test]
fn five_guests_fill_an_ext4_and_go_on_when_it_is_grown() -> Result<()> {
    five_guests(Kind::Ext4, "fused")
}

#[test]
fn five_guests_fill_an_xfs_and_go_on_when_it_is_grown() -> Result<()> {
    five_guests(Kind::Xfs, "split")
}

#[test]
fn five_guests_fill_a_tmpfs_and_go_on_when_it_is_grown() -> Result<()> {
    five_guests(Kind::Tmpfs, "split")
}

#[test]
fn five_guests_fill_a_btrfs_and_go_on_when_it_is_grown() -> Result<()> {
    five_guests(Kind::Btrfs, "fused")
}

/// With the policy `report` every write without space fails at once, and is in the log; then all are served.
fn five_guests_report(kind: Kind, placement: &str) -> Result<()> {
    let Some(pool) = GrowingPool::new(kind)? else {
        return Ok(());
    };
    let node = Node::builder(placement).pool(&pool.directory()).start()?;
    let (mut guests, mut sockets) = (Vec::new(), Vec::new());
    for name in volumes() {
        let size = DISK.to_string();
        let create = [
            "volume",
            "create",
            &name,
            "--size",
            &size,
            "--on-full",
            "report",
        ];
        node.call(&create)?;
        let socket = node.attach(&name)?;
        guests.push(Writer::connect(&socket)?);
        sockets.push(socket.display().to_string());
    }
    let mut full = 0;
    for _ in 0..DISK / MIB {
        full = 0;
        for guest in &mut guests {
            let written = guest.write()?;
            if written.result != 0 {
                fails_at_once(written)?;
                full += 1;
            }
        }
        if full == GUESTS {
            break;
        }
    }
    ensure!(full == GUESTS, "{full} of {GUESTS} guests found no space");
    let fail = |guests: &mut [Writer], time: Duration| {
        let deadline = now() + time;
        loop {
            for guest in &mut *guests {
                fails_at_once(guest.write()?)?;
            }
            if now() > deadline {
                return Ok::<_, anyhow::Error>(());
            }
            pause(LOOK);
        }
    };
    fail(&mut guests, full_time() / 3)?;
    replace_process(&node, "mapper")?;
    fail(&mut guests, full_time() / 3)?;
    node.call(&["node", "stop"])?;
    node.call(&["node", "start"])?;
    fail(&mut guests, full_time() / 3)?;
    let log = std::fs::read_to_string(node.root().join("run/archipelagod.log"))?;
    for socket in &sockets {
        let of = |line: &&str| line.contains(socket) && line.contains("no space left");
        let logged = log.lines().filter(of).count();
        // Of each of three processes the first, and the sums of each 10 s.
        let most = 3 * (2 + usize::try_from(full_time().as_secs() / 10)?);
        ensure!(
            (1..=most).contains(&logged),
            "{logged} lines of {socket}: {log}"
        );
    }
    pool.make_room()?;
    for guest in &mut guests {
        guest.write_within(GROWN_WITHIN)?;
    }
    guests.iter_mut().try_for_each(Writer::check)?;
    drop(guests);
    pool.finish(&node, &volumes())
}

fn fails_at_once(written: Written) -> Result<()> {
    ensure!(written.result == IOERR, "{written:?}");
    ensure!(written.after < AT_ONCE, "{written:?}");
    Ok(())
}

#[test]
fn five_guests_of_a_full_ext4_that_report_fail_at_once_and_are_served_after() -> Result<()> {
    five_guests_report(Kind::Ext4, "split")
}

#[test]
fn five_guests_of_a_full_tmpfs_that_report_fail_at_once_and_are_served_after() -> Result<()> {
    five_guests_report(Kind::Tmpfs, "fused")
}
