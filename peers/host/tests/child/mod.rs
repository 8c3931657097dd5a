//! A test that runs in a process of its own, since what it tries cannot be undone: within a deadline, which names it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a child may take: it makes some system calls.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs the test `tests::inside` of this program with `variables`: what it said.
///
/// # Panics
/// If it fails, or does not end.
pub(crate) fn run_inside(variables: &[(&str, &Path)]) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::inside", "--nocapture"])
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more after the deadline.
        let _late = sender.send(child.wait_with_output());
    });
    let Ok(output) = ended.recv_timeout(DEADLINE) else {
        let _gone = kill(pid, Signal::SIGKILL);
        panic!("`inside` with {variables:?} has not ended after {DEADLINE:?}");
    };
    let output = output.unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{said}");
    said
}
