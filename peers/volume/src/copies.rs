//! Copies of small first writes: a flush can write them to the mapper's log as journaled data, instead of syncing objects.
//!
//! A first write makes the file system allocate, so the sync of its object commits the file system's journal: that is expensive for a few
//! blocks. If every write since the last round is a first write of whole blocks and has a copy here, the commit of the round includes the
//! copies, and the objects stay dirty until a later round. Rules:
//!
//! - After a write in place, a merge, or a write without room for its copy, the next round writes back ([`Copies::has_all`]): the log
//!   cannot contain such a write, and a replay must not overwrite it with an older copy.
//! - A write that overlaps another one in flight has no copy: log and home location might disagree on which came last.
//! - Copies are kept in the order in which their writes completed. A copy is made before its write is sent; if the guest changes its memory
//!   meanwhile, either content may be read later.

use archipelago_protocol::journaled::{AREA_LEN, JOURNALED_MAX, JournaledBlockId, area_len};
use archipelago_protocol::{BLOCK_SIZE, Epoch};
use xseg::Region;

use crate::blocks::BLOCK_LEN;

/// A bit for each slot.
const ALL_FREE: u32 = (1 << JOURNALED_MAX) - 1;

/// Consecutive slots of one write.
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
pub(crate) struct Copies {
    /// A block for each slot; allocated at first use.
    blocks: Vec<u8>,
    free: u32,
    /// Copies of writes that completed since the last round, in order.
    done: [(JournaledBlockId, usize); JOURNALED_MAX],
    done_count: usize,
    /// Since the last round, something was written without a copy.
    incomplete: bool,
}

impl Default for Copies {
    fn default() -> Self {
        let none = JournaledBlockId {
            epoch: Epoch(0),
            block: 0,
        };
        Copies {
            blocks: Vec::new(),
            free: ALL_FREE,
            done: [(none, 0); JOURNALED_MAX],
            done_count: 0,
            incomplete: false,
        }
    }
}

impl Copies {
    /// For a volume with completed writes whose copies are lost.
    pub(crate) fn lost() -> Self {
        Copies {
            incomplete: true,
            ..Copies::default()
        }
    }

    /// Whether everything that was written since the last round has a copy.
    pub(crate) fn has_all(&self) -> bool {
        !self.incomplete
    }

    /// Records that something was written without a copy.
    pub(crate) fn lack_one(&mut self) {
        self.incomplete = true;
    }

    /// Reserves room for a copy of `len` bytes, if a copy is useful and there is room.
    pub(crate) fn reserve(&mut self, len: u64) -> Option<Slots> {
        let count = usize::try_from(len / BLOCK_SIZE).ok()?;
        if self.incomplete || count == 0 || count > JOURNALED_MAX {
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
        let first = (0..=JOURNALED_MAX - count).find(fits)?;
        let slots = Slots { first, count };
        self.free &= !slots.bits();
        Some(slots)
    }

    /// The memory of reserved room, into which the copy is read.
    pub(crate) fn room(&mut self, slots: Slots) -> &mut [u8] {
        self.blocks.resize(JOURNALED_MAX * BLOCK_LEN, 0);
        &mut self.blocks[slots.first * BLOCK_LEN..][..slots.count * BLOCK_LEN]
    }

    /// The write has completed: the next round may include the copy.
    pub(crate) fn complete(&mut self, slots: Slots, offset: u64, epoch: Epoch) {
        let first_block = offset / BLOCK_SIZE;
        for index in 0..slots.count {
            let block = first_block + index as u64;
            self.done[self.done_count] = (JournaledBlockId { epoch, block }, slots.first + index);
            self.done_count += 1;
        }
    }

    /// Releases room whose copy is not needed.
    pub(crate) fn release(&mut self, slots: Slots) {
        self.free |= slots.bits();
    }

    /// Whether there are no copies of completed writes.
    pub(crate) fn is_empty(&self) -> bool {
        self.done_count == 0
    }

    /// Discards the copies of completed writes: these writes are made durable in another way.
    pub(crate) fn clear(&mut self) {
        for (_, slot) in &self.done[..self.done_count] {
            self.free |= 1 << slot;
        }
        self.done_count = 0;
        self.incomplete = false;
    }

    /// Writes the copies of completed writes into `area`, and discards them.
    pub(crate) fn hand_over(&mut self, arena: &Region, area: &mut Area) {
        for (index, (of, slot)) in self.done[..self.done_count].iter().enumerate() {
            let entry = area.offset + (index * JournaledBlockId::LEN) as u64;
            let block = area.offset + area_len(index + 1) - BLOCK_SIZE;
            let copy = &self.blocks[slot * BLOCK_LEN..(slot + 1) * BLOCK_LEN];
            arena
                .write(entry, &of.encode())
                .and_then(|()| arena.write(block, copy))
                .expect("areas lie in the arena");
        }
        area.len = area_len(self.done_count);
        self.clear();
    }
}

/// A range of the mapper channel's arena in which a commit sends journaled data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area {
    offset: u64,
    len: u64,
}

