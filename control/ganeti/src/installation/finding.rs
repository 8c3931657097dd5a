//! The result of a check.

use archipelago_protocol::Error;
use serde::Serialize;

/// The result of checking one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub what: String,
    /// What is wrong with it; null: nothing.
    pub problem: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl Finding {
    pub(super) fn good(what: impl Into<String>) -> Finding {
        Finding {
            what: what.into(),
            problem: None,
            hint: String::new(),
        }
    }

    pub(super) fn bad(
        what: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Finding {
        Finding {
            what: what.into(),
            problem: Some(problem.into()),
            hint: hint.into(),
        }
    }

    pub(super) fn of<T>(what: &str, found: Result<T, Error>) -> Finding {
        match found {
            Ok(_) => Finding::good(what),
            Err(error) => Finding::bad(what, error.message, error.hint),
        }
    }
}
