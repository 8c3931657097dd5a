//! Five QEMU guests fill a pool's file system. It stays full while processes die and the node is restarted, and is grown at last.
//!
//! Each guest has a file system of its own and verified load behind it. With the policy `wait` no guest sees an error, also while
//! the pool is full; with `report` each write that needs space fails at once. `GROWN_SECONDS` says for how long the pool is full (6).

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]
#![expect(clippy::print_stdout, reason = "the figures of a run")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::waiting::{now, pause, wait_until};
use archipelago_crash_tests::filesystem::Kind;
use archipelago_crash_tests::growing_pool::{
    GrowingPool, full_time, grow, replace_process, waiting,
};
use archipelago_crash_tests::node::Node;
use archipelago_vm_tests::guest::{Disk, Guest};

/// Runs in the guests.
const VERIFIER: &str = env!("CARGO_BIN_EXE_disk-verifier");
const GUESTS: usize = 5;
/// Size of a guest's disk: each could fill the pool alone.
const DISK: usize = 2 << 30;
/// What the verified load works on: one MiB behind the file system, with two workers.
const PLACE: &str = "/dev/vda:1879048192:1048576:2";
/// What is free in the pool's file system: for the guests' file systems and some files, or for some MiB of each.
const SPACE: u64 = 384 << 20;
const SPACE_OF_DISKS: u64 = 96 << 20;
/// File systems of the guests, in turn, with 1.5 GiB of the disk.
const FILE_SYSTEMS: [&str; 2] = [
    "mkfs.ext4 -q -F /dev/vda 1536M && mount -t ext4 /dev/vda /mnt",
    "mkfs.xfs -q -f -d size=1536m /dev/vda && mount -t xfs /dev/vda /mnt",
];
const CHECKS: [&str; 2] = ["check_fs /dev/vda", "check_xfs /dev/vda"];
/// Longest time until no guest waits any more, as they connect again once a second.
const GOING_ON: Duration = Duration::from_secs(60);
/// A write that fails at once is answered within this on a console of an emulated guest.
const REFUSED_WITHIN: Duration = Duration::from_secs(8);
/// Between two looks at the guests of a full pool.
const LOOK: Duration = Duration::from_millis(500);

