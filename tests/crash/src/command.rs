//! Running a program to its end, within a deadline.

use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest time for a program of a test: `node start` gives up after 60 s, `node stop` ends whatever hangs within 90 s.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Runs `command` to its end, without an input, however it ends.
///
/// # Errors
/// If it cannot be run, or has not ended and closed its output after [`DEADLINE`]: it is killed then.
pub fn output(command: &mut Command) -> Result<Output> {
    output_within(command, DEADLINE)
}

/// The same with another deadline.
///
/// # Errors
/// As [`output`].
pub fn output_within(command: &mut Command, deadline: Duration) -> Result<Output> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {command:?}"))?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more after the deadline.
        let _late = sender.send(child.wait_with_output());
    });
    match ended.recv_timeout(deadline) {
        Ok(output) => Ok(output?),
        Err(_late) => {
            // Gone by itself is gone, too.
            let _gone = kill(pid, Signal::SIGKILL);
            bail!("HANG: {command:?} has not ended after {deadline:?}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_killed_and_named() {
        let mut command = Command::new("sleep");
        let error = output_within(command.arg("1000"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("\"sleep\" \"1000\""), "{error}");
        let mut command = Command::new("echo");
        assert_eq!(output(command.arg("all")).unwrap().stdout, b"all\n");
    }
}
