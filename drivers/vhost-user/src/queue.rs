//! One split ring (virtio 1.2, section 2.7) and the requests taken from it.
//!
//! Invariants
//! - `taken` (next avail index) and `used` are private; the ring's own words are read once per use and never trusted: an
//!   avail index more than a ring ahead, a head outside the ring or one that is in flight already breaks the ring.
//! - A slot per head, made when the ring gets its size: taking a request allocates nothing.
//! - A head is completed once: written into the used ring by `Queue::complete`, seen by the guest with
//!   `Queue::publish`, one index store for the batch.
//! - While the device is awake the guest is asked not to kick. `Queue::ask_for_kicks` asks again and then looks at the
//!   avail index once more (the fence pairs with the guest's between its index store and its look at the threshold).

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{Ordering, fence};

use archipelago_endpoint::WatchId;

use crate::chain::ChainError;
use crate::dirty_log::DirtyLog;
use crate::failure::Failure;
use crate::inflight::QueueLog;
use crate::memory::{MemoryTable, Place};
use crate::request::{Kind, Request, Status};

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
const INDEX_AT: u64 = 2;
const RING_AT: u64 = 4;
const USED_ENTRY_LEN: u64 = 8;

/// Where a front end says that a ring is: its own addresses.
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

/// A ring's memory, found in the table.
#[derive(Debug, Clone)]
pub(crate) struct RingMemory {
    pub(crate) descriptors: Place,
    avail: Place,
    used: Place,
}

/// A request in flight.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) busy: bool,
    pub(crate) kind: Kind,
    /// Pieces that the volume has not answered.
    pub(crate) pieces: u32,
    /// Why the request fails.
    pub(crate) failure: Option<Failure>,
    /// It was given back, wholly or in part: it waited for room.
    pub(crate) recalled: bool,
    /// What it is, if it could be read; for lists of ranges, the first byte and the sum.
    pub(crate) request: Option<Request>,
    pub(crate) ranges: (u64, u64),
    /// Region and offset of the status byte.
    pub(crate) status: (u32, u64),
    /// Bytes for the guest, without the status byte.
    pub(crate) len: u64,
    /// Memory generation of its segments.
    pub(crate) generation: u64,
    /// Guest memory that is written by then: address, bytes; filled while a migration runs.
    pub(crate) dirty: Vec<(u64, u32)>,
}

/// Why a ring makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("avail index {avail} is more than the ring's {size} entries ahead of {taken}")]
    AvailIndex { avail: u16, taken: u16, size: u16 },
    #[error("head {head} is not below the ring's size {size}")]
    HeadOutside { head: u16, size: u16 },
    #[error("head {head} was made available again while in flight")]
    HeadTwice { head: u16 },
    #[error("the chain at head {head} has no end that can be found")]
    Chain { head: u16, source: ChainError },
    #[error("the chain at head {head} does not end in a writable status byte in guest memory")]
    NoStatus { head: u16 },
    #[error("the file of the guest's memory was truncated")]
    Truncated,
}

/// A queue: configuration, ring, requests in flight.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) size: u16,
    pub(crate) base: u16,
    pub(crate) addresses: Option<RingAddresses>,
    pub(crate) kick: Option<WatchId>,
    pub(crate) call: Option<File>,
    pub(crate) error: Option<File>,
    pub(crate) enabled: bool,
    pub(crate) broken: bool,
    /// Being stopped: nothing more is taken.
    pub(crate) stopping: bool,
    /// Being stopped without those that wait for room: they are in `again`, and are not done again.
    pub(crate) leaving: bool,
    pub(crate) event_idx: bool,
    /// The guest wants an interrupt when nothing is left, though it has suppressed them.
    pub(crate) notify_on_empty: bool,
    pub(crate) memory: Option<RingMemory>,
    /// Whether `taken` and `used` are those of the running ring.
    live: bool,
    taken: u16,
    used: u16,
    asked: bool,
    pub(crate) slots: Vec<Slot>,
    pub(crate) in_flight: usize,
    batch: Vec<u16>,
    pub(crate) again: VecDeque<u16>,
    pub(crate) log: Option<QueueLog>,
}

impl Queue {
    /// Whether the front end has started the ring.
    pub(crate) fn started(&self) -> bool {
        self.kick.is_some()
    }

    /// Whether requests may be taken.
    pub(crate) fn running(&self) -> bool {
        self.started() && self.enabled && !self.broken && !self.stopping && self.memory.is_some()
    }

