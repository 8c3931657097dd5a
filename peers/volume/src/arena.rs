//! Cells of the blocker channel's arena: scatter lists and the blocks that are being merged.
//!
//! Two sizes, so that the rare long list does not take room from the many short ones. A piece holds at most one cell
//! and asks for it only when it could be sent, so cells always come back: waiting for one cannot dead-lock.

use archipelago_protocol::object::{SCATTER_ENTRY_LEN, SCATTER_MAX};

/// Bytes of a small cell: a block, or a scatter list of 256 entries.
pub(crate) const SMALL_LEN: u64 = 4096;
/// Entries of a scatter list in a small cell.
pub(crate) const SMALL_ENTRIES: usize = 256;
const _: () = assert!(SMALL_ENTRIES as u64 * SCATTER_ENTRY_LEN as u64 == SMALL_LEN);
/// Bytes of a large cell: the longest scatter list, 1024 entries of 16 bytes.
pub(crate) const LARGE_LEN: u64 = SCATTER_MAX as u64 * SCATTER_ENTRY_LEN as u64;
/// Smallest arena: one cell of each size.
pub(crate) const ARENA_LEN_MIN: u64 = SMALL_LEN + LARGE_LEN;

/// A cell in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Where it begins in the arena.
    pub(crate) offset: u64,
    large: bool,
}

/// The cells that are free.
#[derive(Debug)]
pub(crate) struct Arena {
    small: Vec<u64>,
    large: Vec<u64>,
}

impl Arena {
    /// Cuts an arena of `len` bytes into cells: a quarter of it into large ones, the rest into small ones.
    pub(crate) fn new(len: u64) -> Self {
        let large_count = (len / 4 / LARGE_LEN).max(1);
        let small_count = (len - large_count * LARGE_LEN) / SMALL_LEN;
        let small_start = large_count * LARGE_LEN;
        Arena {
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

    /// A cell for a block, or for a list of `entries`; `None`: wait until one comes back.
    pub(crate) fn take(&mut self, entries: usize) -> Option<Cell> {
        if entries <= SMALL_ENTRIES {
            return self.small.pop().map(|offset| Cell {
                offset,
                large: false,
            });
        }
        self.large.pop().map(|offset| Cell {
            offset,
            large: true,
        })
    }

    /// Gives a cell back. The lists never grow beyond the capacity that they began with.
    pub(crate) fn give(&mut self, cell: Cell) {
        if cell.large {
            self.large.push(cell.offset);
        } else {
            self.small.push(cell.offset);
        }
    }

    /// Cells that are free.
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
            let mut arena = Arena::new(len);
            let all = arena.free();
            let mut ranges = Vec::new();
            while let Some(cell) = arena.take(1) {
                ranges.push((cell.offset, cell.offset + SMALL_LEN, cell));
            }
            while let Some(cell) = arena.take(1024) {
                ranges.push((cell.offset, cell.offset + LARGE_LEN, cell));
            }
            ranges.sort_by_key(|range| range.0);
            assert!(
                ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0),
                "{len}"
            );
            assert!(ranges.last().unwrap().1 <= len, "{len}");
            ranges.into_iter().for_each(|(_, _, cell)| arena.give(cell));
            assert_eq!(arena.free(), all);
        }
    }
}
