//! What processes of a server use.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// What processes used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// CPU time of all of them, to the nanosecond.
    pub cpu: Duration,
    /// Largest resident memory of all of them together, in KiB.
    pub rss_kib: u64,
}

/// What the processes `pids` used so far.
///
/// # Errors
/// If one of them does not exist any more.
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
