//! File descriptors: how many a pool may keep, and what happens when the process or the host has none left.
//!
//! A shortage of descriptors passes, so it is not a failure of storage: a call that needs one is repeated until it gets one, and a volume
//! only waits. Files that the pool keeps open without need are closed first ([`crate::files`]).

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::poll::PollTimeout;
use nix::sys::resource::{Resource, getrlimit};

/// First pause before a call is repeated: short, since closing an idle file takes only a moment.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest pause, so that a volume goes on well within a second once there are descriptors.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Most files kept open, whatever the limit of descriptors: with more, finding the oldest gets slow.
const FILES_MAX: u64 = 4096;
/// Fewest files kept open.
const FILES_MIN: u64 = 16;
/// One descriptor in so many is for files of the pool: a file is cheap to open again, but a front end must never be refused.
const FILES_SHARE: u64 = 8;

/// Calls of the whole process that wait for a descriptor now: the first and the last of an episode are logged.
static WAITING: AtomicU32 = AtomicU32::new(0);

/// Most files that a pool keeps open in a process with a limit of `limit` descriptors.
#[must_use]
pub fn files_kept(limit: u64) -> u64 {
    (limit / FILES_SHARE).clamp(FILES_MIN, FILES_MAX)
}

/// The limit of descriptors of this process.
pub(crate) fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// Whether `error` means that the process or the host has no descriptor left.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The pause before try number `tries` is followed by another one.
pub(crate) fn pause(tries: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << tries.min(16)).min(PAUSE_MAX)
}

/// Pauses, on a thread that may block.
pub(crate) fn wait(pause: Duration) {
    let pause = PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO);
    // A pause only: a signal that ends it early does no harm.
    let _rested = nix::poll::poll(&mut [], pause);
}

/// A call that waits for a descriptor. The episode lasts as long as there is one.
#[derive(Debug)]
pub(crate) struct Starved(());

impl Starved {
    pub(crate) fn new(error: &io::Error) -> Starved {
        // Only a count: it orders nothing else.
        if WAITING.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "no file descriptor is free ({} allowed, LimitNOFILE of the service): {error}; requests that need one wait",
                limit()
            );
        }
        Starved(())
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        if WAITING.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!("file descriptors are free again");
        }
    }
}

/// Repeats `call`, on a thread that may block, until it does not fail for lack of a descriptor.
pub(crate) fn retry_while_exhausted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let (mut tries, mut starved) = (0, None);
    loop {
        match call() {
            Err(error) if is_exhausted(&error) => {
                starved.get_or_insert_with(|| Starved::new(&error));
                wait(pause(tries));
                tries += 1;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_a_descriptor_is_repeated_and_any_other_failure_reported() {
        for errno in [libc::EMFILE, libc::ENFILE] {
            let mut left = 3;
            let result = retry_while_exhausted(|| {
                left -= 1;
                if left > 0 {
                    return Err(io::Error::from_raw_os_error(errno));
                }
                Ok(left)
            });
            assert_eq!(result.unwrap(), 0);
        }
        let failed =
            retry_while_exhausted(|| Err::<(), _>(io::Error::from_raw_os_error(libc::EIO)));
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn pauses_grow_to_half_a_second_and_files_take_an_eighth() {
        assert_eq!(pause(0), PAUSE_MIN);
        assert_eq!(pause(1), 2 * PAUSE_MIN);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
        for (limit, kept) in [(64, 16), (512, 64), (4096, 512), (1 << 20, 4096)] {
            assert_eq!(files_kept(limit), kept);
        }
    }
}
