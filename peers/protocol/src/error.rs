//! Errors between crates and processes: a stable code, the object of the error, and the remedy.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Stable error codes. The number travels in ring entries (negated), the name in JSON.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ErrorCode {
    /// A request or argument that is never valid: out of range, misaligned, malformed.
    Invalid = 1,
    /// No such volume, snapshot, image, pool or object.
    NotFound = 2,
    /// The name is taken, or the object exists already.
    Exists = 3,
    /// Another user owns it, or it is attached.
    InUse = 4,
    /// The pool's file system, a quota or a table is full. Passes: goes on when there is space.
    NoSpace = 5,
    /// Metadata that fails its checksum or contradicts itself. Nothing was changed.
    Damaged = 6,
    /// The backend failed the request; durable data is unchanged.
    Io = 7,
    /// A sync failed: data that was not yet durable is lost, the volume must be reopened.
    SyncFailed = 8,
    /// A newer session owns the volume: this one may not write any more.
    Stale = 9,
    /// The operation is not offered.
    Unsupported = 10,
    /// The volume or object is read-only.
    ReadOnly = 11,
    /// The other side is not available; try again later.
    Unavailable = 12,
    /// A bug.
    Internal = 13,
    /// The credentials of the client do not allow it.
    Denied = 14,
    /// The process or the host has no file descriptor left. Passes.
    NoDescriptors = 15,
    /// The process or the host has no memory left. Passes.
    NoMemory = 16,
    /// The run directory is full. Passes.
    NoRunSpace = 17,
    /// A file of the pool may not get so large: a limit of its file system or of the process. Free space does not help.
    TooLarge = 18,
    /// Stored by another version of the program, or with features that this one does not know. Nothing was changed.
    UnsupportedFormat = 19,
    /// The object handle of the request is not open.
    NotOpen = 20,
}

impl ErrorCode {
    /// All codes, in order of their numbers.
    pub const ALL: [ErrorCode; 20] = [
        ErrorCode::Invalid,
        ErrorCode::NotFound,
        ErrorCode::Exists,
        ErrorCode::InUse,
        ErrorCode::NoSpace,
        ErrorCode::Damaged,
        ErrorCode::Io,
        ErrorCode::SyncFailed,
        ErrorCode::Stale,
        ErrorCode::Unsupported,
        ErrorCode::ReadOnly,
        ErrorCode::Unavailable,
        ErrorCode::Internal,
        ErrorCode::Denied,
        ErrorCode::NoDescriptors,
        ErrorCode::NoMemory,
        ErrorCode::NoRunSpace,
        ErrorCode::TooLarge,
        ErrorCode::UnsupportedFormat,
        ErrorCode::NotOpen,
    ];

    /// Whether a resource is exhausted that becomes available again, by itself or when it is freed: then the same request can succeed.
    #[must_use]
    pub fn passes(self) -> bool {
        matches!(
            self,
            ErrorCode::NoSpace
                | ErrorCode::NoDescriptors
                | ErrorCode::NoMemory
                | ErrorCode::NoRunSpace
        )
    }

    /// Whether stored data cannot be used: a repetition does not help.
    #[must_use]
    pub fn is_of_stored(self) -> bool {
        matches!(self, ErrorCode::Damaged | ErrorCode::UnsupportedFormat)
    }

    /// The code as the negative result of a completion.
    #[must_use]
    pub fn to_result(self) -> i32 {
        -i32::from(self as u8)
    }

    /// The code that a negative `result` stands for; numbers unknown to this version are [`ErrorCode::Internal`].
    #[must_use]
    pub fn from_result(result: i32) -> Self {
        Self::ALL
            .into_iter()
            .find(|code| code.to_result() == result)
            .unwrap_or(ErrorCode::Internal)
    }

    /// Exit code of the command: 0 done, 1 failed, 2 usage, 3 not found, 4 exists already, 5 in use, 6 no space,
    /// 7 damaged data, 8 unsupported format.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorCode::Invalid => 2,
            ErrorCode::NotFound => 3,
            ErrorCode::Exists => 4,
            ErrorCode::InUse => 5,
            ErrorCode::NoSpace
            | ErrorCode::NoDescriptors
            | ErrorCode::NoMemory
            | ErrorCode::NoRunSpace => 6,
            ErrorCode::Damaged => 7,
            ErrorCode::UnsupportedFormat => 8,
            ErrorCode::Io
            | ErrorCode::SyncFailed
            | ErrorCode::Stale
            | ErrorCode::Unsupported
            | ErrorCode::ReadOnly
            | ErrorCode::Unavailable
            | ErrorCode::Internal
            | ErrorCode::Denied
            | ErrorCode::TooLarge
            | ErrorCode::NotOpen => 1,
        }
    }
}

