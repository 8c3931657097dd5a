//! Data that a log holds, at a recovery: which blocks have to be written to their home locations.
//!
//! Invariants
//! - Older data is never put over newer: a block that was synced at home (a mark that all is written back, or a freeze of its
//!   epoch) or that reads as zeros by now is not written; of several copies the last one is.
//! - Nothing is written into what a snapshot holds: the freeze came after a sync of all that its epoch held.
//! - A block may be written that the map does not name: its presence was not logged. Nobody reads it, and the next
//!   epoch never writes there.

use std::collections::BTreeMap;
use std::ops::Range;

use archipelago_protocol::Epoch;
use archipelago_protocol::carry::CarriedBlock;

use crate::log::{Record, RecordKind, UNIT};

/// A block as the log holds it.
#[derive(Debug)]
struct Copy {
    content: Vec<u8>,
    /// The cut of its flush: zeros up to it came before the block was written.
    cut: u64,
}

/// The last copy of each journaled block that may not be at its home location.
#[derive(Debug, Default)]
pub(crate) struct JournaledBlocks {
    copies: BTreeMap<CarriedBlock, Copy>,
}

impl JournaledBlocks {
    /// Takes the next batch: its records, then the blocks that it holds.
    ///
    /// # Errors
    /// What is wrong: the checksum was right, so another version wrote it, or we did wrongly.
    pub(crate) fn replay(&mut self, records: &[Record], blocks: Vec<u8>) -> Result<(), String> {
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
            let block = blocks.next().ok_or("a journaled block is missing")?;
            let of = CarriedBlock {
                epoch: record.epoch,
                block: record.start,
            };
            let copy = Copy {
                content: block.to_vec(),
                cut: record.sequence,
            };
            self.copies.insert(of, copy);
        }
        match blocks.next() {
            None => Ok(()),
            Some(_) => Err("a journaled block has no record".to_owned()),
        }
    }

    /// Whether all data of the log was written back.
    pub(crate) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// Those of `blocks` in `epoch` that may not be at home, in order.
    pub(crate) fn of(&self, epoch: Epoch, blocks: Range<u64>) -> impl Iterator<Item = u64> {
        let key = |block| CarriedBlock { epoch, block };
        let found = self.copies.range(key(blocks.start)..key(blocks.end));
        found.map(|(of, _)| of.block)
    }

    /// All of them, in order.
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
    pub(crate) place: CarriedBlock,
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
        assert!(data.replay(&one, Vec::new()).is_err());
        assert!(data.replay(&[], vec![0; UNIT]).is_err());
    }
}
