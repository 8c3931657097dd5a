//! A process that write-back of the kernel depends on.

use std::io;

/// Of `linux/prctl.h`.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Declares that this thread, and the threads and processes that it starts, serve the write-back of this host. The kernel then satisfies
/// their memory allocations without write-back, which would depend on them (prctl(2), `PR_SET_IO_FLUSHER`, Linux 5.6).
///
/// # Errors
/// `EPERM` without the capability `CAP_SYS_RESOURCE`.
pub fn set_io_flusher() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    let done = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
