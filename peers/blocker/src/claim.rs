//! With what right a pool is opened, whatever its kind.

use serde::{Deserialize, Serialize};

/// With what right a pool is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// For the first time: if nobody else owns it.
    #[default]
    Start,
    /// A person has declared that the owner on another host has ended.
    TakeOver,
    /// By the successor of a process that died: granted if nobody else has owned the pool since.
    Restart,
}
