//! The system calls that one thread makes, counted by strace.
//!
//! strace stops the thread at each call, which takes some 10 us. So thread and guest take turns in another way than untraced: the calls for
//! each request differ by some tenths. A call that is made for each request is seen all the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::waiting::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for strace to attach to a thread, or to end.
const TIMEOUT: Duration = Duration::from_secs(10);

/// strace, attached to a thread. Dropped: detached.
#[derive(Debug)]
pub struct SystemCalls {
    strace: Child,
    summary: PathBuf,
    _dir: TempDir,
}

impl SystemCalls {
    /// Counts the calls of `thread` from now on.
    ///
    /// # Errors
    /// If there is no strace, or strace may not trace the thread.
    pub fn of(thread: Pid) -> Result<SystemCalls> {
        let dir = tempfile::tempdir()?;
        let summary = dir.path().join("summary");
        let strace = Command::new("strace")
            .args(["-c", "-U", "calls,name", "-p", &thread.to_string(), "-o"])
            .arg(&summary)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start strace")?;
        let mut calls = SystemCalls {
            strace,
            summary,
            _dir: dir,
        };
        let status = format!("/proc/{thread}/task/{thread}/status");
        let missing = || format!("strace has not attached to {thread}");
        wait_until(TIMEOUT, missing, || {
            let ended = calls.strace.try_wait()?;
            ensure!(ended.is_none(), "strace may not trace {thread}: {ended:?}");
            Ok(is_traced(&fs::read_to_string(&status)?).then_some(()))
        })?;
        Ok(calls)
    }

    /// How often the thread has made which call.
    ///
    /// # Errors
    /// If strace does not end.
    pub fn finish(mut self) -> Result<BTreeMap<String, u64>> {
        self.detach()?;
        let missing = || "strace has not ended".to_owned();
        wait_until(TIMEOUT, missing, || Ok(self.strace.try_wait()?))?;
        Ok(parse(&fs::read_to_string(&self.summary)?))
    }

    fn detach(&self) -> Result<()> {
        let strace = i32::try_from(self.strace.id()).context("a process id")?;
        Ok(kill(Pid::from_raw(strace), Signal::SIGINT)?)
    }
}

impl Drop for SystemCalls {
    fn drop(&mut self) {
        if matches!(self.strace.try_wait(), Ok(None)) {
            // The thread goes on: strace detaches.
            self.detach().ok();
            self.strace.wait().ok();
        }
    }
}

/// Whether a `status` of proc(5) names a tracer.
fn is_traced(status: &str) -> bool {
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}

/// The calls in strace's summary: lines of a number and a name, but for the sum.
fn parse(summary: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (number, name) = line.trim().split_once(' ')?;
        let name = name.trim();
        (name != "total").then_some((name.to_owned(), number.parse().ok()?))
    };
    summary.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_calls_by_name() {
        let summary = "    calls syscall\n--------- ----------------\n       10 io_uring_enter\n        2 write\n--------- ----------------\n       12 total\n";
        let calls = parse(summary);
        assert_eq!(calls.len(), 2);
        assert_eq!((calls["io_uring_enter"], calls["write"]), (10, 2));
        assert!(is_traced("Name:\tx\nTracerPid:\t7\n") && !is_traced("TracerPid:\t0\n"));
    }
}
