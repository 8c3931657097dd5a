//! How a ring is set up: with the features that suit a thread which waits for its own requests, or with fewer of them.
//!
//! | kernel | features |
//! |---|---|
//! | from 6.1 on | a single issuer, task work deferred until the thread waits |
//! | from 5.19 on | cooperative task work |
//! | from 5.11 on | none of these; needed are timeouts of waits, and completions that are never dropped |

use std::io;

use io_uring::IoUring;

use crate::failure::RingFailure;

/// A ring of `entries` for this thread. Falls back to fewer features on older kernels, and logs this once.
///
/// # Errors
/// The kernel's error.
pub(crate) fn set_up(entries: u32) -> Result<IoUring, RingFailure> {
    let base = || {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(entries * 4);
        builder
    };
    let deferred = base()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    // The error of an older kernel for an unknown flag; other errors do not depend on flags.
    let is_older = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let ring = deferred
        .or_else(|error| {
            if !is_older(&error) {
                return Err(error);
            }
            tracing::warn!(%error, "io_uring without deferred task work: kernel older than 6.1");
            base()
                .setup_coop_taskrun()
                .setup_taskrun_flag()
                .build(entries)
        })
        .or_else(|error| {
            if !is_older(&error) {
                return Err(error);
            }
            tracing::warn!(%error, "io_uring without cooperative task work: kernel older than 5.19");
            base().build(entries)
        })
        .map_err(|error| RingFailure::new("io_uring_setup", error))?;
    let parameters = ring.params();
    if !parameters.is_feature_ext_arg() || !parameters.is_feature_nodrop() {
        let older = io::Error::new(
            io::ErrorKind::Unsupported,
            "io_uring of this kernel is older than 5.11",
        );
        return Err(RingFailure::new("io_uring_setup", older));
    }
    Ok(ring)
}
