//! Five guests fill a pool's file system, wait while processes die and the node is restarted, and continue when the file system is grown.
//!
//! `GROWN_SECONDS` says for how long it is full (6).

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::waiting::{now, pause, wait_until};
use archipelago_crash_tests::filesystem::{FileSystem, Kind};
use archipelago_crash_tests::loaded_volumes::LoadedVolumes;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::small_pool::{MIB, Writer, Written};
use archipelago_crash_tests::verifier::Load;
use archipelago_crash_tests::{seed, skip};
use serde_json::Value;

const GUESTS: usize = 5;
const GIB: u64 = 1 << 30;
/// Size of a guest's disk: together more than the file system has.
const DISK: usize = 512 << 20;
/// Longest time from an empty file system to a full one.
const FILL_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks at the guests of a full file system.
const LOOK: Duration = Duration::from_millis(50);
/// Longest time of anything else.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for what the kernel and the tools take to grow a file system, and for a guest to continue.
const GOES_ON: Duration = Duration::from_secs(10);
/// What fails at once fails within this, also on a machine that does something else.
const AT_ONCE: Duration = Duration::from_secs(1);
/// What a guest sees then: an I/O error.
const IOERR: i32 = -nix::libc::EIO;
/// What each guest does at least in the grown file system.
const REQUESTS: u64 = 200;

/// For how long the file system is full.
fn full_time() -> Duration {
    let seconds = std::env::var("GROWN_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(6))
}

/// How many volumes wait for space, as the status says.
fn waiting(node: &Node) -> Result<usize> {
    let status = node.status()?;
    let waits = status["waits"].as_array().context("a list of waits")?;
    let mut volumes: Vec<&str> = waits
        .iter()
        .filter(|wait| {
            wait["what"]
                .as_str()
                .is_some_and(|what| what.contains("space"))
        })
        .filter_map(|wait| wait["volume"].as_str())
        .collect();
    volumes.sort_unstable();
    volumes.dedup();
    Ok(volumes.len())
}

/// Waits until all guests wait for space.
fn all_wait(node: &Node, volumes: &mut LoadedVolumes, timeout: Duration) -> Result<()> {
    let missing = || format!("not all of {GUESTS} guests wait for space");
    wait_until(timeout, missing, || {
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

/// The data process, by its status.
fn another_process(node: &Node, role: &str) -> Result<()> {
    let killed = node.process_of(role)?;
    Node::kill(killed)?;
    let pid = Value::from(killed.as_raw());
    node.wait_for_status("a successor of the killed process", |status| {
        let processes = status["processes"].as_array();
        processes.is_some_and(|all| {
            all.iter()
                .all(|process| process["serving"] == true && process["pid"] != pid)
        })
    })
}

/// A file system of 1 GiB; half of it for the pool, if it cannot grow. `None`: not to be had here.
#[expect(clippy::print_stdout, reason = "what differs here")]
fn file_system(kind: Kind) -> Result<Option<FileSystem>> {
    let files = match FileSystem::new(kind, GIB) {
        Ok(files) => files,
        Err(error) => {
            skip(&format!("no {kind}: {error:#}"))?;
            return Ok(None);
        }
    };
    if !files.can_grow()? {
        println!("{kind}: root may not grow it here; a file beside the pool is removed instead");
        files.leave(files.free()? / 2)?;
    }
    Ok(Some(files))
}

fn make_room(files: &FileSystem) -> Result<()> {
    if files.can_grow()? {
        files.grow(4 * GIB)
    } else {
        files.remove_ballast()
    }
}

/// Detaches and stops, and has pool and file system checked.
fn finish(node: &Node, files: FileSystem) -> Result<()> {
    for guest in 0..GUESTS {
        node.detach(&format!("disk-{guest}"))?;
    }
    node.call(&["doctor"])?;
    node.call(&["node", "stop"])?;
    node.call(&["doctor"])?;
    files.finish()
}

#[expect(clippy::print_stdout, reason = "the figures of a run")]
fn five_guests(kind: Kind, placement: &str) -> Result<()> {
    let Some(files) = file_system(kind)? else {
        return Ok(());
    };
    let node = Node::builder(placement)
        .pool(&files.path().join("pool"))
        .start()?;
    let load = Load {
        timeout: FILL_TIMEOUT + full_time() + TIMEOUT,
        ..Load::default()
    };
    let began = now();
    let mut volumes = LoadedVolumes::start(&node, GUESTS, DISK, load, seed())?;
    all_wait(&node, &mut volumes, FILL_TIMEOUT)?;
    println!(
        "{kind}: full after {:?}, {} requests",
        began.elapsed(),
        volumes.done()
    );

    hold(&mut volumes, full_time() / 3)?;
    another_process(&node, "mapper")?;
    all_wait(&node, &mut volumes, TIMEOUT)?;
    hold(&mut volumes, full_time() / 3)?;
    node.call(&["node", "stop"])?;
    node.call(&["node", "start"])?;
    all_wait(&node, &mut volumes, TIMEOUT)?;
    another_process(&node, "endpoint")?;
    all_wait(&node, &mut volumes, TIMEOUT)?;
    hold(&mut volumes, full_time() / 3)?;

    let grown = now();
    make_room(&files)?;
    volumes.served(1)?;
    let took = grown.elapsed();
    println!("{kind}: all guests continue {took:?} after the file system was grown");
    ensure!(took < GOES_ON, "the guests went on after {took:?}");
    volumes.served(REQUESTS)?;
    let done = volumes.done();
    volumes.finish()?;
    println!("{kind}: {done} requests, all verified");
    finish(&node, files)
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

/// With the policy `report` every write without space fails at once, and is in the log; then all are served.
fn five_guests_report(kind: Kind, placement: &str) -> Result<()> {
    let Some(files) = file_system(kind)? else {
        return Ok(());
    };
    let node = Node::builder(placement)
        .pool(&files.path().join("pool"))
        .start()?;
    let (mut guests, mut sockets) = (Vec::new(), Vec::new());
    for guest in 0..GUESTS {
        let (name, size) = (format!("disk-{guest}"), DISK.to_string());
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
    another_process(&node, "mapper")?;
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
    make_room(&files)?;
    for guest in &mut guests {
        guest.write_within(GOES_ON)?;
    }
    guests.iter_mut().try_for_each(Writer::check)?;
    drop(guests);
    finish(&node, files)
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
