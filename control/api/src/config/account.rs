//! A user or a group of the system, as it is written in the configuration.

use std::fmt;

/// A user or a group, by name or by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// A name from the system's tables.
    Name(String),
    /// A number, which need not be in these tables.
    Id(u32),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::Name(name) => write!(f, "\"{name}\""),
            Account::Id(id) => write!(f, "{id}"),
        }
    }
}
