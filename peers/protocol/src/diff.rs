//! Where a volume, snapshot or image differs from a snapshot or image.

use serde::{Deserialize, Serialize};

/// Most ranges of one page: some 250 KiB of JSON.
pub const RANGES_MAX: usize = 4096;

/// Bytes that differ. What lies between two ranges is the same.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedRange {
    /// The first byte: a multiple of 4096.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Whether they read as zeros now and need no copy.
    pub zero: bool,
}

/// A page of ranges.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffPage {
    /// In their order.
    pub ranges: Vec<ChangedRange>,
    /// The byte where the next page starts; null: this was the last.
    pub next: Option<u64>,
}