/// The code as a phrase, for the middle of a sentence.
impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorCode::Invalid => "the request is not valid",
            ErrorCode::NotFound => "not found",
            ErrorCode::Exists => "exists already",
            ErrorCode::InUse => "in use",
            ErrorCode::NoSpace => "no space left",
            ErrorCode::Damaged => "damaged",
            ErrorCode::Io => "input or output error",
            ErrorCode::SyncFailed => "the data could not be made durable",
            ErrorCode::Stale => "another session has taken the volume over",
            ErrorCode::Unsupported => "not supported",
            ErrorCode::ReadOnly => "read-only",
            ErrorCode::Unavailable => "not available",
            ErrorCode::Internal => "internal error",
            ErrorCode::Denied => "access denied",
            ErrorCode::NoDescriptors => "no file descriptor is free",
            ErrorCode::NoMemory => "out of memory",
            ErrorCode::NoRunSpace => "the run directory is full",
            ErrorCode::TooLarge => "larger than a file may get",
            ErrorCode::UnsupportedFormat => "stored in a format that this program does not know",
            ErrorCode::NotOpen => "the object handle is not open",
        })
    }
}

/// The remedy for [`ErrorCode::TooLarge`].
pub const TOO_LARGE_HINT: &str = "raise LimitFSIZE of the service (`ulimit -f`), or move the pool to a file system without such a limit";

/// The remedy for [`ErrorCode::Damaged`].
pub const DAMAGED_HINT: &str =
    "nothing was changed; restore the object named, or the pool, from a copy";

/// The remedy for [`ErrorCode::UnsupportedFormat`].
pub const UNSUPPORTED_FORMAT_HINT: &str =
    "nothing was changed; use the program that wrote it, or a newer one that reads its format";

/// An error for people and scripts.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[expect(clippy::error_impl_error, reason = "the one error that crosses seams")]
pub struct Error {
    /// The kind of failure.
    pub code: ErrorCode,
    /// What failed and why, naming the thing and the value.
    pub message: String,
    /// What to do next; empty if there is no advice.
    #[serde(default)]
    pub hint: String,
}

impl Error {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Error {
            code,
            message: message.into(),
            hint: String::new(),
        }
    }

    /// `what`, which needs a thread, has failed with `cause`: [`ErrorCode::Unavailable`] if the limit of threads is reached.
    #[must_use]
    pub fn of_thread(what: impl fmt::Display, cause: &std::io::Error) -> Self {
        let message = format!("{what}: no thread can be started: {cause}");
        if cause.kind() != std::io::ErrorKind::WouldBlock {
            return Error::new(ErrorCode::Io, message);
        }
        Error::new(ErrorCode::Unavailable, message).with_hint(
            "the limit of threads is reached: raise `TasksMax=` of the service, `pids.max` of its control group, or \
             `ulimit -u` of its user",
        )
    }

    /// The error with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Result with an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_a_completion() {
        for code in ErrorCode::ALL {
            assert!(code.to_result() < 0);
            assert_eq!(ErrorCode::from_result(code.to_result()), code);
        }
    }

    #[test]
    fn only_a_shortage_of_threads_is_called_one() {
        let of = |errno| Error::of_thread("a", &std::io::Error::from_raw_os_error(errno));
        let short = of(11); // EAGAIN
        assert_eq!(short.code, ErrorCode::Unavailable);
        assert!(short.hint.contains("TasksMax"), "{}", short.hint);
        let other = of(12); // ENOMEM
        assert_eq!((other.code, other.hint.as_str()), (ErrorCode::Io, ""));
    }

    #[test]
    fn codes_are_numbered_from_one_on() {
        for (code, number) in ErrorCode::ALL.into_iter().zip(1..) {
            assert_eq!(code.to_result(), -number, "{code:?}");
        }
        for unknown in [0, 1, -21, i32::MIN] {
            assert_eq!(ErrorCode::from_result(unknown), ErrorCode::Internal);
        }
    }

    #[test]
    fn a_command_ends_with_the_code_of_what_scripts_tell_apart() {
        let codes = ErrorCode::ALL.map(ErrorCode::exit_code);
        assert_eq!(
            codes,
            [2, 3, 4, 5, 6, 7, 1, 1, 1, 1, 1, 1, 1, 1, 6, 6, 6, 1, 8, 1]
        );
    }
}
