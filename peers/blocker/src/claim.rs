//! The right with which a pool is opened, for every kind of pool.

use serde::{Deserialize, Serialize};

/// The right with which a pool is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// For the first time: granted if nobody else owns it.
    #[default]
    Start,
    /// A person has declared that the owner on another host has ended.
    TakeOver,
    /// By the successor of a process that died: granted if nobody else has owned the pool since.
    Restart,
}
