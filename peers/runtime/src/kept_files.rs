//! Files that stay open as long as the ring exists in the kernel, which may be longer than its process exists; they are mostly locks.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::Submitter;

use crate::failure::RingFailure;

/// Slots of the fixed-file table.
const KEPT_FILES_MAX: u32 = 16;

/// The ring's fixed-file table, registered with the first file.
#[derive(Debug, Default)]
pub(crate) struct KeptFiles {
    registered: bool,
    count: u32,
}

impl KeptFiles {
    /// Puts `fd` into the table of `ring`, where it stays until the kernel has freed the ring, and closes the descriptor of this process.
    ///
    /// # Errors
    /// If the table is full, or the kernel refuses.
    pub(crate) fn keep(&mut self, ring: &Submitter<'_>, fd: OwnedFd) -> Result<(), RingFailure> {
        let failed = |error| RingFailure::new("io_uring_register", error);
        if !self.registered {
            ring.register_files_sparse(KEPT_FILES_MAX).map_err(failed)?;
            self.registered = true;
        }
        if self.count == KEPT_FILES_MAX {
            return Err(failed(io::Error::other(format!(
                "all {KEPT_FILES_MAX} slots of kept files are taken"
            ))));
        }
        ring.register_files_update(self.count, &[fd.as_raw_fd()])
            .map_err(failed)?;
        self.count += 1;
        Ok(())
    }

    /// Closes all of them before it returns; nothing is in flight in `ring`. The kernel itself closes them some time after the ring's end
    /// and does not report when, so until then the file system could not be unmounted.
    pub(crate) fn close(&mut self, ring: &Submitter<'_>) {
        if std::mem::take(&mut self.registered) {
            // Files that are not closed here are closed with the ring.
            let _later = ring.unregister_files();
            self.count = 0;
        }
    }
}
