//! The limit of threads is reached: requests that need a thread wait, control commands work or report the limit, and everything continues by
//! itself when there are threads again.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use archipelago_bench::disk::Op;
use archipelago_bench::program::stdout_of;
use archipelago_crash_tests::disk::{Disk, InFlight};
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::skip;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Pid, geteuid};

/// In no table of users, and without other processes: threads are counted by user.
const USER: u32 = 61_235;
const GIB: usize = 1 << 30;
const BLOCK: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(30);
/// The daemon has three threads, a data process nine (a worker of the kernel is one) and one for each attached volume, the
/// command one: too few for the data process, and then one more at a time up to those of two attached volumes.
const LIMITS: [u64; 4] = [5, 13, 14, 15];

/// Limits the threads of the user, for process `pid` and the processes that it starts.
fn limit(pid: Pid, threads: u64) -> Result<()> {
    let mut prlimit = Command::new("prlimit");
    prlimit
        .args(["--pid", &pid.to_string()])
        .uid(USER)
        .gid(USER);
    stdout_of(prlimit.arg(format!("--nproc={threads}:"))).map(drop)
}

/// Whether a command was carried out: if not, it says that there are no threads.
fn carried_out(node: &Node, arguments: &[&str]) -> Result<bool> {
    let output = node.output(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() || said.contains("no thread") && said.contains("TasksMax"),
        "{arguments:?}: {output:?}"
    );
    Ok(output.status.success())
}

#[test]
fn without_threads_guests_wait_commands_say_so_and_all_goes_on_by_itself() -> Result<()> {
    if !geteuid().is_root() {
        return skip("only root can become a plain user, whom the limit of threads binds");
    }
    let node = Node::builder("fused").user(USER).start()?;
    let socket = node.create("disk", 4 * GIB)?;
    node.call(&["volume", "create", "more", "--size", "1G"])?;
    let mut disk = Disk::connect(&socket, 1, BLOCK, InFlight::Tracked, TIMEOUT)?;
    let daemon = node.daemon()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NPROC)?;
    for threads in LIMITS {
        limit(daemon, threads)?;
        Node::kill(node.process_of("blocker")?)?;
        // A hole: the file system allocates, which may block, and so needs a worker.
        disk.submit(0, Op::Write, threads << 24, BLOCK)?;
        disk.kick()?;
        let listed = carried_out(&node, &["volume", "list"])?;
        ensure!(
            listed == (threads > LIMITS[0]),
            "{threads} threads: listed: {listed}"
        );
        let status = node.call(&["node", "status"])?;
        ensure!(listed || status.contains("no thread"), "{status}");
        let attached = listed && carried_out(&node, &["volume", "attach", "more"])?;
        println!("{threads} threads: listed: {listed}, attached: {attached}");
        limit(daemon, hard)?;
        node.wait_for_status("a data process", |_| node.process_of("blocker").is_ok())?;
        if let Ok(process) = node.process_of("blocker") {
            limit(process, hard)?;
        }
        let result = disk.answer(TIMEOUT)?;
        ensure!(result == 0, "{threads} threads: the write failed: {result}");
        disk.run(Op::Flush, 0, 0, TIMEOUT)?;
        if attached {
            node.detach("more")?;
        }
    }
    let log = std::fs::read_to_string(node.root().join("run/archipelagod.log"))?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}