/// Calls `act` for all at once.
fn each<T: Sync, R: Send>(
    all: &[T],
    act: impl Fn(usize, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let act = &act;
    std::thread::scope(|scope| {
        let start = |(index, one)| scope.spawn(move || act(index, one));
        let threads: Vec<_> = all.iter().enumerate().map(start).collect();
        let results = threads.into_iter().enumerate().map(|(index, thread)| {
            let result = thread.join().expect("failures are reported, not panics");
            result.with_context(|| format!("guest {index}"))
        });
        results.collect()
    })
}

fn volumes() -> Vec<String> {
    (0..GUESTS).map(|guest| format!("disk-{guest}")).collect()
}

/// Sockets of the volumes, which have the policy `on_full`.
fn attach(node: &Node, on_full: &str) -> Result<Vec<PathBuf>> {
    let size = DISK.to_string();
    let attach = |name: &String| {
        node.call(&[
            "volume",
            "create",
            name,
            "--size",
            &size,
            "--on-full",
            on_full,
        ])?;
        node.attach(name)
    };
    volumes().iter().map(attach).collect()
}

fn boot(sockets: &[PathBuf]) -> Result<Vec<Guest>> {
    each(sockets, |_, socket| {
        let guest = Guest::builder().disk(Disk::new(socket));
        guest.program(Path::new(VERIFIER)).boot()
    })
}

/// How many files the guests have written; they have seen no error.
fn files(guests: &[Guest]) -> Result<u64> {
    let check = "no_errors && test ! -e /tmp/files.result && test ! -e /tmp/verifier/result && cat /tmp/files.done";
    let files = each(guests, |_, guest| {
        Ok(guest.run(check)?.trim().parse::<u64>()?)
    })?;
    Ok(files.iter().sum())
}

/// For a third of the time of a full pool all guests wait, and see no error. Where the file system finds some space that it had set
/// aside, they fill that too. By its end each QEMU has connected again for good: QEMU 7.2 loses a disk whose connection ends once more
/// before (docs/attach.md, "A fault of QEMU").
fn hold(pool: &GrowingPool, node: &Node, guests: &[Guest]) -> Result<()> {
    let deadline = now() + full_time() / 3;
    while now() < deadline {
        pool.filled(node, GUESTS, || files(guests))?;
        pause(LOOK);
    }
    Ok(())
}

/// Files and requests that each guest has done.
fn progress(guests: &[Guest]) -> Result<Vec<(u64, u64)>> {
    each(guests, |_, guest| {
        let text = guest.run("cat /tmp/files.done; cut -d ' ' -f 1 /tmp/verifier/progress")?;
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        match numbers.as_deref() {
            Ok([files, rounds]) => Ok((*files, *rounds)),
            _ => anyhow::bail!("the guest reports no progress: {text}"),
        }
    })
}

/// The state of a guest that makes no progress: its requests in flight, and the counters of its endpoint.
fn state_of(node: &Node, guest: &Guest) -> String {
    let of_guest =
        guest.run("cat /tmp/verifier/progress /sys/block/vda/inflight; dmesg | tail -n 5");
    format!("the guest: {of_guest:?}; the node: {:?}", node.status())
}

/// The pool's file system. Emulated guests take minutes to fill all of it, so most of it is taken unless a time is asked for.
fn small_pool(kind: Kind, space: u64) -> Result<Option<GrowingPool>> {
    let pool = GrowingPool::new(kind)?;
    if std::env::var_os("GROWN_SECONDS").is_none()
        && let Some(pool) = &pool
    {
        pool.leave(space)?;
    }
    Ok(pool)
}

fn five_guests_wait(kind: Kind, placement: &str) -> Result<()> {
    let Some(pool) = small_pool(kind, SPACE)? else {
        return Ok(());
    };
    let node = Node::builder(placement).pool(&pool.directory()).start()?;
    let guests = boot(&attach(&node, "wait")?)?;
    let began = now();
    each(&guests, |index, guest| {
        guest.run(FILE_SYSTEMS[index % 2])?;
        guest.run(&format!("start_verifier {index} {PLACE} && start_files"))
    })?;
    pool.filled(&node, GUESTS, || files(&guests))?;
    println!("{kind}: full after {:?}", began.elapsed());

    hold(&pool, &node, &guests)?;
    replace_process(&node, "mapper")?;
    hold(&pool, &node, &guests)?;
    node.call(&["node", "stop"])?;
    node.call(&["node", "start"])?;
    hold(&pool, &node, &guests)?;
    Node::kill(node.daemon()?)?;
    node.restart()?;
    hold(&pool, &node, &guests)?;
    replace_process(&node, "endpoint")?;
    hold(&pool, &node, &guests)?;

    let before = progress(&guests)?;
    let took = grow(&pool, || {
        let missing = || "guests still wait for space".to_owned();
        wait_until(GOING_ON, missing, || {
            Ok((waiting(&node)? == 0).then_some(()))
        })
    })?;
    println!("{kind}: no guest waits {took:?} after the file system was grown");
    let files = each(&guests, |index, guest| {
        let (files, rounds) = before[index];
        let progress = format!("await_files {} && await_verifier {}", files + 2, rounds + 2);
        let progressed = guest.run(&progress);
        progressed.with_context(|| state_of(&node, guest))?;
        guest.run("end_verifier && end_files")
    })?;
    each(&guests, |index, guest| {
        guest.run(&format!(
            "umount /mnt && {} && no_errors",
            CHECKS[index % 2]
        ))
    })?;
    println!("{kind}: files of a MiB, all verified: {files:?}");
    drop(guests);
    pool.finish(&node, &volumes())
}

/// For a third of the time of a full pool writes fail at once. The file system may find some space that it had set aside.
fn refused(guests: &[Guest]) -> Result<()> {
    let deadline = now() + full_time() / 3;
    loop {
        each(guests, |_, guest| {
            let began = now();
            guest.run("fill_disk")?;
            let took = began.elapsed();
            ensure!(took < REFUSED_WITHIN, "an error after {took:?}");
            Ok(())
        })?;
        if now() > deadline {
            return Ok(());
        }
        pause(LOOK);
    }
}

/// The failed writes of each socket are in the log, and do not fill it.
fn check_log(node: &Node, sockets: &[PathBuf], full: Duration) -> Result<()> {
    let log = std::fs::read_to_string(node.root().join("run/archipelagod.log"))?;
    // Of each of three processes the first, and the sums of each 10 s.
    let most = 3 * (2 + usize::try_from(full.as_secs() / 10)?);
    for socket in sockets {
        let socket = socket.display().to_string();
        let of = |line: &&str| line.contains(&socket) && line.contains("no space left");
        let lines = log.lines().filter(of).count();
        ensure!(
            (1..=most).contains(&lines),
            "{lines} lines of {socket}, of at most {most}: {log}"
        );
    }
    Ok(())
}

fn five_guests_report(kind: Kind, placement: &str) -> Result<()> {
    let Some(pool) = small_pool(kind, SPACE_OF_DISKS)? else {
        return Ok(());
    };
    let node = Node::builder(placement).pool(&pool.directory()).start()?;
    let sockets = attach(&node, "report")?;
    let guests = boot(&sockets)?;
    let began = now();
    let written = each(&guests, |_, guest| guest.run("fill_disk"))?;
    let full = now();
    println!("{kind}: full after {:?}, MiB: {written:?}", began.elapsed());
    refused(&guests)?;
    replace_process(&node, "mapper")?;
    refused(&guests)?;
    node.call(&["node", "stop"])?;
    node.call(&["node", "start"])?;
    refused(&guests)?;
    check_log(&node, &sockets, full.elapsed())?;
    pool.make_room()?;
    each(&guests, |_, guest| {
        guest.run("check_disk && verify /dev/vda 8m")
    })?;
    drop(guests);
    pool.finish(&node, &volumes())
}

#[test]
fn five_guests_fill_an_ext4_and_go_on_when_it_is_grown() -> Result<()> {
    five_guests_wait(Kind::Ext4, "fused")
}

#[test]
fn five_guests_fill_an_xfs_and_go_on_when_it_is_grown() -> Result<()> {
    five_guests_wait(Kind::Xfs, "split")
}

#[test]
fn five_guests_of_a_full_xfs_that_report_fail_at_once_and_are_served_after() -> Result<()> {
    five_guests_report(Kind::Xfs, "fused")
}
