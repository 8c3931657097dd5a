//! Return values of librados for failed calls.

use std::fmt;
use std::io;

use nix::libc;

/// The first code of a failed comparison of bytes: the code is this plus the offset of the first different byte.
const MISMATCH: i32 = 4095;

/// The error of a call on an object: an errno, positive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(i32);

impl Code {
    /// The object does not exist.
    pub const NOT_FOUND: Code = Code(libc::ENOENT);
    /// The object exists already.
    pub const EXISTS: Code = Code(libc::EEXIST);
    /// A comparison of an attribute failed.
    pub const CANCELED: Code = Code(libc::ECANCELED);
    /// Another client has blocklisted this one.
    pub const BLOCKLISTED: Code = Code(libc::ESHUTDOWN);

    /// The code of a return value; `None` if it is not an error.
    pub(crate) fn of(result: i32) -> Option<Code> {
        (result < 0).then(|| Code(result.saturating_neg()))
    }

    /// The errno.
    #[must_use]
    pub fn errno(self) -> i32 {
        self.0
    }

    /// Whether a condition of a compound operation was not met, so that none of its steps was done.
    #[must_use]
    pub fn is_mismatch(self) -> bool {
        self == Code::CANCELED || self.0 >= MISMATCH
    }

    /// The offset, in the compared bytes, of the first different one; `None`: the error is another one.
    #[must_use]
    pub fn mismatch_at(self) -> Option<u32> {
        u32::try_from(self.0 - MISMATCH).ok()
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({self})")
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mismatch_at() {
            Some(offset) => write!(f, "other bytes at {offset}"),
            None => fmt::Display::fmt(&io::Error::from_raw_os_error(self.0), f),
        }
    }
}

/// A failed call on the cluster.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct RadosError {
    what: String,
    code: Code,
    source: io::Error,
}

impl RadosError {
    /// The error of `what`, which has failed with the errno `code`.
    pub(crate) fn new(what: impl Into<String>, code: Code) -> Self {
        RadosError {
            what: what.into(),
            code,
            source: io::Error::from_raw_os_error(code.errno()),
        }
    }

    /// Fails if `result`, the return value of `what`, is an error.
    pub(crate) fn check(result: i32, what: impl FnOnce() -> String) -> Result<(), Self> {
        match Code::of(result) {
            Some(code) => Err(RadosError::new(what(), code)),
            None => Ok(()),
        }
    }

    /// The errno.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }
}

impl From<io::Error> for RadosError {
    fn from(error: io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        RadosError::new("a doorbell", Code(errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_values_become_codes() {
        assert_eq!(Code::of(0), None);
        assert_eq!(Code::of(7), None);
        assert_eq!(Code::of(-2), Some(Code::NOT_FOUND));
        assert!(Code::of(-125).is_some_and(Code::is_mismatch));
        let mismatch = Code::of(-4098).unwrap();
        assert!(mismatch.is_mismatch());
        assert_eq!(mismatch.mismatch_at(), Some(3));
        assert_eq!(Code::NOT_FOUND.mismatch_at(), None);
        assert!(!Code::NOT_FOUND.is_mismatch());
        assert_eq!(mismatch.to_string(), "other bytes at 3");
        assert_eq!(Code::of(i32::MIN).map(Code::errno), Some(i32::MAX));
    }
}
