//! What happened so far.

/// Counts since the mapper began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Locates answered, whatever the answer.
    pub locates: u64,
    /// Locates that waited for a page.
    pub locate_misses: u64,
    /// Status requests answered, whatever the answer.
    pub statuses: u64,
    /// First writes and zeroed ranges taken.
    pub presence_records: u64,
    /// Batches appended to volumes' logs.
    pub log_batches: u64,
    /// Blocks that flushes journaled in volumes' logs.
    pub journaled_blocks: u64,
    /// Journaled blocks that a recovery wrote to their home locations.
    pub recovered_blocks: u64,
    /// Checkpoints of volumes, those of closing included.
    pub checkpoints: u64,
    /// Map pages written.
    pub pages_written: u64,
    /// Map pages read.
    pub pages_read: u64,
    /// Opens that recovered from an unclean end.
    pub recoveries: u64,
    /// Snapshots born while their volume was open.
    pub snapshots: u64,
    /// Answers throttled because too much was not logged.
    pub throttled: u64,
    /// Batches appended to the catalogue's log.
    pub catalogue_changes: u64,
    /// Batches that were refused because another node had appended meanwhile.
    pub catalogue_refused: u64,
    /// Checkpoints of the catalogue.
    pub catalogue_checkpoints: u64,
    /// Lineages whose objects were deleted.
    pub lineages_deleted: u64,
    /// Bytes of data that removed snapshots had alone, given back.
    pub reclaimed_bytes: u64,
    /// Damage found.
    pub damages: u64,
}

impl Counters {
    /// Names and values, in order.
    #[must_use]
    pub fn list(&self) -> [(&'static str, u64); 19] {
        [
            ("locates", self.locates),
            ("locate_misses", self.locate_misses),
            ("statuses", self.statuses),
            ("presence_records", self.presence_records),
            ("log_batches", self.log_batches),
            ("journaled_blocks", self.journaled_blocks),
            ("recovered_blocks", self.recovered_blocks),
            ("checkpoints", self.checkpoints),
            ("pages_written", self.pages_written),
            ("pages_read", self.pages_read),
            ("recoveries", self.recoveries),
            ("snapshots", self.snapshots),
            ("throttled", self.throttled),
            ("catalogue_changes", self.catalogue_changes),
            ("catalogue_refused", self.catalogue_refused),
            ("catalogue_checkpoints", self.catalogue_checkpoints),
            ("lineages_deleted", self.lineages_deleted),
            ("reclaimed_bytes", self.reclaimed_bytes),
            ("damages", self.damages),
        ]
    }
}
