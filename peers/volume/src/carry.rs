//! Copies of small first writes, so that a flush can hand them to the mapper's log instead of waiting for a sync.
//!
//! A first write makes the file system allocate, so the sync of its container commits the file system's journal: dear,
//! for a few blocks. If every write since the last round is a first write of whole blocks and has a copy here, the round
//! hands the copies over with its commit, and the containers stay dirty until a later round. Rules:
//!
//! - A write in place, a merge, or a write that found no room makes the next round an ordinary one ([`Carry::plain`]):
//!   the log cannot know of it, and a replay must not put an older copy over it.
//! - A write that meets another one in flight has no copy: log and home might not agree on which came last.
//! - Copies stand in the order in which their writes completed. They are taken before the write is sent; a guest that
//!   changes its memory meanwhile may find either content.

use archipelago_protocol::carry::{CARRIED_MAX, CarriedBlock, area_len};
use archipelago_protocol::volume::Segment;
use archipelago_protocol::{BLOCK_SIZE, Epoch};
use xseg::Region;

/// Bytes of a block, in memory.
const BLOCK_LEN: usize = 4096;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_SIZE);
/// A bit for each slot.
const ALL_FREE: u32 = (1 << CARRIED_MAX) - 1;

/// Slots of one write, in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slots {
    first: usize,
    count: usize,
}

impl Slots {
    fn bits(self) -> u32 {
        ((1 << self.count) - 1) << self.first
    }
}

/// The copies of one volume.
#[derive(Debug)]
pub(crate) struct Carry {
    /// A block for each slot; made when first needed.
    copies: Vec<u8>,
    free: u32,
    /// Completed since the last round, in order.
    done: [(CarriedBlock, usize); CARRIED_MAX],
    done_count: usize,
    /// Something was written since the last round of which there is no copy.
    pub(crate) plain: bool,
}

impl Default for Carry {
    fn default() -> Self {
        let none = CarriedBlock {
            epoch: Epoch(0),
            block: 0,
        };
        Carry {
            copies: Vec::new(),
            free: ALL_FREE,
            done: [(none, 0); CARRIED_MAX],
            done_count: 0,
            plain: false,
        }
    }
}

impl Carry {
    /// Of a volume with completed writes of which there are no copies any more.
    pub(crate) fn without_copies() -> Self {
        Carry {
            plain: true,
            ..Carry::default()
        }
    }

    /// Room for the copy of `len` bytes, if one is of use and there is room.
    pub(crate) fn reserve(&mut self, len: u64) -> Option<Slots> {
        let count = usize::try_from(len / BLOCK_SIZE).ok()?;
        if self.plain || count == 0 || count > CARRIED_MAX {
            return None;
        }
        let fits = |first: &usize| {
            let bits = Slots {
                first: *first,
                count,
            }
            .bits();
            self.free & bits == bits
        };
        let first = (0..=CARRIED_MAX - count).find(fits)?;
        let slots = Slots { first, count };
        self.free &= !slots.bits();
        Some(slots)
    }

