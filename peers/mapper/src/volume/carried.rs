//! Blocks that the log carried, at a recovery: which of them have to be written where they belong.
//!
//! Invariants
//! - Older data is never put over newer: a block that was synced at home (a home mark, or a freeze of its epoch) or that
//!   reads as zeros by now is not written; of several copies the last one is.
//! - Nothing is written into what a snapshot holds: the freeze came after a sync of all that its epoch held.
//! - A block may be written that the map does not name: its presence was not logged. Nobody reads it, and the next
//!   epoch never writes there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use archipelago_protocol::carry::CarriedBlock;
use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{BLOCK_SIZE, Epoch};

use super::Volume;
use crate::core::Core;
use crate::failure::Outcome;
use crate::log::{Record, RecordKind, UNIT};

/// A block as the log carried it.
#[derive(Debug)]
struct Copy {
    content: Vec<u8>,
    /// The cut of its flush: zeros up to it came before the block was written.
    cut: u64,
}

/// The last copy of each carried block that may not be home.
#[derive(Debug, Default)]
pub(crate) struct CarriedBlocks {
    copies: BTreeMap<CarriedBlock, Copy>,
}

impl CarriedBlocks {
    /// Takes the next batch: its records, then the blocks that it carries.
    ///
    /// # Errors
    /// What is wrong: the checksum was right, so another version wrote it, or we did wrongly.
    pub(crate) fn replay(&mut self, records: &[Record], blocks: Vec<u8>) -> Result<(), String> {
        for record in records {
            match record.kind {
                RecordKind::Home => self.copies.clear(),
                RecordKind::Freeze => self.copies.retain(|of, _| of.epoch > record.epoch),
                RecordKind::Zero => self.copies.retain(|of, copy| {
                    let zeroed = (record.start..record.end()).contains(&of.block);
                    !zeroed || record.sequence <= copy.cut
                }),
                RecordKind::Present | RecordKind::Carried => {}
            }
        }
        let carried = |record: &&Record| record.kind == RecordKind::Carried;
        let mut blocks = blocks.chunks_exact(UNIT);
        for record in records.iter().filter(carried) {
            let block = blocks.next().ok_or("a carried block is missing")?;
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
            Some(_) => Err("a carried block is nobody's".to_owned()),
        }
    }

    /// Whether all of them are home.
    pub(crate) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// Those of `blocks` in `epoch` that may not be home, in order.
    pub(crate) fn of(&self, epoch: Epoch, blocks: Range<u64>) -> impl Iterator<Item = u64> {
        let key = |block| CarriedBlock { epoch, block };
        let found = self.copies.range(key(blocks.start)..key(blocks.end));
        found.map(|(of, _)| of.block)
    }

    /// Writes the copies where they belong, durably.
    pub(super) async fn bring_home(self, core: &Rc<Core>, volume: &Volume) -> Outcome<()> {
        if self.copies.is_empty() {
            return Ok(());
        }
        let count = self.copies.len() as u64;
        for (of, Copy { content, .. }) in self.copies {
            let id = ObjectId::data(volume.lineage, of.epoch);
            core.disk
                .write_data(id, volume.object_size, of.block * BLOCK_SIZE, &content)
                .await?;
        }
        core.sync_pool().await?;
        core.count(|counters| counters.carried_home += count);
        Ok(())
    }
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
        let mut carried = CarriedBlocks::default();
        for (records, values) in batches {
            let blocks = values.iter().flat_map(|value| vec![*value; UNIT]).collect();
            carried.replay(records, blocks).unwrap();
        }
        let copies = carried.copies.iter();
        copies
            .map(|(of, copy)| (of.block, of.epoch.0, copy.content[0]))
            .collect()
    }

    #[test]
    fn only_the_last_copies_that_are_not_home_are_left() {
        use RecordKind::{Carried, Freeze, Home, Present, Zero};
        let one = [record(Carried, 5, 1), record(Present, 5, 1)];
        assert_eq!(left(&[(&one, &[7])]), [(5, 1, 7)]);
        assert_eq!(left(&[(&one, &[7]), (&one, &[8])]), [(5, 1, 8)]);
        let home = [record(Home, 0, 0)];
        assert_eq!(left(&[(&one, &[7]), (&home, &[])]), []);
        assert_eq!(left(&[(&home, &[]), (&one, &[7])]), [(5, 1, 7)]);
        let zero = [Record {
            sequence: 1,
            ..record(Zero, 5, 2)
        }];
        assert_eq!(left(&[(&one, &[7]), (&zero, &[])]), []);
        // Zeroed and written again between two flushes.
        let again = [record(Zero, 5, 1), record(Carried, 5, 1)];
        assert_eq!(left(&[(&one, &[7]), (&again, &[8])]), [(5, 1, 8)]);
        // The same, and the records did not fit into the batch with the block.
        let at = |record: Record, sequence| [Record { sequence, ..record }];
        let late = [at(one[0], 2), at(zero[0], 1)];
        assert_eq!(left(&[(&late[0], &[8]), (&late[1], &[])]), [(5, 1, 8)]);
        let after = [at(one[0], 2), at(zero[0], 3)];
        assert_eq!(left(&[(&after[0], &[8]), (&after[1], &[])]), []);
        let newer = [record(Carried, 6, 2), record(Carried, 5, 2)];
        let freeze = [record(Freeze, 0, 1)];
        assert_eq!(
            left(&[(&one, &[7]), (&newer, &[1, 2]), (&freeze, &[])]),
            [(5, 2, 2), (6, 2, 1)]
        );
    }

    #[test]
    fn blocks_and_records_that_do_not_match_are_damage() {
        let mut carried = CarriedBlocks::default();
        let one = [record(RecordKind::Carried, 5, 1)];
        assert!(carried.replay(&one, Vec::new()).is_err());
        assert!(carried.replay(&[], vec![0; UNIT]).is_err());
    }
}
