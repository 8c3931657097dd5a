//! Blocks that a small flush passes to the mapper, so that one append to the log makes them durable.
//!
//! They travel in an *area* of the channel's arena, named by offset and length in
//! [`MapOp::FlushCommit`](crate::map::MapOp::FlushCommit):
//!
//! | bytes | content |
//! |---|---|
//! | 0 to 4095 | table: for each block its number in the volume (u64) and the epoch that it was written in (u64) |
//! | from 4096 | the blocks, 4096 bytes each, in the order of the table |
//!
//! The number of blocks follows from the length of the area.

use crate::error::ErrorCode;
use crate::ids::{BLOCK_SIZE, Epoch};

/// Most blocks of one flush: 64 KiB, where a sync of their container becomes as cheap as a second copy.
pub const JOURNALED_MAX: usize = 16;
/// Bytes of the table.
pub const TABLE_LEN: u64 = BLOCK_SIZE;
/// Bytes of the largest area.
pub const AREA_LEN: u64 = TABLE_LEN + JOURNALED_MAX as u64 * BLOCK_SIZE;
/// Bytes of a block, in memory.
const BLOCK_LEN: usize = 4096;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_SIZE);
const _: () = assert!((JOURNALED_MAX * JournaledBlockId::LEN) as u64 <= TABLE_LEN);

/// The id of a copied block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournaledBlockId {
    /// The epoch that it was written in; the lineage is the volume's own.
    pub epoch: Epoch,
    /// Its number in the volume.
    pub block: u64,
}

impl JournaledBlockId {
    /// Bytes of an entry of the table.
    pub const LEN: usize = 16;

    /// The entry of the table.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.block.to_le_bytes());
        bytes[8..].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        JournaledBlockId {
            epoch: Epoch(word(8)),
            block: word(0),
        }
    }
}

/// Bytes of an area with `blocks` blocks; 0: no area.
#[must_use]
pub fn area_len(blocks: usize) -> u64 {
    if blocks == 0 {
        0
    } else {
        TABLE_LEN + blocks as u64 * BLOCK_SIZE
    }
}

/// A private copy of an area.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournaledData {
    area: Vec<u8>,
}

impl JournaledData {
    /// Takes the bytes of an area, or none.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] for an impossible length.
    pub fn new(area: Vec<u8>) -> Result<Self, ErrorCode> {
        let blocks = area.len().saturating_sub(BLOCK_LEN) / BLOCK_LEN;
        if area.len() as u64 != area_len(blocks) || blocks > JOURNALED_MAX {
            return Err(ErrorCode::Invalid);
        }
        Ok(JournaledData { area })
    }

    /// Blocks in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.area.len().saturating_sub(BLOCK_LEN) / BLOCK_LEN
    }

    /// Whether there is no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.area.is_empty()
    }

    /// The blocks and their content, in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = (JournaledBlockId, &[u8])> {
        let (table, blocks) = self.area.split_at(BLOCK_LEN.min(self.area.len()));
        table
            .chunks_exact(JournaledBlockId::LEN)
            .map(JournaledBlockId::decode)
            .zip(blocks.chunks_exact(BLOCK_LEN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_gives_back_its_blocks() {
        let of = |block| JournaledBlockId {
            epoch: Epoch(7 << 32),
            block,
        };
        let mut area = vec![0; usize::try_from(area_len(2)).unwrap()];
        area[..16].copy_from_slice(&of(3).encode());
        area[16..32].copy_from_slice(&of(1 << 37).encode());
        area[4096..8192].fill(5);
        let carried = JournaledData::new(area).unwrap();
        assert_eq!(carried.len(), 2);
        let found: Vec<_> = carried.iter().map(|(of, data)| (of, data[0])).collect();
        assert_eq!(found, [(of(3), 5), (of(1 << 37), 0)]);
    }

    #[test]
    fn lengths_that_no_area_has_are_refused() {
        for len in [1, 4095, 4096, 4097, 8191, 8193, 18 * 4096] {
            assert_eq!(
                JournaledData::new(vec![0; len]),
                Err(ErrorCode::Invalid),
                "{len}"
            );
        }
        assert!(JournaledData::new(Vec::new()).unwrap().is_empty());
        assert_eq!(JournaledData::new(vec![0; 17 * 4096]).unwrap().len(), 16);
    }

    #[test]
    fn an_area_is_a_table_and_its_blocks() {
        assert_eq!(AREA_LEN, 69_632);
        assert_eq!([0, 1, 16].map(area_len), [0, 8192, AREA_LEN]);
        let of = JournaledBlockId {
            epoch: Epoch(0x0807_0605_0403_0201),
            block: 0x1817_1615_1413_1211,
        };
        let entry = [
            0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 1, 2, 3, 4, 5, 6, 7, 8,
        ];
        assert_eq!(of.encode(), entry);
        let mut area = entry.to_vec();
        area.resize(8192, 0);
        let carried = JournaledData::new(area).unwrap();
        assert!(!carried.is_empty());
        assert!(carried.iter().eq([(of, [0; 4096].as_slice())]));
    }
}
