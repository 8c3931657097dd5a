//! The requests of a queue: taken from the ring, and completed there.

use super::{Broken, Interrupt, Outcome, PieceResult, Queue, Slot, Source, Stopping, Taken};
use crate::dirty_log::DirtyLog;
use crate::failure::Failure;
use crate::memory::{MemoryTable, Place};
use crate::request::Status;
use crate::shared::signal;

impl Queue {
    /// The descriptor table.
    pub(crate) fn descriptors(&self) -> Option<&Place> {
        self.ring.descriptors()
    }

    /// Requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// The oldest memory generation of a request in flight.
    pub(crate) fn oldest_generation(&self) -> Option<u64> {
        self.slots.oldest_generation()
    }

    /// The slot of `head`.
    pub(crate) fn slot(&self, head: u16) -> Option<&Slot> {
        self.slots.get(head)
    }

    /// The next head, which stays in the ring until [`Queue::take`].
    pub(crate) fn peek(&self) -> Result<Option<(u16, Source)>, Broken> {
        let (head, source) = if let Some(head) = self.again.front() {
            (*head, Source::Again)
        } else if self.stopping() != Stopping::No || self.ring.available()? == 0 {
            return Ok(None);
        } else {
            let next = self.ring.last_avail_idx();
            (self.ring.head_at(next), Source::Avail)
        };
        match self.slots.get(head) {
            None => {
                let size = self.setup.size;
                Err(Broken::HeadOutside { head, size })
            }
            Some(slot) if slot.is_busy() => Err(Broken::HeadTwice { head }),
            Some(_) => Ok(Some((head, source))),
        }
    }

    /// Takes the head that [`Queue::peek`] returned: a request in flight in `pieces`, or one that fails.
    pub(crate) fn take(
        &mut self,
        (head, source): (u16, Source),
        taken: Taken,
        pieces: u32,
        failure: Option<Failure>,
        dirty: impl Iterator<Item = (u64, u32)>,
    ) {
        match source {
            Source::Again => _ = self.again.pop_front(),
            Source::Avail => {
                self.ring.advance();
                if let Some(log) = &mut self.log {
                    log.taken(head);
                }
            }
        }
        self.slots.begin(head, taken, pieces, failure, dirty);
    }

    /// Records the volume's answer to a piece of `head`. Returns the outcome of the request, if that was the last piece.
    pub(crate) fn piece_done(&mut self, head: u16, result: PieceResult) -> Option<Outcome> {
        self.slots.piece_done(head, result)
    }

    /// Writes status and used entry of `head`; the guest sees them with the next [`Queue::publish`].
    pub(crate) fn complete(
        &mut self,
        head: u16,
        status: Status,
        memory: &MemoryTable,
        log: Option<&DirtyLog>,
    ) {
        let slot = self.slots.end(head);
        if !self.ring.is_found() {
            // The front end has removed the ring's memory: the request is done again when there is memory.
            self.again.push_back(head);
            return;
        }
        let (region, offset) = slot.taken().status;
        let written = memory
            .region(region)
            .is_some_and(|region| region.write(offset, &[status as u8]).is_ok());
        debug_assert!(written, "the slot's memory stays while it is busy");
        // A failed read has written an unknown part: only the status byte is guaranteed.
        let data = if status == Status::Ok {
            slot.taken().len
        } else {
            0
        };
        if let Some(log) = log {
            for (address, bytes) in slot.dirty() {
                log.mark(*address, u64::from(*bytes));
            }
        }
        let len = u32::try_from(1 + data).unwrap_or(u32::MAX);
        let added = self.ring.add_used(head, len);
        debug_assert!(added, "the ring is there");
    }

    /// Records that the volume has given back `head`: it is done again, by this ring or by its next run.
    pub(crate) fn put_back(&mut self, head: u16) {
        self.slots.recall(head);
        self.again.push_back(head);
    }

    /// Whether the requests to be done again are exactly the last ones taken: then those heads count as not taken, as if they had just been
    /// made available.
    pub(super) fn untake(&mut self) -> bool {
        let Ok(count) = u16::try_from(self.again.len()) else {
            return false;
        };
        let first = self.ring.last_avail_idx().wrapping_sub(count);
        let mut last: Vec<u16> = (0..count)
            .map(|index| self.ring.head_at(first.wrapping_add(index)))
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
        self.ring.rewind(first);
        true
    }

    /// Takes a request that was put back, to complete it. For requests of a predecessor the place of the status byte is unknown.
    pub(crate) fn take_recalled(&mut self) -> Option<u16> {
        let is_recalled = |head: &u16| self.slots.get(*head).is_some_and(Slot::is_recalled);
        let index = self.again.iter().position(is_recalled)?;
        let head = self.again.remove(index)?;
        self.slots.begin_again(head);
        Some(head)
    }

    /// Abandons `head` without an answer: its front end has disconnected.
    pub(crate) fn abandon(&mut self, head: u16) {
        self.slots.end(head);
    }

    /// Shows the completed requests to the guest. `None`: there were none; else whether it was interrupted.
    pub(crate) fn publish(&mut self, dirty: Option<&DirtyLog>) -> Option<Interrupt> {
        if self.ring.completed().is_empty() {
            return None;
        }
        let used_idx = self.ring.next_used_idx();
        if let Some(log) = &self.log {
            for head in self.ring.completed() {
                log.batch(*head);
            }
        }
        self.ring.publish_used();
        if let Some(log) = &self.log {
            log.commit(self.ring.completed(), used_idx);
        }
        let wanted = self.ring.end_batch(self.slots.in_flight(), dirty);
        Some(match &self.setup.call {
            _ if !wanted => Interrupt::Suppressed,
            None => Interrupt::Unconnected,
            Some(call) => {
                signal(call);
                Interrupt::Sent
            }
        })
    }

    /// Asks the guest to notify the device of the next request; `true`: there is one already.
    pub(crate) fn enable_notifications(&mut self, dirty: Option<&DirtyLog>) -> bool {
        self.ring.enable_notifications(dirty);
        !self.again.is_empty() || self.ring.available() != Ok(0)
    }

    /// Asks the guest not to notify. `true`: it was asked to, and has made requests available.
    pub(crate) fn disable_notifications(&mut self, dirty: Option<&DirtyLog>) -> bool {
        let has_work = || self.ring.available().is_ok_and(|available| available > 0);
        let notified = self.ring.is_notified() && has_work();
        self.ring.disable_notifications(dirty);
        notified
    }
}
