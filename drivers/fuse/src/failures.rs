//! Error numbers, which programs see. The texts go to the log.

use archipelago_protocol::ErrorCode;

/// The number for `code`.
pub(crate) fn errno(code: ErrorCode) -> libc::c_int {
    match code {
        ErrorCode::Invalid => libc::EINVAL,
        ErrorCode::NotFound => libc::ENOENT,
        ErrorCode::Exists => libc::EEXIST,
        ErrorCode::InUse => libc::EBUSY,
        ErrorCode::NoSpace | ErrorCode::NoRunSpace => libc::ENOSPC,
        ErrorCode::Unsupported | ErrorCode::UnsupportedFormat => libc::EOPNOTSUPP,
        ErrorCode::ReadOnly => libc::EROFS,
        ErrorCode::Denied => libc::EACCES,
        ErrorCode::NoDescriptors => libc::ENFILE,
        ErrorCode::NoMemory => libc::ENOMEM,
        ErrorCode::TooLarge => libc::EFBIG,
        ErrorCode::Damaged
        | ErrorCode::Io
        | ErrorCode::SyncFailed
        | ErrorCode::Stale
        | ErrorCode::Unavailable
        | ErrorCode::Internal
        | ErrorCode::NotOpen => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_a_number_and_those_that_lose_data_have_one() {
        for code in ErrorCode::ALL {
            assert!(errno(code) > 0);
        }
        for code in [
            ErrorCode::SyncFailed,
            ErrorCode::Stale,
            ErrorCode::Unavailable,
        ] {
            assert_eq!(errno(code), libc::EIO);
        }
    }
}
