//! Writes in progress, by the epoch of their place: a snapshot waits for those of the old epoch.

/// The epoch of a write in progress: the current one, or the one before the snapshot in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WritePhase(usize);

/// Counts of the writes that have a place and are not yet done. At most one snapshot is in progress, so two counters suffice.
#[derive(Debug, Default)]
pub(crate) struct EpochWrites {
    counts: [u32; 2],
    current: usize,
}

impl EpochWrites {
    /// A write got a place.
    pub(crate) fn begin(&mut self) -> WritePhase {
        self.counts[self.current] += 1;
        WritePhase(self.current)
    }

    /// A write is done.
    pub(crate) fn end(&mut self, phase: WritePhase) {
        self.counts[phase.0] -= 1;
    }

    /// Places belong to a new epoch from now on. Returns the phase of the old epoch.
    pub(crate) fn next_epoch(&mut self) -> WritePhase {
        let before = WritePhase(self.current);
        self.current ^= 1;
        debug_assert_eq!(
            self.counts[self.current], 0,
            "the snapshot before this one has waited"
        );
        before
    }

    /// Whether all writes of `phase` are done.
    pub(crate) fn is_drained(&self, phase: WritePhase) -> bool {
        self.counts[phase.0] == 0
    }

    /// Forgets the writes in progress.
    pub(crate) fn clear(&mut self) {
        self.counts = [0; 2];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_drained_when_its_own_writes_are_done() {
        let mut writes = EpochWrites::default();
        let old = writes.begin();
        let before = writes.next_epoch();
        let new = writes.begin();
        assert!(old == before && new != before);
        assert!(!writes.is_drained(before));
        writes.end(old);
        assert!(writes.is_drained(before));
        writes.end(new);
        assert_eq!(writes.next_epoch(), new);
    }
}
