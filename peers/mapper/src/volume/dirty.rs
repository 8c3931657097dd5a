//! Dirty metadata: changes of the map that the log does not have yet, and the presence journal that keeps them beyond the
//! process.
//!
//! Invariants
//! - Records are in the order of their sequence numbers; one leaves when its batch is durable.
//! - A record is in the journal, if there is one, before it is here.

use std::collections::VecDeque;

use archipelago_protocol::Epoch;

use crate::journal::{Journal, JournalRecord};
use crate::log::{Record, RecordKind};

/// What a commit takes: what its asker has synced, or journaled.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Select {
    /// Everything up to this sequence number.
    UpTo(u64),
    /// What belongs to this epoch and older ones, and then the freeze.
    Freeze(Epoch),
}

impl Select {
    fn takes(self, record: &Record) -> bool {
        match self {
            Select::UpTo(sequence) => record.sequence <= sequence,
            Select::Freeze(epoch) => record.epoch <= epoch,
        }
    }

    /// Everything up to this sequence number is taken.
    pub(crate) fn cut(self) -> u64 {
        match self {
            Select::UpTo(sequence) => sequence,
            Select::Freeze(_) => 0,
        }
    }
}

/// Too much is not logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Changes that are not logged.
#[derive(Debug)]
pub(crate) struct DirtyMetadata {
    records: VecDeque<Record>,
    next_sequence: u64,
    journal: Option<Box<dyn Journal>>,
}

impl DirtyMetadata {
    pub(super) fn new() -> Self {
        DirtyMetadata {
            records: VecDeque::new(),
            next_sequence: 1,
            journal: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Of the next change.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Of the last change.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.next_sequence - 1
    }

    /// Takes a change, which gets the next sequence number, unless `records_max` or the journal's room is reached.
    pub(super) fn push(&mut self, record: Record, records_max: usize) -> Result<(), Full> {
        let sequence = self.next_sequence;
        let record = Record { sequence, ..record };
        if self.records.len() >= records_max {
            return Err(Full);
        }
        if let Some(journal) = &mut self.journal {
            journal.append(journaled(&record)).map_err(|_full| Full)?;
        }
        self.next_sequence += 1;
        self.records.push_back(record);
        Ok(())
    }

    /// Those that are to be logged, neighbours joined.
    pub(crate) fn selected(&self, select: Select) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        for record in self.records.iter().filter(|record| select.takes(record)) {
            match records.last_mut() {
                Some(last)
                    if last.kind == record.kind
                        && last.epoch == record.epoch
                        && last.end() == record.start
                        && last.blocks.checked_add(record.blocks).is_some() =>
                {
                    last.blocks += record.blocks;
                    last.sequence = record.sequence;
                }
                _ => records.push(*record),
            }
        }
        if let Select::Freeze(epoch) = select {
            records.push(Record::mark(RecordKind::Freeze, epoch));
        }
        records
    }

    /// How many are not among the selected.
    pub(crate) fn count_left(&self, select: Select) -> usize {
        let left = self.records.iter().filter(|record| !select.takes(record));
        left.count()
    }

    /// The log is durable up to `position`.
    pub(crate) fn mark(&mut self, position: u64) {
        if let Some(journal) = &mut self.journal {
            journal.mark(position);
        }
    }

    /// What `select` takes was logged, but for what came in since the sequence number `since` was the next one.
    pub(crate) fn logged(&mut self, select: Select, since: u64) {
        self.records
            .retain(|record| record.sequence >= since || !select.takes(record));
        let covered = self
            .records
            .front()
            .map_or(self.next_sequence, |record| record.sequence)
            - 1;
        if let Some(journal) = &mut self.journal {
            journal.truncate(covered);
        }
    }

    /// The stored map has all of it.
    pub(crate) fn clear(&mut self) {
        self.records.clear();
    }

    /// A session begins, with nothing dirty and an empty journal.
    pub(super) fn restart(&mut self, journal: Box<dyn Journal>) {
        self.records.clear();
        self.next_sequence = 1;
        self.journal = Some(journal);
    }

    /// What a recovery has found in the journal, for a session that ends before it has begun.
    pub(crate) fn recovered(&mut self, records: VecDeque<Record>) {
        self.next_sequence = records.back().map_or(1, |record| record.sequence + 1);
        self.records = records;
    }
}

fn journaled(record: &Record) -> JournalRecord {
    JournalRecord {
        sequence: record.sequence,
        start: record.start,
        blocks: record.blocks,
        epoch: record.epoch,
        zero: record.kind == RecordKind::Zero,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirty(records: &[Record]) -> DirtyMetadata {
        let mut dirty = DirtyMetadata::new();
        dirty.recovered(records.iter().copied().collect());
        dirty
    }

    #[test]
    fn neighbours_of_a_kind_and_epoch_become_one_record() {
        let zero = |record: Record| Record {
            kind: RecordKind::Zero,
            ..record
        };
        let join =
            |first: Record, second: Record| dirty(&[first, second]).selected(Select::UpTo(9));
        let first = Record::present(4, 2, 1, 1);
        assert_eq!(
            join(first, Record::present(6, 3, 1, 2)),
            [Record::present(4, 5, 1, 2)]
        );
        let most = Record::present(0, u32::MAX - 1, 1, 1);
        let end = most.end();
        assert_eq!(join(most, Record::present(end, 1, 1, 2)).len(), 1);
        for (first, second) in [
            (first, Record::present(7, 3, 1, 2)),
            (first, Record::present(5, 3, 1, 2)),
            (first, Record::present(6, 3, 2, 2)),
            (first, zero(Record::present(6, 3, 1, 2))),
            (most, Record::present(end, 2, 1, 2)),
        ] {
            assert_eq!(join(first, second), [first, second]);
        }
    }

    #[test]
    fn a_commit_takes_up_to_its_cut_or_of_its_epoch() {
        let dirty = dirty(&[
            Record::present(0, 1, 2, 1),
            Record::present(10, 1, 1, 2),
            Record::present(20, 1, 3, 3),
            Record::present(30, 1, 2, 4),
        ]);
        let taken = |select| -> Vec<u64> {
            let records = dirty.selected(select);
            records.iter().map(|record| record.sequence).collect()
        };
        assert_eq!(taken(Select::UpTo(2)), [1, 2]);
        assert_eq!(dirty.count_left(Select::UpTo(2)), 2);
        // The freeze itself comes last, without a number.
        assert_eq!(taken(Select::Freeze(Epoch(2))), [1, 2, 4, 0]);
        assert_eq!(dirty.count_left(Select::Freeze(Epoch(2))), 1);
        let freeze = dirty.selected(Select::Freeze(Epoch(2)))[3];
        assert_eq!((freeze.kind, freeze.epoch), (RecordKind::Freeze, Epoch(2)));
        assert_eq!(Select::UpTo(7).cut(), 7);
    }

    #[test]
    fn what_came_in_during_a_commit_stays() {
        let mut dirty = DirtyMetadata::new();
        for start in 0..3 {
            dirty.push(Record::present(start, 1, 1, 0), 4).unwrap();
        }
        let since = dirty.next_sequence();
        dirty.push(Record::present(9, 1, 1, 0), 4).unwrap();
        assert_eq!(dirty.push(Record::present(10, 1, 1, 0), 4), Err(Full));
        dirty.logged(Select::Freeze(Epoch(1)), since);
        assert_eq!(
            dirty.selected(Select::UpTo(9)),
            [Record::present(9, 1, 1, 4)]
        );
        assert_eq!(dirty.last_sequence(), 4);
    }
}
