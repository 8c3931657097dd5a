//! Cells of the blocker channel's arena: they hold scatter lists and blocks that are being merged.
//!
//! There are two sizes, so that the rare long lists do not use up the room of the many short ones. A piece holds at most one cell and
//! acquires it only when the piece can be sent, so cells always become free: waiting for one cannot cause a deadlock.

use archipelago_protocol::BLOCK_SIZE;
use archipelago_protocol::object::{Memory, SCATTER_ENTRY_LEN, SCATTER_MAX};
use xseg::{Region, RegionId};

use crate::segments::{Parts, scatter_entry};

/// Bytes of a small cell: a block, or a scatter list of 256 entries.
pub(crate) const SMALL_LEN: u64 = 4096;
/// Entries of a scatter list in a small cell.
pub(crate) const SMALL_ENTRIES: usize = 256;
const _: () = assert!(SMALL_ENTRIES as u64 * SCATTER_ENTRY_LEN as u64 == SMALL_LEN);
const _: () = assert!(SMALL_LEN == BLOCK_SIZE);
/// Bytes of a large cell: the longest scatter list, 1024 entries of 16 bytes.
pub(crate) const LARGE_LEN: u64 = SCATTER_MAX as u64 * SCATTER_ENTRY_LEN as u64;
/// Smallest arena: one cell of each size.
pub(crate) const ARENA_LEN_MIN: u64 = SMALL_LEN + LARGE_LEN;
/// Scatter entries that are encoded at a time, on the stack: 1 KiB.
const ENTRIES_AT_ONCE: usize = 64;

/// A cell in use. Only its methods write and name its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Offset in the arena.
    offset: u64,
    large: bool,
}

impl Cell {
    /// The cell as the memory of one block.
    pub(crate) fn block(self) -> Memory {
        self.memory(0)
    }

    /// The cell as the scatter list of `count` entries.
    pub(crate) fn list(self, count: usize) -> Memory {
        self.memory(u16::try_from(count).expect("at most SEGMENTS_MAX"))
    }

    /// Writes the scatter list of `parts`.
    pub(crate) fn write_list(self, arena: &Region, parts: Parts<'_>) {
        let mut chunk = [0; ENTRIES_AT_ONCE * SCATTER_ENTRY_LEN];
        let (mut filled, mut at) = (0, self.offset);
        for part in parts {
            chunk[filled..filled + SCATTER_ENTRY_LEN].copy_from_slice(&scatter_entry(part));
            filled += SCATTER_ENTRY_LEN;
            if filled == chunk.len() {
                arena.write(at, &chunk).expect("cells lie in the arena");
                at += filled as u64;
                filled = 0;
            }
        }
        arena
            .write(at, &chunk[..filled])
            .expect("cells lie in the arena");
    }

    /// Writes `bytes` at byte `into` of the block.
    pub(crate) fn write(self, arena: &Region, into: u64, bytes: &[u8]) {
        debug_assert!(into + bytes.len() as u64 <= BLOCK_SIZE);
        arena
            .write(self.offset + into, bytes)
            .expect("cells lie in the arena");
    }

    /// Writes `len` zeros at byte `into` of the block.
    pub(crate) fn write_zeros(self, arena: &Region, into: u64, len: u64) {
        debug_assert!(into + len <= BLOCK_SIZE);
        arena
            .fill(self.offset + into, len, 0)
            .expect("cells lie in the arena");
    }

    fn memory(self, count: u16) -> Memory {
        Memory {
            region: RegionId::ARENA.0,
            count,
            offset: self.offset,
        }
    }
}

/// The free cells.
#[derive(Debug)]
pub(crate) struct Cells {
    small: Vec<u64>,
    large: Vec<u64>,
}

impl Cells {
    /// Divides an arena of `len` bytes into cells: a quarter into large ones, the rest into small ones.
    pub(crate) fn new(len: u64) -> Self {
        let large_count = (len / 4 / LARGE_LEN).max(1);
        let small_count = (len - large_count * LARGE_LEN) / SMALL_LEN;
        let small_start = large_count * LARGE_LEN;
        Cells {
            large: (0..large_count)
                .rev()
                .map(|index| index * LARGE_LEN)
                .collect(),
            small: (0..small_count)
                .rev()
                .map(|index| small_start + index * SMALL_LEN)
                .collect(),
        }
    }

    /// A cell for a block, or for a list of `entries`; `None`: wait until a cell is released.
    pub(crate) fn acquire(&mut self, entries: usize) -> Option<Cell> {
        let large = entries > SMALL_ENTRIES;
        let free = if large {
            &mut self.large
        } else {
            &mut self.small
        };
        free.pop().map(|offset| Cell { offset, large })
    }

    /// Releases a cell. The lists never grow beyond their initial capacity.
    pub(crate) fn release(&mut self, cell: Cell) {
        if cell.large {
            self.large.push(cell.offset);
        } else {
            self.small.push(cell.offset);
        }
    }

    /// Number of free cells.
    pub(crate) fn free(&self) -> usize {
        self.small.len() + self.large.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_do_not_overlap_and_stay_inside() {
        for len in [ARENA_LEN_MIN, 1 << 16, 1 << 20, (1 << 20) + 777] {
            let mut cells = Cells::new(len);
            let all = cells.free();
            let mut ranges = Vec::new();
            while let Some(cell) = cells.acquire(1) {
                ranges.push((cell.offset, cell.offset + SMALL_LEN, cell));
            }
            while let Some(cell) = cells.acquire(1024) {
                ranges.push((cell.offset, cell.offset + LARGE_LEN, cell));
            }
            ranges.sort_by_key(|range| range.0);
            assert!(
                ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0),
                "{len}"
            );
            assert!(ranges.last().unwrap().1 <= len, "{len}");
            ranges
                .into_iter()
                .for_each(|(_, _, cell)| cells.release(cell));
            assert_eq!(cells.free(), all);
        }
    }
}
