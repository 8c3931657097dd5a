//! Figures of a file backend, beside those that its peer counts for every backend.

/// Counts since the backend was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// `fdatasync` calls.
    pub file_syncs: u64,
    /// `syncfs` calls.
    pub pool_syncs: u64,
    /// Files opened.
    pub opens: u64,
    /// Files made.
    pub creations: u64,
    /// Transfers that went through a buffer of ours because of their alignment.
    pub bounces: u64,
    /// Writes tried again because the file system reported a passing lack of space.
    pub space_retries: u64,
    /// Calls for metadata that found space only in the reserve.
    pub reserve_spent: u64,
}

impl Counters {
    /// The figures by name, in the order in which they are reported.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("file_syncs", self.file_syncs),
            ("pool_syncs", self.pool_syncs),
            ("opens", self.opens),
            ("creations", self.creations),
            ("bounces", self.bounces),
            ("space_retries", self.space_retries),
            ("reserve_spent", self.reserve_spent),
        ]
    }
}
