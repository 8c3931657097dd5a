//! Guest memory and the volume peer: each slot is a region, which is added to the peer before requests name it, and removed once none does.

use archipelago_protocol::volume::Volumes;

use crate::command::Refusal;
use crate::memory::{GuestSlot, MEMORY_SLOTS_MAX, MemoryTable};

/// The memory of a device's guest.
#[derive(Debug)]
pub(super) struct GuestMemory {
    table: MemoryTable,
    /// Raised with each change for which older requests must have ended.
    generation: u64,
    /// Whether the volume peer has all regions.
    ready: bool,
}

impl GuestMemory {
    pub(super) fn new() -> Self {
        GuestMemory {
            table: MemoryTable::default(),
            generation: 0,
            ready: true,
        }
    }

    /// Translates addresses.
    pub(super) fn table(&self) -> &MemoryTable {
        &self.table
    }

    /// The generation of requests that are taken now.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Begins another generation.
    pub(super) fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Whether requests may name every slot.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether new slots may be named, and no request names removed ones.
    pub(super) fn is_settled(&self) -> bool {
        self.ready && !self.table.has_retired()
    }

    /// Adds a slot.
    pub(super) fn add(&mut self, slot: GuestSlot, peer: &mut impl Volumes) -> Result<(), Refusal> {
        if self.table.overlaps(&slot) {
            return Err(Refusal::SlotsOverlap);
        }
        if self.table.len() >= MEMORY_SLOTS_MAX {
            return Err(Refusal::TooManySlots);
        }
        let id = peer.fresh_region();
        if peer.add_region(id, slot.region.clone()).is_err() {
            return Err(Refusal::TooManyRegions);
        }
        self.ready = false;
        self.table.insert(slot, id);
        Ok(())
    }

    /// Removes a slot.
    pub(super) fn remove(&mut self, guest: u64, user: u64, len: u64) -> Result<(), Refusal> {
        if !self.table.retire(guest, user, len, self.generation) {
            return Err(Refusal::NoSuchSlot);
        }
        self.next_generation();
        Ok(())
    }

    /// Replaces all slots.
    pub(super) fn replace(
        &mut self,
        slots: Vec<GuestSlot>,
        peer: &mut impl Volumes,
    ) -> Result<(), Refusal> {
        self.table.retire_all(self.generation);
        self.next_generation();
        slots.into_iter().try_for_each(|slot| self.add(slot, peer))
    }

    /// Checks whether new regions are ready, and removes those that no request names; `oldest`: the oldest generation in flight.
    pub(super) fn settle(&mut self, oldest: impl FnOnce() -> Option<u64>, peer: &mut impl Volumes) {
        if !self.ready {
            self.ready = self.table.regions().all(|id| peer.region_ready(id));
        }
        if self.table.has_retired() {
            self.give_back(oldest(), peer);
        }
    }

    /// Removes all memory; nothing is in flight.
    pub(super) fn clear(&mut self, peer: &mut impl Volumes) {
        self.table.retire_all(self.generation);
        self.give_back(None, peer);
        self.ready = true;
    }

    fn give_back(&mut self, oldest: Option<u64>, peer: &mut impl Volumes) {
        while let Some(id) = self.table.take_retired(oldest) {
            peer.remove_region(id);
        }
    }
}
