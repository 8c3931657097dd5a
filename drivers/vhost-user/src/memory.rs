//! Guest memory: translates addresses of the guest or the front end to a piece of a region.
//!
//! Invariants
//! - Every address is checked against the private table for its whole length; a range may continue into the next slot.
//! - A slot that is being removed is no longer found by address, but keeps its region until the requests that may name it are done (it is
//!   retired until then).
//! - The cost of a look-up grows with the logarithm of the number of slots: a guest may have 509 of them, and requests of 512 pieces.
//! - Each slot has a region of its own in the volume peer, so slots are added and removed independently.

use std::fs::File;
use std::os::fd::OwnedFd;

use archipelago_protocol::volume::Segment;
use xseg::{Region, RegionId};

/// Most memory slots of a front end: QEMU's limit with memory hotplug.
pub const MEMORY_SLOTS_MAX: usize = 509;

/// Offsets of `mmap` are multiples of this.
const PAGE: u64 = 4096;

/// A memory slot as a front end describes it, mapped.
#[derive(Debug, Clone)]
pub struct GuestSlot {
    /// First guest-physical address, which descriptors use.
    pub guest: u64,
    /// First address in the front end, which ring addresses use.
    pub user: u64,
    /// Length in bytes.
    pub len: u64,
    /// The mapping; may begin before the slot.
    pub region: Region,
    /// Offset of the slot in `region`.
    pub start: u64,
}

impl GuestSlot {
    /// Maps `len` bytes at `file_offset` of `file`.
    ///
    /// # Errors
    /// The error of `mmap`; `InvalidInput` for a file that is shorter, or numbers that overflow.
    pub fn map(
        guest: u64,
        user: u64,
        len: u64,
        file: File,
        file_offset: u64,
    ) -> std::io::Result<GuestSlot> {
        let refused = |text| std::io::Error::new(std::io::ErrorKind::InvalidInput, text);
        let ends = [guest, user, file_offset].map(|first| first.checked_add(len));
        if len == 0 || ends.contains(&None) {
            return Err(refused("a memory slot that wraps or is empty"));
        }
        let start = file_offset % PAGE;
        let whole = start
            .checked_add(len)
            .and_then(|whole| usize::try_from(whole).ok())
            .ok_or_else(|| refused("a memory slot larger than the address space"))?;
        let region = Region::from_fd(OwnedFd::from(file), file_offset - start, whole)?;
        Ok(GuestSlot {
            guest,
            user,
            len,
            region,
            start,
        })
    }
}

/// A place in guest memory, of one slot.
#[derive(Debug, Clone)]
pub struct Place {
    /// The slot's mapping.
    pub region: Region,
    /// Offset in it.
    pub offset: u64,
}

#[derive(Debug)]
struct Slot {
    slot: GuestSlot,
    id: RegionId,
    /// Set when the slot is being removed: the memory generation that still may name it.
    retired: Option<u64>,
}

/// The memory slots of one front end.
#[derive(Debug, Default)]
pub struct MemoryTable {
    slots: Vec<Slot>,
    /// Slots in use, by guest address; they do not overlap.
    by_guest: Vec<usize>,
    /// All slots, by region number.
    by_region: Vec<usize>,
}

impl MemoryTable {
    /// Enters a slot, under its region number in the volume peer.
    pub fn insert(&mut self, slot: GuestSlot, id: RegionId) {
        self.slots.push(Slot {
            slot,
            id,
            retired: None,
        });
        self.index();
    }

    /// Sorts the slots again after a change.
    fn index(&mut self) {
        let slots = &self.slots;
        self.by_guest.clear();
        self.by_guest
            .extend((0..slots.len()).filter(|index| slots[*index].retired.is_none()));
        self.by_guest
            .sort_unstable_by_key(|index| slots[*index].slot.guest);
        self.by_region.clear();
        self.by_region.extend(0..slots.len());
        self.by_region
            .sort_unstable_by_key(|index| slots[*index].id);
    }

