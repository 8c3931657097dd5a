//! What a failed system call means to the other peers.
//!
//! | errno | code | what follows |
//! |---|---|---|
//! | ENOSPC, EDQUOT | `no-space` | a guest's write waits for room |
//! | EMFILE, ENFILE | `no-descriptors` | waits |
//! | ENOMEM | `no-memory` | waits |
//! | EFBIG | `too-large` | fails: a limit of the file system or of the process (RLIMIT_FSIZE), which room does not lift |
//! | ESTALE | `stale` | the volume stops |
//! | ENOENT | `not-found` | the caller decides: a hole, or an object that is missing |
//! | EROFS | `read-only` | fails |
//! | EINVAL | `invalid` | fails |
//! | any other | `io` | fails |
//!
//! A sync that fails is final, whatever the reason, but for ESTALE.

use std::io;
use std::path::Path;

use archipelago_protocol::{Error, ErrorCode};

/// The code for a failed read, write, open or the like.
pub(crate) fn code_of(error: &io::Error) -> ErrorCode {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorCode::NoSpace,
        Some(libc::EMFILE | libc::ENFILE) => ErrorCode::NoDescriptors,
        Some(libc::ENOMEM) => ErrorCode::NoMemory,
        Some(libc::EFBIG) => ErrorCode::TooLarge,
        Some(libc::ESTALE) => ErrorCode::Stale,
        Some(libc::ENOENT) => ErrorCode::NotFound,
        Some(libc::EROFS) => ErrorCode::ReadOnly,
        Some(libc::EINVAL) => ErrorCode::Invalid,
        _ => ErrorCode::Io,
    }
}

/// The error of a failed call on `path`; `what` was to be done with it.
pub(crate) fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(
        code_of(error),
        format!("{what} `{}`: {error}", path.display()),
    )
}

/// The error of a failed call for the pool in `directory`.
pub(crate) fn failed_for_pool(what: &str, directory: &Path, error: &io::Error) -> Error {
    failed(&format!("{what} for pool"), directory, error)
}

/// Why a job of a thread failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) code: ErrorCode,
    /// It was a sync, which may have dropped what others wrote.
    pub(crate) lost: bool,
}

impl From<ErrorCode> for Failed {
    fn from(code: ErrorCode) -> Self {
        Failed { code, lost: false }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        code_of(&error).into()
    }
}

impl Failed {
    /// A sync has failed.
    pub(crate) fn sync(error: &io::Error) -> Self {
        Failed {
            code: sync_code_of(error),
            lost: !is_of_one_file(error),
        }
    }
}

/// Whether a failed sync concerns the file that was synced, and no other: its file system had no room for it, or lost it.
/// Anything else may be the disk's cache, in which everybody's data is.
pub(crate) fn is_of_one_file(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::ESTALE)
    )
}

/// The code for a failed sync: final, whatever the reason.
pub(crate) fn sync_code_of(error: &io::Error) -> ErrorCode {
    match code_of(error) {
        ErrorCode::Stale => ErrorCode::Stale,
        _ => ErrorCode::SyncFailed,
    }
}

/// The error in the ring's result of a sync, if it failed.
pub(crate) fn sync_failure(result: i32) -> Option<ErrorCode> {
    let error = (result < 0).then(|| io::Error::from_raw_os_error(-result))?;
    Some(sync_code_of(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_become_codes() {
        for (errno, code, sync) in [
            (libc::ENOSPC, ErrorCode::NoSpace, ErrorCode::SyncFailed),
            (libc::EDQUOT, ErrorCode::NoSpace, ErrorCode::SyncFailed),
            (libc::EIO, ErrorCode::Io, ErrorCode::SyncFailed),
            (libc::ESTALE, ErrorCode::Stale, ErrorCode::Stale),
            (libc::EROFS, ErrorCode::ReadOnly, ErrorCode::SyncFailed),
            (
                libc::EMFILE,
                ErrorCode::NoDescriptors,
                ErrorCode::SyncFailed,
            ),
            (
                libc::ENFILE,
                ErrorCode::NoDescriptors,
                ErrorCode::SyncFailed,
            ),
            (libc::ENOMEM, ErrorCode::NoMemory, ErrorCode::SyncFailed),
            (libc::EFBIG, ErrorCode::TooLarge, ErrorCode::SyncFailed),
            (libc::ENOENT, ErrorCode::NotFound, ErrorCode::SyncFailed),
            (libc::EINVAL, ErrorCode::Invalid, ErrorCode::SyncFailed),
            (libc::EPERM, ErrorCode::Io, ErrorCode::SyncFailed),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(
                (code_of(&error), sync_code_of(&error)),
                (code, sync),
                "{error}"
            );
        }
    }
}
