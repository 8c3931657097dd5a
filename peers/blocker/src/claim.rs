//! With what right a pool is opened, whatever its kind.

use serde::{Deserialize, Serialize};

/// With what right a pool is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// For the first time: if nobody else owns it.
    #[default]
    Start,
    /// Whoever owns it on another host has ended, says a person.
    TakeOver,
    /// By the successor of a process that died: if nobody else has owned it since.
    Restart,
}