    /// Slots that are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|s| s.retired.is_none()).count()
    }

    /// Whether no slot is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a slot in use shares guest or front-end addresses with `slot`.
    #[must_use]
    pub fn overlaps(&self, slot: &GuestSlot) -> bool {
        let cross = |a: u64, b: u64, b_len: u64| a < b + b_len && b < a + slot.len;
        self.slots.iter().any(|s| {
            s.retired.is_none()
                && (cross(slot.guest, s.slot.guest, s.slot.len)
                    || cross(slot.user, s.slot.user, s.slot.len))
        })
    }

    /// Retires the slot with this description. `false`: there is none.
    pub fn retire(&mut self, guest: u64, user: u64, len: u64, generation: u64) -> bool {
        let found = self.slots.iter_mut().find(|s| {
            s.retired.is_none() && (s.slot.guest, s.slot.user, s.slot.len) == (guest, user, len)
        });
        let found = found.map(|slot| slot.retired = Some(generation));
        self.index();
        found.is_some()
    }

    /// Retires every slot.
    pub fn retire_all(&mut self, generation: u64) {
        for slot in self.slots.iter_mut().filter(|s| s.retired.is_none()) {
            slot.retired = Some(generation);
        }
        self.index();
    }

    /// Removes a retired slot that no request of generation `oldest` or later can name.
    pub fn take_retired(&mut self, oldest: Option<u64>) -> Option<RegionId> {
        let index = self.slots.iter().position(|slot| {
            slot.retired
                .is_some_and(|generation| oldest.is_none_or(|oldest| oldest > generation))
        })?;
        let id = self.slots.swap_remove(index).id;
        self.index();
        Some(id)
    }

    /// Whether a retired slot is still in the table.
    #[must_use]
    pub fn has_retired(&self) -> bool {
        self.slots.iter().any(|slot| slot.retired.is_some())
    }

    /// Whether the file of a slot in use was truncated: what the guest had there is lost.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.slots
            .iter()
            .any(|s| s.retired.is_none() && s.slot.region.is_damaged())
    }

    /// The region numbers in use.
    pub fn regions(&self) -> impl Iterator<Item = RegionId> + '_ {
        self.slots.iter().map(|slot| slot.id)
    }

    fn find(&self, address: u64) -> Option<(&Slot, u64)> {
        let begin_before = |index: &usize| self.slots[*index].slot.guest <= address;
        let after = self.by_guest.partition_point(begin_before);
        let slot = &self.slots[self.by_guest[after.checked_sub(1)?]];
        let inside = address - slot.slot.guest;
        (inside < slot.slot.len).then_some((slot, inside))
    }

    /// Appends the pieces of the guest's `len` bytes at `address`, at most `room` of them, each with its guest address. `false`: some byte
    /// is not in memory, or there is no room.
    #[must_use]
    pub fn translate(
        &self,
        mut address: u64,
        len: u32,
        room: usize,
        segments: &mut Vec<Segment>,
        addresses: &mut Vec<u64>,
    ) -> bool {
        let mut left = len;
        while left > 0 {
            if segments.len() >= room {
                return false;
            }
            let Some((slot, inside)) = self.find(address) else {
                return false;
            };
            let here = u32::try_from(slot.slot.len - inside).map_or(left, |rest| rest.min(left));
            segments.push(Segment {
                region: slot.id.0,
                len: here,
                offset: slot.slot.start + inside,
            });
            addresses.push(address);
            left -= here;
            match address.checked_add(u64::from(here)) {
                Some(next) => address = next,
                None => return left == 0,
            }
        }
        true
    }

    /// The guest's `len` bytes at `address`, if they lie in one slot.
    #[must_use]
    pub fn guest_place(&self, address: u64, len: u64) -> Option<Place> {
        let (slot, inside) = self.find(address)?;
        (len <= slot.slot.len - inside).then(|| Place {
            region: slot.slot.region.clone(),
            offset: slot.slot.start + inside,
        })
    }

    /// The front end's `len` bytes at its own `address`, if they lie in one slot: the place of a ring.
    #[must_use]
    pub fn user_place(&self, address: u64, len: u64) -> Option<Place> {
        self.slots.iter().find_map(|slot| {
            let inside = address.checked_sub(slot.slot.user)?;
            let fits = inside < slot.slot.len && len <= slot.slot.len - inside;
            (slot.retired.is_none() && fits).then(|| Place {
                region: slot.slot.region.clone(),
                offset: slot.slot.start + inside,
            })
        })
    }

    /// The region of a segment from [`MemoryTable::translate`], also of a retired slot.
    #[must_use]
    pub fn region(&self, id: u32) -> Option<&Region> {
        let id_of = |index: &usize| self.slots[*index].id.0;
        let found = self.by_region.binary_search_by_key(&id, id_of).ok()?;
        Some(&self.slots[self.by_region[found]].slot.region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> MemoryTable {
        let mut table = MemoryTable::default();
        for (number, guest) in [(1, 0x1000), (2, 0x3000)] {
            let slot = GuestSlot {
                guest,
                user: guest + 0x10_0000,
                len: 0x2000,
                region: Region::anonymous(0x2000).unwrap(),
                start: 0,
            };
            assert!(!table.overlaps(&slot));
            table.insert(slot, RegionId(number));
        }
        table
    }

    #[test]
    fn a_range_runs_on_into_the_next_slot_and_not_beyond() {
        let table = table();
        let (mut segments, mut addresses) = (Vec::new(), Vec::new());
        assert!(table.translate(0x2ff0, 0x20, 8, &mut segments, &mut addresses));
        assert_eq!(addresses, [0x2ff0, 0x3000]);
        assert_eq!((segments[0].len, segments[1].len), (0x10, 0x10));
        assert!(!table.translate(0x4ff0, 0x20, 8, &mut segments, &mut addresses));
        assert!(!table.translate(u64::MAX - 4, 8, 8, &mut segments, &mut addresses));
        assert!(!table.translate(0xfff, 2, 8, &mut segments, &mut addresses));
    }

    #[test]
    fn front_end_addresses_are_not_guest_addresses() {
        let table = table();
        assert!(table.user_place(0x10_1000, 0x2000).is_some());
        assert!(table.user_place(0x10_1000, 0x2001).is_none());
        assert!(table.user_place(0x1000, 1).is_none());
        assert!(table.guest_place(0x10_1000, 1).is_none());
    }

    #[test]
    fn slots_are_found_whatever_the_order_in_which_they_came_and_went() {
        let mut table = MemoryTable::default();
        let region = Region::anonymous(0x1000).unwrap();
        for (number, page) in [(7, 3), (2, 9), (5, 1), (4, 6)] {
            let guest = page << 12;
            let user = guest + 0x10_0000;
            let (len, region, start) = (0x1000, region.clone(), 0);
            table.insert(
                GuestSlot {
                    guest,
                    user,
                    len,
                    region,
                    start,
                },
                RegionId(number),
            );
        }
        let found = |table: &MemoryTable| {
            (0..11u64)
                .filter(|page| table.guest_place((page << 12) + 5, 9).is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(found(&table), [1, 3, 6, 9]);
        assert!(table.retire(0x3000, 0x10_3000, 0x1000, 1));
        assert_eq!(found(&table), [1, 6, 9]);
        assert!([2, 4, 5, 7].iter().all(|id| table.region(*id).is_some()));
        assert_eq!(table.take_retired(None), Some(RegionId(7)));
        assert!(table.region(7).is_none() && table.region(2).is_some());
        assert_eq!(found(&table), [1, 6, 9]);
    }

    #[test]
    fn a_retired_slot_is_not_found_but_stays_until_old_requests_are_done() {
        let mut table = table();
        assert!(table.retire(0x1000, 0x10_1000, 0x2000, 7));
        assert!(!table.retire(0x1000, 0x10_1000, 0x2000, 7));
        assert!(table.guest_place(0x1000, 1).is_none());
        assert!(table.region(1).is_some());
        assert_eq!(table.take_retired(Some(7)), None);
        assert_eq!(table.take_retired(Some(8)), Some(RegionId(1)));
        assert!(table.region(1).is_none());
    }
}
