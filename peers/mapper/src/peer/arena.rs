//! Who uses which part of a channel's arena: extents of whole blocks, found by first fit.
//!
//! Invariants
//! - Free stretches are disjoint, sorted, and never touch: neighbours are joined when one is released.
//! - First fit is enough: few requests are in flight, and most are of one block.

use std::collections::BTreeMap;

/// Unit of allocation: what direct I/O wants aligned.
const UNIT: u64 = 4096;

/// The extents of an arena.
#[derive(Debug)]
pub(super) struct Arena {
    len: u64,
    /// Lengths of the free extents, by start.
    free: BTreeMap<u64, u64>,
}

/// A part of an arena, in use until it is released: by hand, for it must outlive the request that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    start: u64,
    len: u64,
}

impl Extent {
    /// Its first byte.
    pub(super) fn start(self) -> u64 {
        self.start
    }
}

impl Arena {
    /// All of an arena of `len` bytes.
    pub(super) fn new(len: u64) -> Arena {
        let whole = len - len % UNIT;
        let free = if whole == 0 {
            BTreeMap::new()
        } else {
            BTreeMap::from([(0, whole)])
        };
        Arena { len: whole, free }
    }

    /// Bytes of all extents together.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// An extent for `len` bytes; `None`: not now.
    pub(super) fn allocate(&mut self, len: u32) -> Option<Extent> {
        let len = u64::from(len).max(1).next_multiple_of(UNIT);
        let (&start, &found) = self.free.iter().find(|(_, found)| **found >= len)?;
        self.free.remove(&start);
        if found > len {
            self.free.insert(start + len, found - len);
        }
        Some(Extent { start, len })
    }

    /// Takes `extent` back.
    pub(super) fn release(&mut self, extent: Extent) {
        let Extent { mut start, mut len } = extent;
        if let Some((&before, &before_len)) = self.free.range(..start).next_back() {
            assert!(before + before_len <= start, "an extent is released once");
            if before + before_len == start {
                self.free.remove(&before);
                (start, len) = (before, before_len + len);
            }
        }
        if let Some(after_len) = self.free.remove(&(start + len)) {
            len += after_len;
        }
        self.free.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_released_joins_its_neighbours() {
        let mut arena = Arena::new(64 << 10);
        let extents: Vec<Extent> = (0..16).map(|_| arena.allocate(4096).unwrap()).collect();
        assert_eq!(arena.allocate(1), None);
        for index in [3, 5, 4, 0, 15, 1, 2, 14, 6, 7, 13, 8, 12, 9, 11, 10] {
            arena.release(extents[index]);
        }
        let whole = arena.allocate(64 << 10).unwrap();
        assert_eq!(whole.start, 0);
        assert_eq!(arena.allocate(1), None);
    }

    #[test]
    fn extents_never_overlap_whatever_their_order() {
        let mut arena = Arena::new(1 << 20);
        let mut held: Vec<Extent> = Vec::new();
        let mut state = 7_u64;
        for _ in 0..10_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let draw = state >> 33;
            if draw.is_multiple_of(2) && !held.is_empty() {
                let index = usize::try_from(draw).unwrap() % held.len();
                arena.release(held.swap_remove(index));
            } else if let Some(extent) = arena.allocate(u32::try_from(draw % 100_000).unwrap()) {
                for other in &held {
                    assert!(
                        extent.start + extent.len <= other.start
                            || other.start + other.len <= extent.start
                    );
                }
                held.push(extent);
            }
        }
    }
}
