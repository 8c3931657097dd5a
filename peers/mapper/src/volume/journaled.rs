//! Journaled data during recovery: selects the blocks that must be written to their home locations.
//!
//! Invariants
//! - Older data never overwrites newer data. A block is skipped if a later `WrittenBack` record, a `Freeze` of its epoch or of a newer
//!   one, or a `Zero` record covers it. Of several copies only the last is written.
//! - Frozen epochs are never written: the containers of an epoch are synced before its `Freeze` record is logged.
//! - A block may be written although no `Present` record names it, because that record was not logged. This is harmless: no map refers
//!   to the block, and the next session uses a new epoch.

use std::collections::BTreeMap;
use std::ops::Range;

use archipelago_protocol::Epoch;
use archipelago_protocol::journaled::JournaledBlockId;

use crate::log::{Record, RecordKind, UNIT};

/// A block as the log holds it.
#[derive(Debug)]
struct JournaledCopy {
    content: Vec<u8>,
    /// Sequence number of the cut of its flush. `Zero` records up to this number are older than the copy.
    cut: u64,
}

/// Records and blocks of a batch do not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Inconsistent {
    #[error("a journaled block is missing")]
    NoBlock,
    #[error("a journaled block has no record")]
    NoRecord,
}

/// The last copy of each journaled block that may not be at its home location.
#[derive(Debug, Default)]
pub(crate) struct JournaledBlocks {
    copies: BTreeMap<JournaledBlockId, JournaledCopy>,
}

impl JournaledBlocks {
    /// Applies the next batch: first its records, then its journaled blocks, which are newer than all of them.
    ///
    /// # Errors
    /// The batch is inconsistent although its checksum is right: another version wrote it, or it is a bug.
    pub(crate) fn replay(
        &mut self,
        records: &[Record],
        blocks: Vec<u8>,
    ) -> Result<(), Inconsistent> {
        for record in records {
            match record.kind {
                RecordKind::WrittenBack => self.copies.clear(),
                RecordKind::Freeze => self.copies.retain(|of, _| of.epoch > record.epoch),
                RecordKind::Zero => self.copies.retain(|of, copy| {
                    let zeroed = (record.start..record.end()).contains(&of.block);
                    !zeroed || record.sequence <= copy.cut
                }),
                RecordKind::Present | RecordKind::Journaled => {}
            }
        }
        let journaled = |record: &&Record| record.kind == RecordKind::Journaled;
        let mut blocks = blocks.chunks_exact(UNIT);
        for record in records.iter().filter(journaled) {
            let block = blocks.next().ok_or(Inconsistent::NoBlock)?;
            let of = JournaledBlockId {
                epoch: record.epoch,
                block: record.start,
            };
            let copy = JournaledCopy {
                content: block.to_vec(),
                cut: record.sequence,
            };
            self.copies.insert(of, copy);
        }
        match blocks.next() {
            None => Ok(()),
            Some(_) => Err(Inconsistent::NoRecord),
        }
    }

    /// Whether no block is left to write back.
    pub(crate) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// The blocks of `blocks` in `epoch` that may not be at their home location, ascending.
    pub(crate) fn pending_in(&self, epoch: Epoch, blocks: Range<u64>) -> impl Iterator<Item = u64> {
        let key = |block| JournaledBlockId { epoch, block };
        let found = self.copies.range(key(blocks.start)..key(blocks.end));
        found.map(|(of, _)| of.block)
    }

    /// All blocks, in order of epoch and block.
    pub(crate) fn into_blocks(self) -> impl Iterator<Item = JournaledBlock> {
        let copies = self.copies.into_iter();
        copies.map(|(place, copy)| JournaledBlock {
            place,
            content: copy.content,
        })
    }

    /// How many blocks are to be written.
    pub(crate) fn len(&self) -> u64 {
        self.copies.len() as u64
    }
}

/// A block and what is to be written there.
#[derive(Debug)]
pub(crate) struct JournaledBlock {
    pub(crate) place: JournaledBlockId,
    pub(crate) content: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: RecordKind, start: u64, epoch: u64) -> Record {
        Record {
            kind,
            blocks: 1,
            start,
            epoch: Epoch(epoch),
            sequence: 0,
        }
    }

    fn left(batches: &[(&[Record], &[u8])]) -> Vec<(u64, u64, u8)> {
        let mut data = JournaledBlocks::default();
        for (records, values) in batches {
            let blocks = values.iter().flat_map(|value| vec![*value; UNIT]).collect();
            data.replay(records, blocks).unwrap();
        }
        let copies = data.copies.iter();
        copies
            .map(|(of, copy)| (of.block, of.epoch.0, copy.content[0]))
            .collect()
    }

    #[test]
    fn only_the_last_copies_that_are_not_written_back_are_left() {
        use RecordKind::{Freeze, Journaled, Present, WrittenBack, Zero};
        let one = [record(Journaled, 5, 1), record(Present, 5, 1)];
        assert_eq!(left(&[(&one, &[7])]), [(5, 1, 7)]);
        assert_eq!(left(&[(&one, &[7]), (&one, &[8])]), [(5, 1, 8)]);
        let home = [record(WrittenBack, 0, 0)];
        assert_eq!(left(&[(&one, &[7]), (&home, &[])]), []);
        assert_eq!(left(&[(&home, &[]), (&one, &[7])]), [(5, 1, 7)]);
        let zero = [Record {
            sequence: 1,
            ..record(Zero, 5, 2)
        }];
        assert_eq!(left(&[(&one, &[7]), (&zero, &[])]), []);
        // Zeroed and written again between two flushes.
        let again = [record(Zero, 5, 1), record(Journaled, 5, 1)];
        assert_eq!(left(&[(&one, &[7]), (&again, &[8])]), [(5, 1, 8)]);
        // The same, and the records did not fit into the batch with the block.
        let at = |record: Record, sequence| [Record { sequence, ..record }];
        let late = [at(one[0], 2), at(zero[0], 1)];
        assert_eq!(left(&[(&late[0], &[8]), (&late[1], &[])]), [(5, 1, 8)]);
        let after = [at(one[0], 2), at(zero[0], 3)];
        assert_eq!(left(&[(&after[0], &[8]), (&after[1], &[])]), []);
        let newer = [record(Journaled, 6, 2), record(Journaled, 5, 2)];
        let freeze = [record(Freeze, 0, 1)];
        assert_eq!(
            left(&[(&one, &[7]), (&newer, &[1, 2]), (&freeze, &[])]),
            [(5, 2, 2), (6, 2, 1)]
        );
    }

    #[test]
    fn blocks_and_records_that_do_not_match_are_damage() {
        let mut data = JournaledBlocks::default();
        let one = [record(RecordKind::Journaled, 5, 1)];
        assert_eq!(data.replay(&one, Vec::new()), Err(Inconsistent::NoBlock));
        assert_eq!(data.replay(&[], vec![0; UNIT]), Err(Inconsistent::NoRecord));
    }
}
