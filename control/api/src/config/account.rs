//! A user or a group of the system, as the configuration names it.

use std::fmt;

/// A user or a group, by name or by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// As the system's tables have it.
    Name(String),
    /// Need not be in them.
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