    /// Takes the copy out of a guest's memory; `region` finds it.
    pub(crate) fn copy<'a>(
        &mut self,
        slots: Slots,
        parts: impl Iterator<Item = Segment>,
        region: impl Fn(u32) -> Option<&'a Region>,
    ) -> bool {
        self.copies.resize(CARRIED_MAX * BLOCK_LEN, 0);
        let from = slots.first * BLOCK_LEN;
        let mut room = &mut self.copies[from..from + slots.count * BLOCK_LEN];
        for part in parts {
            let Some((into, rest)) = room.split_at_mut_checked(part.len as usize) else {
                return false;
            };
            let copied = region(part.region).map(|region| region.read(part.offset, into));
            if !matches!(copied, Some(Ok(()))) {
                return false;
            }
            room = rest;
        }
        room.is_empty()
    }

    /// The write has completed: the next round may hand the copy over.
    pub(crate) fn complete(&mut self, slots: Slots, offset: u64, epoch: Epoch) {
        let first_block = offset / BLOCK_SIZE;
        for index in 0..slots.count {
            let block = first_block + index as u64;
            self.done[self.done_count] = (CarriedBlock { epoch, block }, slots.first + index);
            self.done_count += 1;
        }
    }

    /// Gives room back whose copy is not needed.
    pub(crate) fn give(&mut self, slots: Slots) {
        self.free |= slots.bits();
    }

    /// Whether a round would carry nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.done_count == 0
    }

    /// Forgets what has completed: it is made durable otherwise.
    pub(crate) fn clear(&mut self) {
        for (_, slot) in &self.done[..self.done_count] {
            self.free |= 1 << slot;
        }
        self.done_count = 0;
        self.plain = false;
    }

    /// Writes what has completed as an area at `at` of the mapper's arena and forgets it. Bytes of the area.
    pub(crate) fn hand_over(&mut self, arena: &Region, at: u64) -> u64 {
        for (index, (of, slot)) in self.done[..self.done_count].iter().enumerate() {
            let entry = at + (index * CarriedBlock::LEN) as u64;
            let block = at + area_len(index + 1) - BLOCK_SIZE;
            let copy = &self.copies[slot * BLOCK_LEN..(slot + 1) * BLOCK_LEN];
            arena
                .write(entry, &of.encode())
                .and_then(|()| arena.write(block, copy))
                .expect("areas lie in the arena");
        }
        let len = area_len(self.done_count);
        self.clear();
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u64, len: u32) -> Segment {
        Segment {
            region: 3,
            offset,
            len,
        }
    }

    #[test]
    fn what_is_handed_over_is_what_was_copied_in_the_order_of_completion() {
        let guest = Region::anonymous(64 << 10).unwrap();
        guest.fill(0, 8192, 1).unwrap();
        guest.fill(8192, 4096, 2).unwrap();
        let find = |id| (id == 3).then_some(&guest);
        let mut carry = Carry::default();
        let two = carry.reserve(8192).unwrap();
        let one = carry.reserve(4096).unwrap();
        assert!(carry.copy(two, [part(0, 512), part(512, 7680)].into_iter(), find));
        assert!(carry.copy(one, [part(8192, 4096)].into_iter(), find));
        guest.fill(0, 64 << 10, 9).unwrap();
        carry.complete(one, 40960, Epoch(5));
        carry.complete(two, 4096, Epoch(6));
        let arena = Region::anonymous(1 << 20).unwrap();
        assert_eq!(carry.hand_over(&arena, 4096), 4 * 4096);
        let mut area = vec![0; 4 * 4096];
        arena.read(4096, &mut area).unwrap();
        let carried = archipelago_protocol::carry::Carried::new(area).unwrap();
        let found: Vec<_> = carried
            .iter()
            .map(|(of, copy)| (of.block, of.epoch.0, copy[0], copy[4095]))
            .collect();
        assert_eq!(found, [(10, 5, 2, 2), (1, 6, 1, 1), (2, 6, 1, 1)]);
        assert!(carry.is_empty() && carry.free == ALL_FREE);
    }

    #[test]
    fn room_is_bounded_and_comes_back() {
        let mut carry = Carry::default();
        assert_eq!(carry.reserve(17 * 4096), None);
        let most = carry.reserve(15 * 4096).unwrap();
        assert_eq!(carry.reserve(8192), None);
        let last = carry.reserve(4096).unwrap();
        assert_eq!(carry.reserve(4096), None);
        carry.give(most);
        carry.complete(last, 0, Epoch(1));
        carry.plain = true;
        assert_eq!(carry.reserve(4096), None);
        carry.clear();
        assert!(carry.reserve(16 * 4096).is_some());
    }

    #[test]
    fn a_copy_of_memory_that_is_not_there_fails() {
        let mut carry = Carry::default();
        let slots = carry.reserve(4096).unwrap();
        let guest = Region::anonymous(4096).unwrap();
        let find = |id| (id == 3).then_some(&guest);
        assert!(!carry.copy(slots, [part(0, 512)].into_iter(), find));
        assert!(!carry.copy(slots, [part(0, 8192)].into_iter(), find));
        assert!(!carry.copy(slots, [part(4096, 4096)].into_iter(), find));
    }
}
