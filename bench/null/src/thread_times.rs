//! The CPU time of a process by thread.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time that each thread of the process `pid` has used, by thread id, with the thread's name.
///
/// # Errors
/// If the process has ended.
pub fn thread_times(pid: i32) -> Result<BTreeMap<i32, (String, Duration)>> {
    let mut times = BTreeMap::new();
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
        let path = task?.path();
        let read = |file: &str| fs::read_to_string(path.join(file));
        // A thread that has ended meanwhile is none of them.
        let (Ok(name), Ok(schedstat)) = (read("comm"), read("schedstat")) else {
            continue;
        };
        let id = path.file_name().and_then(|name| name.to_str());
        let id = id.and_then(|name| name.parse().ok()).context("an id")?;
        // Documentation/scheduler/sched-stats.rst: nanoseconds on a CPU come first.
        let ns = schedstat.split(' ').next().and_then(|ns| ns.parse().ok());
        let time = Duration::from_nanos(ns.context("nanoseconds")?);
        times.insert(id, (name.trim().to_owned(), time));
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_has_used_more() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = nix::unistd::gettid().as_raw();
        let used = || thread_times(pid).unwrap()[&own].1;
        let before = used();
        let mut sum = 0_u64;
        while used() == before {
            sum = std::hint::black_box(sum + 1);
        }
    }
}
