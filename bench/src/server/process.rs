//! Other programs: run to their end, kept while they serve, and what they use.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// A server listens, and a command ends, within this time on a machine however loaded.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at another process.
const PAUSE: Duration = Duration::from_millis(2);

/// What processes used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// CPU time of all of them, to the nanosecond.
    pub cpu: Duration,
    /// Largest resident memory of all of them together, in KiB.
    pub rss_kib: u64,
}

/// A process that is killed and reaped when it is dropped.
#[derive(Debug)]
pub(super) struct Guarded(pub(super) Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Looks again and again until `look` finds something.
///
/// # Errors
/// Those of `look`; after a minute with nothing found, `what` is the case.
pub(super) fn wait<T>(
    what: impl Fn() -> String,
    look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    wait_within(DEADLINE, what, look)
}

#[expect(clippy::disallowed_methods, reason = "waits for another process")]
fn wait_within<T>(
    deadline: Duration,
    what: impl Fn() -> String,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "after {deadline:?} {}", what());
        std::thread::sleep(PAUSE);
    }
}

/// Runs a program to its end; what it printed.
///
/// # Errors
/// If it fails, with what it said, or does not end in time: then it is killed.
pub(super) fn output(command: &mut Command) -> Result<String> {
    output_within(command, DEADLINE)
}

fn output_within(command: &mut Command, deadline: Duration) -> Result<String> {
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
    let unfinished = || format!("{command:?} has not ended, and is killed");
    let status = wait_within(deadline, unfinished, || Ok(child.0.try_wait()?))?;
    ensure!(
        status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&all_of(&mut stderr)?).trim()
    );
    Ok(String::from_utf8(all_of(&mut stdout)?)?)
}

fn all_of(file: &mut File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits until `child` listens on `path`.
///
/// # Errors
/// If it ends instead, or does not listen in time.
pub(super) fn wait_for_socket(path: &Path, child: &mut Child) -> Result<()> {
    let silent = || format!("no server listens on {}", path.display());
    wait(silent, || {
        if fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            return Ok(Some(()));
        }
        if let Some(status) = child.try_wait()? {
            bail!("the server ended before it listened: {status}");
        }
        Ok(None)
    })
}

/// What the processes `pids` used so far.
///
/// # Errors
/// If one of them is gone.
pub fn usage_of(pids: &[u32]) -> Result<Usage> {
    let mut usage = Usage::default();
    for pid in pids {
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(*pid)?))
            .with_context(|| format!("find the CPU clock of process {pid}"))?;
        usage.cpu += Duration::from(clock_gettime(clock)?);
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        usage.rss_kib += peak
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .map_or(Ok(0), str::parse)?;
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
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
        let pid = output_within(left, Duration::from_secs(4)).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let error = output(Command::new("sh").args(["-c", "echo no room >&2; exit 3"]));
        assert!(error.unwrap_err().to_string().ends_with("failed: no room"));
    }

    #[test]
    fn cpu_time_is_finer_than_a_tick() {
        let used = || usage_of(&[std::process::id()]).unwrap().cpu;
        let before = used();
        let mut sum = 0_u64;
        while used() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(used() - before < Duration::from_millis(5));
    }
}
