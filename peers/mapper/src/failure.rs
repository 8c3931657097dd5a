//! Why something failed: a code for the asker, a sentence for people.

use archipelago_protocol::error::{DAMAGED_HINT, UNSUPPORTED_FORMAT_HINT};
use archipelago_protocol::{Error, ErrorCode, Lineage};

use crate::format::Unreadable;

/// A failure inside the mapper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

/// Result of what can fail inside the mapper.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Failure {
            code,
            message: message.into(),
        }
    }

    /// Metadata that contradicts itself; `what` names the object.
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Failure::new(ErrorCode::Damaged, what)
    }

    /// The stored thing `what` cannot be used.
    pub(crate) fn unreadable(what: &str, why: impl Into<Unreadable>) -> Self {
        match why.into() {
            Unreadable::Damaged(why) => Failure::damaged(format!("{what} is damaged: {why}")),
            Unreadable::Unsupported(why) => Failure::new(
                ErrorCode::UnsupportedFormat,
                format!("{what} has an unsupported format: {why}"),
            ),
        }
    }

    /// A sync failed while nobody had `lineage` open to write.
    pub(crate) fn lost(lineage: Lineage) -> Self {
        let why = format!("a sync of the pool failed: what {lineage} had not flushed may be lost");
        Failure::new(ErrorCode::SyncFailed, why)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        let hint = match failure.code {
            ErrorCode::Damaged => DAMAGED_HINT,
            ErrorCode::UnsupportedFormat => UNSUPPORTED_FORMAT_HINT,
            ErrorCode::NoSpace => {
                "free some space in the pool, or grow its file system, and try again"
            }
            code if code.passes() => "try again when there is some",
            _ => "",
        };
        Error::new(failure.code, failure.message).with_hint(hint)
    }
}
