//! File descriptors of this program's processes: how many a process may have, and how many it has.
//!
//! Each process raises its soft limit to the hard one at its start, before anything derives its size from the limit.

use archipelago_api::types::Descriptors;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The descriptors of the process `pid`, if the kernel shows them to this process.
pub(crate) fn descriptors_of(pid: u32) -> Option<Descriptors> {
    let used = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    Some(Descriptors {
        used: u64::try_from(used).ok()?,
        allowed: soft_limit(&limits)?,
    })
}

/// The soft limit of open files, from the text of `/proc/PID/limits`.
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Raises the soft limit of this process, and of those that it will start, to the hard limit. Returns the limit from now on.
pub(crate) fn raise() -> rlim_t {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(errno) => {
            tracing::warn!("the limit of open files stays at {soft}, not {hard}: {errno}");
            soft
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_its_own() {
        let before = descriptors_of(std::process::id()).unwrap();
        assert!(
            before.used > 2 && before.allowed >= before.used,
            "{before:?}"
        );
        let text = "Limit Soft Hard Units\nMax open files            1024  4096  files\n";
        assert_eq!(soft_limit(text), Some(1024));
        assert_eq!(soft_limit(""), None);
    }
}
