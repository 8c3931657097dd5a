//! Counters of a blocker peer.

use archipelago_protocol::control::PeerStatus;

/// Counters of a blocker peer since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handles opened and closed for channels, or refused.
    pub handle_requests: u64,
    /// Requests accepted from channels, valid or not, except those that open or close a handle.
    pub requests: u64,
    /// Of these, reads of data or metadata.
    pub reads: u64,
    /// Of these, writes.
    pub writes: u64,
    /// Of these, syncs of an object or of the pool.
    pub syncs: u64,
    /// Of these, compare-and-swaps.
    pub swaps: u64,
    /// Bytes read successfully.
    pub read_bytes: u64,
    /// Bytes written successfully.
    pub written_bytes: u64,
    /// Requests, also for handles, answered with an error code.
    pub failed: u64,
    /// Of these, refused for their form or memory, without the backend.
    pub refused: u64,
    /// Of these, denied: the channel lacks the right.
    pub denied: u64,
    /// Answers dropped because their client had disconnected.
    pub dropped: u64,
    /// Channels added so far.
    pub channels: u64,
    /// Channels cut off for breaking the protocol.
    pub broken: u64,
}

impl Counters {
    /// The counters under `name`, for the node daemon.
    #[must_use]
    pub fn status(&self, name: &str) -> PeerStatus {
        let counters = [
            ("handle_requests", self.handle_requests),
            ("requests", self.requests),
            ("reads", self.reads),
            ("writes", self.writes),
            ("syncs", self.syncs),
            ("swaps", self.swaps),
            ("read_bytes", self.read_bytes),
            ("written_bytes", self.written_bytes),
            ("failed", self.failed),
            ("refused", self.refused),
            ("denied", self.denied),
            ("dropped", self.dropped),
            ("channels", self.channels),
            ("broken", self.broken),
        ];
        let counters = counters
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        PeerStatus {
            name: name.to_owned(),
            counters,
        }
    }
}
