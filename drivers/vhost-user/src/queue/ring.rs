//! The words of one split ring in guest memory (virtio 1.2, section 2.7).
//!
//! Invariants
//! - `last_avail_idx` and `used_idx` are private. The ring's own words are read once per use and never trusted: an avail index more than a
//!   ring ahead breaks the ring.
//! - [`SplitRing::publish_used`] shows completed heads to the guest, with one store of the index for the batch.
//! - While the device is awake the guest is asked not to notify. [`SplitRing::enable_notifications`] asks for notifications, and the caller
//!   then reads the avail index once more (the fence pairs with the guest's between its store of the index and its read of the threshold).

use std::sync::atomic::{Ordering, fence};

use super::broken::Broken;
use crate::dirty_log::DirtyLog;
use crate::memory::{MemoryTable, Place};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`.
pub(super) const NO_NOTIFY: u16 = 1;
const FLAGS_AT: u64 = 0;
const INDEX_AT: u64 = 2;
const RING_AT: u64 = 4;
const AVAIL_ENTRY_LEN: u64 = 2;
const USED_ENTRY_LEN: u64 = 8;

/// The addresses of a ring, in the front end's address space.
#[derive(Debug, Clone, Copy)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Avail ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// Guest address of the used ring, if writes to it are to be logged.
    pub log: Option<u64>,
}

/// A ring's memory, looked up in the table.
#[derive(Debug, Clone)]
struct RingMemory {
    descriptors: Place,
    avail: Place,
    used: Place,
}

/// How device and guest request notifications.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Notifications {
    /// `VIRTIO_F_EVENT_IDX`: by thresholds instead of flags.
    pub(crate) event_idx: bool,
    /// `VIRTIO_F_NOTIFY_ON_EMPTY`: the guest wants an interrupt when the ring is empty, although it has suppressed them.
    pub(crate) on_empty: bool,
}

/// The position of a running ring.
#[derive(Debug, Clone, Copy)]
struct Position {
    /// Index of the next avail entry to take.
    last_avail_idx: u16,
    /// Index of the next used entry to write.
    used_idx: u16,
    /// Whether the guest was asked to notify.
    notify: bool,
}

/// A ring in guest memory.
#[derive(Debug, Default)]
pub(super) struct SplitRing {
    size: u16,
    /// `None`: the front end has not set its address, or has removed the memory.
    memory: Option<RingMemory>,
    /// `None`: the ring does not run.
    position: Option<Position>,
    notifications: Notifications,
    /// Guest address of the used ring, if writes to it are to be logged.
    used_log: Option<u64>,
    /// Heads completed and not published.
    completed: Vec<u16>,
}

impl SplitRing {
    /// Looks up the ring of `size` entries in `memory`; called after each change of either.
    pub(super) fn find(
        &mut self,
        size: u16,
        addresses: Option<RingAddresses>,
        memory: &MemoryTable,
    ) {
        self.used_log = addresses.and_then(|addresses| addresses.log);
        self.memory = addresses.and_then(|addresses| RingMemory::find(size, addresses, memory));
        if self.position.is_none() {
            self.size = size;
        }
    }

    /// Whether the ring's memory was found.
    pub(super) fn is_found(&self) -> bool {
        self.memory.is_some()
    }

    /// Whether the ring runs; its memory may be removed for now.
    pub(super) fn runs(&self) -> bool {
        self.position.is_some()
    }

    /// The descriptor table.
    pub(super) fn descriptors(&self) -> Option<&Place> {
        self.memory.as_ref().map(|ring| &ring.descriptors)
    }

    pub(super) fn set_notifications(&mut self, notifications: Notifications) {
        self.notifications = notifications;
    }

    pub(super) fn notifications(&self) -> Notifications {
        self.notifications
    }

    /// The used index in the ring's memory.
    pub(super) fn used_idx_in_memory(&self) -> u16 {
        self.load(|ring| (&ring.used, INDEX_AT))
    }

    /// Begins a run of the ring.
    pub(super) fn begin(&mut self, last_avail_idx: u16, used_idx: u16) {
        // A predecessor that was killed may have left NO_NOTIFY in the ring: it is cleared before the first sleep.
        let notify = false;
        self.position = Some(Position {
            last_avail_idx,
            used_idx,
            notify,
        });
        self.completed = Vec::with_capacity(usize::from(self.size));
    }

    /// Ends the run; returns the index at which it goes on. `None`: it did not run.
    pub(super) fn end(&mut self) -> Option<u16> {
        let position = self.position.take();
        // Guests that poll their flags again later must not find NO_NOTIFY.
        if position.is_some() && !self.notifications.event_idx && self.is_found() {
            self.store_used(FLAGS_AT, 0);
        }
        self.memory = None;
        self.completed.clear();
        position.map(|position| position.last_avail_idx)
    }

    /// Index of the next avail entry to take; 0 in a ring that does not run.
    pub(super) fn last_avail_idx(&self) -> u16 {
        self.position.map_or(0, |at| at.last_avail_idx)
    }

    fn used_idx(&self) -> u16 {
        self.position.map_or(0, |at| at.used_idx)
    }

    /// The number of requests that the guest has made available and that are not taken.
    pub(super) fn available(&self) -> Result<u16, Broken> {
        let avail = self.load(|ring| (&ring.avail, INDEX_AT));
        let (taken, size) = (self.last_avail_idx(), self.size);
        let available = avail.wrapping_sub(taken);
        if available > size {
            return Err(Broken::AvailIndex { avail, taken, size });
        }
        Ok(available)
    }

    /// The head at `index` of the avail ring.
    pub(super) fn head_at(&self, index: u16) -> u16 {
        let entry = u64::from(index % self.size.max(1));
        self.load(|ring| (&ring.avail, RING_AT + AVAIL_ENTRY_LEN * entry))
    }

    /// Takes the next avail entry.
    pub(super) fn advance(&mut self) {
        if let Some(at) = &mut self.position {
            at.last_avail_idx = at.last_avail_idx.wrapping_add(1);
        }
    }

    /// Sets the next avail entry back to `index`.
    pub(super) fn rewind(&mut self, index: u16) {
        if let Some(at) = &mut self.position {
            at.last_avail_idx = index;
        }
    }

    /// Writes the used entry of `head`, of whose memory `len` bytes were written. `false`: the ring's memory was removed.
    pub(super) fn add_used(&mut self, head: u16, len: u32) -> bool {
        let Some(ring) = &self.memory else {
            return false;
        };
        let ahead = u16::try_from(self.completed.len()).unwrap_or(u16::MAX);
        let index = self.used_idx().wrapping_add(ahead) % self.size.max(1);
        let at = ring.used.offset + RING_AT + USED_ENTRY_LEN * u64::from(index);
        // Relaxed: the Release store of the index in `publish_used` comes after them.
        let region = &ring.used.region;
        let stored = region
            .store_u32(at, u32::from(head), Ordering::Relaxed)
            .and_then(|()| region.store_u32(at + 4, len, Ordering::Relaxed));
        debug_assert!(stored.is_ok(), "checked by `find`");
        self.completed.push(head);
        true
    }

    /// Heads that were completed and are not published.
    pub(super) fn completed(&self) -> &[u16] {
        &self.completed
    }

    /// The used index after the completed heads are published.
    pub(super) fn next_used_idx(&self) -> u16 {
        let count = u16::try_from(self.completed.len()).unwrap_or(u16::MAX);
        self.used_idx().wrapping_add(count)
    }

    /// Publishes the completed heads to the guest.
    pub(super) fn publish_used(&mut self) {
        let next = self.next_used_idx();
        if let Some(at) = &mut self.position {
            at.used_idx = next;
        }
        self.store_used(INDEX_AT, next);
    }

    /// Removes the published heads, and marks the ring's memory as written. Returns whether the guest wants an interrupt.
    pub(super) fn end_batch(&mut self, in_flight: usize, dirty: Option<&DirtyLog>) -> bool {
        let new = self.used_idx();
        let count = u16::try_from(self.completed.len()).unwrap_or(u16::MAX);
        let old = new.wrapping_sub(count);
        self.completed.clear();
        if let (Some(dirty), Some(used)) = (dirty, self.used_log) {
            for offset in 0..count {
                let index = u64::from(old.wrapping_add(offset) % self.size.max(1));
                dirty.mark(used + RING_AT + USED_ENTRY_LEN * index, USED_ENTRY_LEN);
            }
            dirty.mark(used, RING_AT);
        }
        // SeqCst: the used index is published before the threshold is read; pairs with the guest's fence between its store of the threshold
        // and its last read of the used index. Without both, each could miss the other's store.
        fence(Ordering::SeqCst);
        if self.notifications.on_empty && in_flight == 0 && self.available() == Ok(0) {
            return true;
        }
        if self.notifications.event_idx {
            let at = RING_AT + AVAIL_ENTRY_LEN * u64::from(self.size);
            let used_event = self.load(|ring| (&ring.avail, at));
            new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load(|ring| (&ring.avail, FLAGS_AT)) & NO_INTERRUPT == 0
        }
    }

    /// Asks the guest to notify the device of the next request. The caller then looks for a request that came meanwhile.
    pub(super) fn enable_notifications(&mut self, dirty: Option<&DirtyLog>) {
        if self.notifications.event_idx {
            // avail_event, behind the used ring.
            let at = RING_AT + USED_ENTRY_LEN * u64::from(self.size);
            self.store_used(at, self.last_avail_idx());
            self.mark_used(dirty, at);
        } else if !self.is_notified() {
            self.store_used(FLAGS_AT, 0);
            self.mark_used(dirty, FLAGS_AT);
        }
        self.set_notified(true);
        // SeqCst: the request for notifications is published before the avail index is read again; pairs with the guest's fence between its
        // store of the avail index and its read of flags or threshold. Without both, each could miss the other's store.
        fence(Ordering::SeqCst);
    }

    /// Asks the guest not to notify. With EVENT_IDX, it is enough not to advance the threshold.
    pub(super) fn disable_notifications(&mut self, dirty: Option<&DirtyLog>) {
        if self.is_notified() && !self.notifications.event_idx {
            self.store_used(FLAGS_AT, NO_NOTIFY);
            self.mark_used(dirty, FLAGS_AT);
        }
        self.set_notified(false);
    }

    /// Whether the guest was asked to notify.
    pub(super) fn is_notified(&self) -> bool {
        self.position.is_some_and(|at| at.notify)
    }

    fn set_notified(&mut self, notify: bool) {
        if let Some(at) = &mut self.position {
            at.notify = notify;
        }
    }

    fn load(&self, place: impl Fn(&RingMemory) -> (&Place, u64)) -> u16 {
        let Some(ring) = &self.memory else { return 0 };
        let (place, at) = place(ring);
        // Acquire: pairs with the guest's release of the avail index; entries and descriptors are complete then.
        let loaded = place.region.load_u16(place.offset + at, Ordering::Acquire);
        loaded.unwrap_or(0)
    }

    fn store_used(&self, at: u64, value: u16) {
        if let Some(ring) = &self.memory {
            let place = &ring.used;
            // Release: pairs with the guest's acquire of the used index; used entries and data are complete then.
            let stored = place
                .region
                .store_u16(place.offset + at, value, Ordering::Release);
            debug_assert!(stored.is_ok(), "checked by `find`");
        }
    }

    fn mark_used(&self, dirty: Option<&DirtyLog>, at: u64) {
        if let (Some(dirty), Some(used)) = (dirty, self.used_log) {
            dirty.mark(used + at, 2);
        }
    }
}

impl RingMemory {
    fn find(size: u16, addresses: RingAddresses, memory: &MemoryTable) -> Option<RingMemory> {
        let size = u64::from(size);
        if size == 0 {
            return None;
        }
        let avail_len = RING_AT + AVAIL_ENTRY_LEN * size + 2;
        let used_len = RING_AT + USED_ENTRY_LEN * size + 2;
        let ring = RingMemory {
            descriptors: memory.user_place(addresses.descriptors, 16 * size)?,
            avail: memory.user_place(addresses.avail, avail_len)?,
            used: memory.user_place(addresses.used, used_len)?,
        };
        let aligned = ring.avail.offset.is_multiple_of(2) && ring.used.offset.is_multiple_of(4);
        aligned.then_some(ring)
    }
}

#[cfg(test)]
mod tests {
    use xseg::RegionId;

    use super::*;
    use crate::memory::GuestSlot;

    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;

    /// A ring of 16 whose used flags are `flags`, running.
    fn ring(flags: u16, event_idx: bool) -> (SplitRing, xseg::Region) {
        let region = xseg::Region::anonymous(0x4000).unwrap();
        region.store_u16(USED, flags, Ordering::Relaxed).unwrap();
        let mut memory = MemoryTable::default();
        let slot = GuestSlot {
            guest: 0,
            user: 0,
            len: 0x4000,
            region: region.clone(),
            start: 0,
        };
        memory.insert(slot, RegionId(1));
        let addresses = RingAddresses {
            descriptors: 0,
            avail: AVAIL,
            used: USED,
            log: None,
        };
        let mut ring = SplitRing::default();
        ring.set_notifications(Notifications {
            event_idx,
            on_empty: false,
        });
        ring.find(16, Some(addresses), &memory);
        ring.begin(0, 0);
        (ring, region)
    }

    #[test]
    fn a_ring_whose_predecessor_died_awake_asks_for_notifications_at_its_first_sleep() {
        let (mut ring, region) = ring(NO_NOTIFY, false);
        ring.enable_notifications(None);
        assert_eq!(ring.available(), Ok(0));
        assert_eq!(region.load_u16(USED, Ordering::Relaxed), Ok(0));
    }

    #[test]
    fn the_flags_of_a_ring_with_thresholds_stay_zero() {
        let (mut ring, region) = ring(0, true);
        for _ in 0..2 {
            ring.enable_notifications(None);
            ring.disable_notifications(None);
        }
        assert_eq!(region.load_u16(USED, Ordering::Relaxed), Ok(0));
    }

    #[test]
    fn a_batch_is_published_by_one_index() {
        let (mut ring, region) = ring(0, false);
        assert!(ring.add_used(3, 513) && ring.add_used(5, 1));
        assert_eq!(region.load_u16(USED + INDEX_AT, Ordering::Relaxed), Ok(0));
        ring.publish_used();
        assert!(
            ring.end_batch(0, None),
            "the guest has not suppressed interrupts"
        );
        assert_eq!(region.load_u16(USED + INDEX_AT, Ordering::Relaxed), Ok(2));
        let entry = |at| {
            region
                .load_u32(USED + RING_AT + at, Ordering::Relaxed)
                .unwrap()
        };
        assert_eq!([0, 4, 8, 12].map(entry), [3, 513, 5, 1]);
        assert!(ring.completed().is_empty());
    }
}