impl Area {
    /// Offset and length, as requests to the mapper contain them.
    pub(crate) fn named(self) -> (u64, u64) {
        (self.offset, self.len)
    }
}

/// The free areas, for all volumes.
#[derive(Debug)]
pub(crate) struct Areas {
    free: Vec<u64>,
    acquired: u64,
}

impl Areas {
    /// Divides an arena of `len` bytes into areas.
    pub(crate) fn new(len: u64) -> Self {
        Areas {
            free: (0..len / AREA_LEN)
                .rev()
                .map(|index| index * AREA_LEN)
                .collect(),
            acquired: 0,
        }
    }

    /// An area, if one is free.
    pub(crate) fn acquire(&mut self) -> Option<Area> {
        let offset = self.free.pop()?;
        self.acquired += 1;
        Some(Area { offset, len: 0 })
    }

    /// Releases an area that is no longer read.
    pub(crate) fn release(&mut self, area: Area) {
        self.free.push(area.offset);
    }

    /// Number of areas acquired so far.
    pub(crate) fn acquired(&self) -> u64 {
        self.acquired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_is_what_was_copied_in_the_order_of_completion() {
        let mut copies = Copies::default();
        let two = copies.reserve(8192).unwrap();
        let one = copies.reserve(4096).unwrap();
        copies.room(two).fill(1);
        copies.room(one).fill(2);
        copies.complete(one, 40960, Epoch(5));
        copies.complete(two, 4096, Epoch(6));
        let arena = Region::anonymous(1 << 20).unwrap();
        let mut areas = Areas::new(1 << 20);
        let first = areas.acquire().unwrap();
        let mut area = areas.acquire().unwrap();
        assert_ne!(first, area);
        copies.hand_over(&arena, &mut area);
        let (at, len) = area.named();
        assert_eq!((at, len), (AREA_LEN, 4 * 4096));
        let mut bytes = vec![0; 4 * 4096];
        arena.read(at, &mut bytes).unwrap();
        let carried = archipelago_protocol::journaled::JournaledData::new(bytes).unwrap();
        let found: Vec<_> = carried
            .iter()
            .map(|(of, copy)| (of.block, of.epoch.0, copy[0], copy[4095]))
            .collect();
        assert_eq!(found, [(10, 5, 2, 2), (1, 6, 1, 1), (2, 6, 1, 1)]);
        assert!(copies.is_empty() && copies.free == ALL_FREE);
    }

    #[test]
    fn room_is_bounded_and_is_released() {
        let mut copies = Copies::default();
        assert_eq!(copies.reserve(17 * 4096), None);
        let most = copies.reserve(15 * 4096).unwrap();
        assert_eq!(copies.reserve(8192), None);
        let last = copies.reserve(4096).unwrap();
        assert_eq!(copies.reserve(4096), None);
        copies.release(most);
        copies.complete(last, 0, Epoch(1));
        copies.lack_one();
        assert_eq!(copies.reserve(4096), None);
        copies.clear();
        assert!(copies.reserve(16 * 4096).is_some());
    }
}
