//! Why something failed: a code for the asker, a sentence for people.

use archipelago_protocol::{Error, ErrorCode, Lineage};

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

    /// A sync failed while nobody had `lineage` open to write.
    pub(crate) fn lost(lineage: Lineage) -> Self {
        let why = format!("a sync of the pool failed: what {lineage} had not flushed may be lost");
        Failure::new(ErrorCode::SyncFailed, why)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        let hint = match failure.code {
            ErrorCode::Damaged => {
                "nothing was changed; restore the object named, or the pool, from a copy"
            }
            ErrorCode::NoSpace => {
                "free some space in the pool, or grow its file system, and try again"
            }
            code if code.passes() => "try again when there is some",
            _ => "",
        };
        Error::new(failure.code, failure.message).with_hint(hint)
    }
}
