//! Room in a channel's arena for the mapper's metadata: first fit, in whole blocks.
//!
//! Invariants
//! - Free stretches are disjoint, sorted, and never touch: neighbours are joined when one is given back.
//! - First fit is enough: few requests are in flight, and most are of one block.

use std::collections::BTreeMap;

/// Unit of allocation: what direct I/O wants aligned.
const UNIT: u64 = 4096;

/// The free room of an arena.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Length by start.
    free: BTreeMap<u64, u64>,
}

/// A piece of an arena. Given back by hand: it must outlive the request that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) start: u64,
    len: u64,
}

impl Arena {
    /// All of an arena of `len` bytes.
    pub(crate) fn new(len: u64) -> Arena {
        let whole = len - len % UNIT;
        let free = if whole == 0 {
            BTreeMap::new()
        } else {
            BTreeMap::from([(0, whole)])
        };
        Arena { free }
    }

    /// Room for `len` bytes; `None`: not now.
    pub(crate) fn take(&mut self, len: u32) -> Option<Room> {
        let len = u64::from(len).max(1).next_multiple_of(UNIT);
        let (&start, &found) = self.free.iter().find(|(_, found)| **found >= len)?;
        self.free.remove(&start);
        if found > len {
            self.free.insert(start + len, found - len);
        }
        Some(Room { start, len })
    }

    /// Takes `room` back.
    pub(crate) fn give(&mut self, room: Room) {
        let Room { mut start, mut len } = room;
        if let Some((&before, &before_len)) = self.free.range(..start).next_back() {
            assert!(before + before_len <= start, "room is given back once");
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
    fn what_is_given_back_joins_its_neighbours() {
        let mut arena = Arena::new(64 << 10);
        let rooms: Vec<Room> = (0..16).map(|_| arena.take(4096).unwrap()).collect();
        assert_eq!(arena.take(1), None);
        for index in [3, 5, 4, 0, 15, 1, 2, 14, 6, 7, 13, 8, 12, 9, 11, 10] {
            arena.give(rooms[index]);
        }
        let whole = arena.take(64 << 10).unwrap();
        assert_eq!(whole.start, 0);
        assert_eq!(arena.take(1), None);
    }

    #[test]
    fn rooms_never_overlap_whatever_their_order() {
        let mut arena = Arena::new(1 << 20);
        let mut held: Vec<Room> = Vec::new();
        let mut state = 7_u64;
        for _ in 0..10_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let draw = state >> 33;
            if draw.is_multiple_of(2) && !held.is_empty() {
                let index = usize::try_from(draw).unwrap() % held.len();
                arena.give(held.swap_remove(index));
            } else if let Some(room) = arena.take(u32::try_from(draw % 100_000).unwrap()) {
                for other in &held {
                    assert!(
                        room.start + room.len <= other.start
                            || other.start + other.len <= room.start
                    );
                }
                held.push(room);
            }
        }
    }
}