    /// Whether requests may be taken now; a ring that stops still does what a predecessor had taken.
    pub(crate) fn takes(&self) -> bool {
        let unfinished = self.stopping && !self.leaving && !self.again.is_empty();
        self.running() || (unfinished && self.memory.is_some() && !self.broken)
    }

    /// Whether the ring needs the volume open.
    pub(crate) fn wants_volume(&self) -> bool {
        self.started() && self.takes()
    }

    /// Whether a stopping ring has nothing left to do.
    pub(crate) fn drained(&self) -> bool {
        let none_again = self.again.is_empty() || self.leaving;
        self.in_flight == 0 && (none_again || self.memory.is_none() || self.broken)
    }

    /// Back to the state before the front end set the queue up.
    pub(crate) fn forget(&mut self) {
        self.size = 0;
        self.base = 0;
        self.addresses = None;
        self.call = None;
        self.error = None;
        self.enabled = false;
        self.log = None;
    }

    /// Finds the ring in `memory`; called after each change of either. Returns the requests to be done again.
    pub(crate) fn resolve(&mut self, memory: &MemoryTable) -> usize {
        self.memory = self.find(memory);
        if self.live || self.memory.is_none() || !self.started() {
            return 0;
        }
        let used = self.load(|ring| (&ring.used, INDEX_AT));
        self.used = used;
        self.taken = self.base;
        self.again.clear();
        if let Some(log) = &mut self.log {
            // What the front end says of the base may be older than the ring: with the in-flight region, what was taken
            // is what was used and what is noted.
            self.again.extend(log.recover(used));
            let noted = u16::try_from(self.again.len()).unwrap_or(u16::MAX);
            self.taken = used.wrapping_add(noted);
        }
        let fit = usize::from(self.size);
        if self.slots.len() != fit {
            self.slots.clear();
            self.slots.resize_with(fit, Slot::default);
            self.batch = Vec::with_capacity(fit);
        }
        self.live = true;
        // A predecessor that was killed may have left NO_NOTIFY in the ring: it goes before the first sleep.
        self.asked = false;
        self.again.len()
    }

