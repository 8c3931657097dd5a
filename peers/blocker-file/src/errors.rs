//! Maps failed system calls to error codes.
//!
//! | errno | code | what follows |
//! |---|---|---|
//! | ENOSPC, EDQUOT | `no-space` | a guest's write waits for space |
//! | EMFILE, ENFILE | `no-descriptors` | waits |
//! | ENOMEM | `no-memory` | waits |
//! | EFBIG | `too-large` | fails: a limit of the file system or of the process (RLIMIT_FSIZE), which free space does not lift |
//! | ESTALE | `stale` | the volume stops |
//! | ENOENT | `not-found` | the caller decides: a hole, or an object that is missing |
//! | EROFS | `read-only` | fails |
//! | EINVAL | `invalid` | fails |
//! | any other | `io` | fails |
//!
//! A sync that fails is final, whatever the reason, except for ESTALE.

use std::io;
use std::path::Path;

use archipelago_protocol::{Error, ErrorCode};

/// The code of a failed read, write, open and the like.
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

/// The error of a failed call on `path`; `what` is what was to be done with it.
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
    /// It was a sync, which may have dropped data of others.
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
    /// The failure of a sync.
    pub(crate) fn sync(error: &io::Error) -> Self {
        Failed {
            code: sync_code_of(error),
            lost: !is_of_one_file(error),
        }
    }
}

/// Whether a failed sync concerns only the synced file: its file system had no space for it, or has lost it. Any other failure may be one
/// of the disk's cache, which holds everybody's data.
pub(crate) fn is_of_one_file(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::ESTALE)
    )
}

/// The code of a failed sync: final, whatever the reason.
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
