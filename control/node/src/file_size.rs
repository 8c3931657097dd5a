//! The limit of file sizes: a file of the pool is as long as its volume, although it contains only few of the blocks.
//!
//! A write beyond the limit fails with `too-large`. By default, the kernel would end the process.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

/// Raises the soft limit of this process, and of those that it will start, to the hard limit, and makes the kernel report a write beyond it
/// instead of ending the process. Call it before other threads are started: they inherit the set of blocked signals.
pub(crate) fn raise() {
    let mut beyond = SigSet::empty();
    beyond.add(Signal::SIGXFSZ);
    if let Err(errno) = beyond.thread_block() {
        tracing::warn!("a write beyond the limit of file sizes ends the process: {errno}");
    }
    let limits = getrlimit(Resource::RLIMIT_FSIZE);
    let Ok((soft, hard)) = limits else { return };
    if soft != hard
        && let Err(errno) = setrlimit(Resource::RLIMIT_FSIZE, hard, hard)
    {
        tracing::warn!("the limit of file sizes stays at {soft}, not {hard}: {errno}");
    }
    if hard != RLIM_INFINITY {
        tracing::warn!(
            "files of this process may have {hard} bytes (LimitFSIZE): volumes that need longer ones get errors"
        );
    }
}