    fn find(&self, memory: &MemoryTable) -> Option<RingMemory> {
        let addresses = self.addresses?;
        let size = u64::from(self.size);
        if size == 0 {
            return None;
        }
        let ring = RingMemory {
            descriptors: memory.user_place(addresses.descriptors, 16 * size)?,
            avail: memory.user_place(addresses.avail, RING_AT + 2 * size + 2)?,
            used: memory.user_place(addresses.used, RING_AT + USED_ENTRY_LEN * size + 2)?,
        };
        let aligned = ring.avail.offset.is_multiple_of(2) && ring.used.offset.is_multiple_of(4);
        aligned.then_some(ring)
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

    /// Requests that the guest has made available and that are not taken.
    pub(crate) fn waiting(&self) -> Result<u16, Broken> {
        let avail = self.load(|ring| (&ring.avail, INDEX_AT));
        let (taken, size) = (self.taken, self.size);
        let waiting = avail.wrapping_sub(taken);
        if waiting > size {
            return Err(Broken::AvailIndex { avail, taken, size });
        }
        Ok(waiting)
    }

    /// Whether the guest has ever made a request available in this ring.
    pub(crate) fn was_used(&self) -> bool {
        self.taken != 0 || self.waiting() != Ok(0)
    }

    /// The next head, which stays in the ring until [`Queue::take`]. `true`: it was taken by a predecessor.
    pub(crate) fn peek(&self) -> Result<Option<(u16, bool)>, Broken> {
        let (head, before) = if let Some(head) = self.again.front() {
            (*head, true)
        } else if self.stopping || self.waiting()? == 0 {
            return Ok(None);
        } else {
            let at = RING_AT + 2 * u64::from(self.taken % self.size);
            (self.load(|ring| (&ring.avail, at)), false)
        };
        match self.slots.get(usize::from(head)) {
            None => {
                let size = self.size;
                Err(Broken::HeadOutside { head, size })
            }
            Some(slot) if slot.busy => Err(Broken::HeadTwice { head }),
            Some(_) => Ok(Some((head, before))),
        }
    }

    /// Takes the head that [`Queue::peek`] gave.
    pub(crate) fn take(&mut self, head: u16, before: bool) {
        if before {
            self.again.pop_front();
        } else {
            self.taken = self.taken.wrapping_add(1);
            if let Some(log) = &mut self.log {
                log.taken(head);
            }
        }
        self.slots[usize::from(head)].busy = true;
        self.in_flight += 1;
    }

    /// Writes status and used entry of `head`; the guest sees them with the next [`Queue::publish`].
    pub(crate) fn complete(
        &mut self,
        head: u16,
        status: Status,
        memory: &MemoryTable,
        log: Option<&DirtyLog>,
    ) {
        let slot = &mut self.slots[usize::from(head)];
        slot.busy = false;
        self.in_flight -= 1;
        let Some(ring) = &self.memory else {
            // The front end has taken the ring's memory away under it: done again when it is back.
            self.again.push_back(head);
            return;
        };
        let (region, offset) = slot.status;
        let written = memory
            .region(region)
            .is_some_and(|region| region.write(offset, &[status as u8]).is_ok());
        debug_assert!(written, "the slot's memory stays while it is busy");
        // Failed reads have written an unknown part: only the status byte is promised.
        let len = 1 + if status == Status::Ok { slot.len } else { 0 };
        if let Some(log) = log {
            for (address, bytes) in &slot.dirty {
                log.mark(*address, u64::from(*bytes));
            }
        }
        slot.dirty.clear();
        let ahead = u16::try_from(self.batch.len()).unwrap_or(u16::MAX);
        let index = self.used.wrapping_add(ahead) % self.size.max(1);
        let at = ring.used.offset + RING_AT + USED_ENTRY_LEN * u64::from(index);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        // Relaxed: the store of the index publishes them.
        let region = &ring.used.region;
        let stored = region
            .store_u32(at, u32::from(head), Ordering::Relaxed)
            .and_then(|()| region.store_u32(at + 4, len, Ordering::Relaxed));
        debug_assert!(stored.is_ok(), "checked by `find`");
        self.batch.push(head);
    }

    /// Takes `head` back from the volume: it is done again, by this ring or by its next run.
    pub(crate) fn put_back(&mut self, head: u16) {
        self.slots[usize::from(head)].busy = false;
        self.in_flight -= 1;
        self.again.push_back(head);
    }

    /// Whether what is to be done again is just what was taken last: those heads then count as not taken, as if they had
    /// been made available this moment.
    pub(crate) fn untake(&mut self) -> bool {
        let Ok(count) = u16::try_from(self.again.len()) else {
            return false;
        };
        let first = self.taken.wrapping_sub(count);
        let mut last: Vec<u16> = (0..count)
            .map(|index| {
                let entry = first.wrapping_add(index) % self.size.max(1);
                self.load(|ring| (&ring.avail, RING_AT + 2 * u64::from(entry)))
            })
            .collect();
        let mut left: Vec<u16> = self.again.iter().copied().collect();
        last.sort_unstable();
        left.sort_unstable();
        if last != left {
            return false;
        }
        if let Some(log) = &self.log {
            left.iter().for_each(|head| log.untaken(*head));
        }
        self.again.clear();
        self.taken = first;
        true
    }

    /// Takes one that was put back as if it were in flight, to complete it. Of others only their predecessor knew where their
    /// status is.
    pub(crate) fn take_recalled(&mut self) -> Option<u16> {
        let is_recalled = |head: &u16| self.slots[usize::from(*head)].recalled;
        let index = self.again.iter().position(is_recalled)?;
        let head = self.again.remove(index)?;
        self.slots[usize::from(head)].busy = true;
        self.in_flight += 1;
        Some(head)
    }

    /// Gives `head` up without telling the guest: its front end is gone.
    pub(crate) fn abandon(&mut self, head: u16) {
        let slot = &mut self.slots[usize::from(head)];
        slot.busy = false;
        slot.dirty.clear();
        self.in_flight -= 1;
    }

    /// Shows the guest what was completed. `None`: nothing was; else whether it wants an interrupt.
    pub(crate) fn publish(&mut self, dirty: Option<&DirtyLog>) -> Option<bool> {
        if self.batch.is_empty() {
            return None;
        }
        let old = self.used;
        let count = u16::try_from(self.batch.len()).unwrap_or(u16::MAX);
        let new = old.wrapping_add(count);
        if let Some(log) = &self.log {
            for head in &self.batch {
                log.batch(*head);
            }
        }
        self.used = new;
        self.store_used(INDEX_AT, new);
        if let Some(log) = &self.log {
            log.commit(&self.batch, new);
        }
        self.batch.clear();
        if let (Some(dirty), Some(used)) = (dirty, self.addresses.and_then(|ring| ring.log)) {
            for offset in 0..count {
                let index = u64::from(old.wrapping_add(offset) % self.size);
                dirty.mark(used + RING_AT + USED_ENTRY_LEN * index, USED_ENTRY_LEN);
            }
            dirty.mark(used, RING_AT);
        }
        // SeqCst: the used index is out before the threshold is read; pairs with the guest's fence between its store of
        // the threshold and its last look at the used index. Without both, each could miss the other's store.
        fence(Ordering::SeqCst);
        if self.notify_on_empty && self.in_flight == 0 && self.waiting() == Ok(0) {
            return Some(true);
        }
        Some(if self.event_idx {
            let at = RING_AT + 2 * u64::from(self.size);
            let event = self.load(|ring| (&ring.avail, at));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load(|ring| (&ring.avail, 0)) & NO_INTERRUPT == 0
        })
    }

    /// Asks the guest to kick for the next request; `true`: there is one already.
    pub(crate) fn ask_for_kicks(&mut self, dirty: Option<&DirtyLog>) -> bool {
        if self.event_idx {
            let at = RING_AT + USED_ENTRY_LEN * u64::from(self.size);
            self.store_used(at, self.taken);
            self.mark_used(dirty, at);
        } else if !self.asked {
            self.store_used(0, 0);
            self.mark_used(dirty, 0);
        }
        self.asked = true;
        // SeqCst: the request to kick is out before the avail index is read again; see the invariants.
        fence(Ordering::SeqCst);
        !self.again.is_empty() || self.waiting() != Ok(0)
    }

    /// Asks the guest not to kick. With EVENT_IDX a threshold that is not moved on does that.
    pub(crate) fn refuse_kicks(&mut self, dirty: Option<&DirtyLog>) {
        if self.asked && !self.event_idx {
            self.store_used(0, NO_NOTIFY);
            self.mark_used(dirty, 0);
        }
        self.asked = false;
    }

    fn mark_used(&self, dirty: Option<&DirtyLog>, at: u64) {
        if let (Some(dirty), Some(used)) = (dirty, self.addresses.and_then(|ring| ring.log)) {
            dirty.mark(used + at, 2);
        }
    }

    /// Whether the guest was asked to kick.
    pub(crate) fn asked(&self) -> bool {
        self.asked
    }

    /// Ends the run of the ring: where it goes on.
    pub(crate) fn stop(&mut self) -> u16 {
        if self.live {
            // Guests that poll their flags again later must not find the device deaf.
            if !self.event_idx && self.memory.is_some() {
                self.store_used(0, 0);
            }
            self.base = self.taken;
        }
        self.live = false;
        self.stopping = false;
        self.leaving = false;
        self.broken = false;
        self.memory = None;
        self.batch.clear();
        self.again.clear();
        self.base
    }
}

#[cfg(test)]
mod tests {
    use xseg::RegionId;

    use super::*;
    use crate::memory::GuestSlot;

    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;

    /// A ring of 16 whose used flags are `flags`, started.
    fn queue(flags: u16, event_idx: bool) -> (Queue, xseg::Region) {
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
        let mut queue = Queue {
            size: 16,
            addresses: Some(RingAddresses {
                descriptors: 0,
                avail: AVAIL,
                used: USED,
                log: None,
            }),
            kick: Some(WatchId(0)),
            enabled: true,
            event_idx,
            ..Queue::default()
        };
        queue.resolve(&memory);
        (queue, region)
    }

    #[test]
    fn a_ring_whose_predecessor_died_awake_asks_for_kicks_at_its_first_sleep() {
        let (mut queue, region) = queue(NO_NOTIFY, false);
        assert!(!queue.ask_for_kicks(None));
        assert_eq!(region.load_u16(USED, Ordering::Relaxed), Ok(0));
    }

    #[test]
    fn the_flags_of_a_ring_with_thresholds_stay_zero() {
        let (mut queue, region) = queue(0, true);
        for _ in 0..2 {
            queue.ask_for_kicks(None);
            queue.refuse_kicks(None);
        }
        assert_eq!(region.load_u16(USED, Ordering::Relaxed), Ok(0));
    }
}
