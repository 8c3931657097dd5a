//! Other programs, run to their ends within a deadline.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::waiting::wait_until;

/// Longest time for a program: `node start` gives up after 60 s, `node stop` ends whatever hangs within 90 s.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A process that is killed and reaped when it is dropped.
#[derive(Debug)]
pub(crate) struct Guarded(pub(crate) Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs `command` to its end, without an input, however it ends.
///
/// # Errors
/// If it cannot be run, or has not ended after [`DEADLINE`]: it is killed then.
pub fn output(command: &mut Command) -> Result<Output> {
    output_within(command, DEADLINE)
}

/// The same with another deadline.
///
/// # Errors
/// As [`output`].
pub fn output_within(command: &mut Command, deadline: Duration) -> Result<Output> {
    // Files, not pipes: nobody has to read them while the program runs, and what it leaves running may keep them.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let child = command
        .spawn()
        .with_context(|| format!("run {command:?}"))?;
    let mut child = Guarded(child);
    let unfinished = || format!("{command:?} has not ended");
    let status: ExitStatus = wait_until(deadline, unfinished, || Ok(child.0.try_wait()?))?;
    Ok(Output {
        status,
        stdout: all_of(&mut stdout)?,
        stderr: all_of(&mut stderr)?,
    })
}

/// Runs `command` until it ends; returns its output.
///
/// # Errors
/// As [`output`]; or if it fails, with its error output.
pub fn stdout_of(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn all_of(file: &mut File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_killed_and_named() {
        let mut command = Command::new("sleep");
        let error = output_within(command.arg("600"), Duration::from_millis(50)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(r#""sleep" "600" has not ended"#), "{text}");
    }

    #[test]
    fn a_program_that_leaves_another_one_running_has_ended() {
        let mut command = Command::new("sh");
        let left = command.args(["-c", "sleep 5 & echo $!"]);
        let left = output_within(left, Duration::from_secs(4)).unwrap();
        let pid = String::from_utf8(left.stdout).unwrap();
        kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let error = stdout_of(Command::new("sh").args(["-c", "echo no room >&2; exit 3"]));
        assert!(error.unwrap_err().to_string().ends_with(": no room"));
    }
}
