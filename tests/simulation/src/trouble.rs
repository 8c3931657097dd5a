//! What can stop a run: something was refused, or something is wrong.

use std::fmt;

use archipelago_protocol::error::{Error, ErrorCode};

/// Why a task or a run ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The mapper or the blocker said no. Wrong, too, unless a call was made to fail.
    Refused(ErrorCode, String),
    /// A promise or the protocol is broken.
    Wrong(String),
}

impl Trouble {
    /// The same, with what was being done in front.
    #[must_use]
    pub fn during(self, doing: impl fmt::Display) -> Self {
        match self {
            Trouble::Refused(code, what) => Trouble::Refused(code, format!("{doing}: {what}")),
            Trouble::Wrong(what) => Trouble::Wrong(format!("{doing}: {what}")),
        }
    }
}

impl From<ErrorCode> for Trouble {
    fn from(code: ErrorCode) -> Self {
        Trouble::Refused(code, String::new())
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Refused(error.code, error.to_string())
    }
}

impl From<String> for Trouble {
    fn from(what: String) -> Self {
        Trouble::Wrong(what)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Refused(code, what) => write!(f, "{what} refused: {code:?}"),
            Trouble::Wrong(what) => f.write_str(what),
        }
    }
}
