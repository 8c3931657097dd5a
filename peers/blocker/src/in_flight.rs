//! Requests that the backend has taken and not answered.
//!
//! Invariants
//! - A ticket names one request: its lower half is a slot, its upper half counts the uses of that slot. A reply to any other ticket is a
//!   bug, and panics.
//! - A slot keeps the spans of its request until the reply, so the memory stays mapped.
//! - Slots and their spans are used again, so a steady load allocates nothing.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::ObjectOp;
use xseg::Span;

use crate::channel::ChannelId;

/// The part of a request that is needed for its reply.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started {
    pub(crate) channel: ChannelId,
    pub(crate) tag: u64,
    pub(crate) op: ObjectOp,
    pub(crate) len: u32,
}

#[derive(Debug, Default)]
struct Slot {
    /// `None`: free.
    started: Option<Started>,
    spans: Vec<Span>,
    uses: u32,
}

/// The requests that are under way.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

/// The slot of a ticket, and the number of its use.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a ticket is two packed 32-bit words"
)]
fn unpack(ticket: u64) -> (u32, u32) {
    (ticket as u32, (ticket >> 32) as u32)
}

impl InFlight {
    /// Number of requests.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a request, whose memory `resolve` appends to an empty list. Returns its ticket.
    ///
    /// # Errors
    /// The error of `resolve`; then nothing was added.
    pub(crate) fn insert(
        &mut self,
        started: Started,
        resolve: impl FnOnce(&mut Vec<Span>) -> Result<(), ErrorCode>,
    ) -> Result<u64, ErrorCode> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1)
                .expect("channels times IN_FLIGHT_MAX stay below 2^32")
        });
        let slot = &mut self.slots[index as usize];
        if let Err(code) = resolve(&mut slot.spans) {
            slot.spans.clear();
            self.free.push(index);
            return Err(code);
        }
        slot.started = Some(started);
        slot.uses = slot.uses.wrapping_add(1);
        Ok(u64::from(slot.uses) << 32 | u64::from(index))
    }

    /// The memory of the request of `ticket`.
    pub(crate) fn spans(&self, ticket: u64) -> &[Span] {
        let (index, _) = unpack(ticket);
        let slot = self.slots.get(index as usize);
        slot.map_or(&[], |slot| &slot.spans)
    }

    /// Removes the request of `ticket`, which is answered.
    ///
    /// # Panics
    /// If it is not under way: a backend replies once to each ticket that it was given.
    pub(crate) fn remove(&mut self, ticket: u64) -> Started {
        let (index, uses) = unpack(ticket);
        let slot = self
            .slots
            .get_mut(index as usize)
            .expect("a backend replies to tickets that it was given");
        let started = slot.started.take().filter(|_| slot.uses == uses);
        let started = started.expect("a backend replies once to each ticket");
        slot.spans.clear();
        self.free.push(index);
        started
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_ticket_is_answered_once_though_its_slot_is_used_again() {
        let started = |tag| Started {
            channel: ChannelId(1),
            tag,
            op: ObjectOp::Read,
            len: 0,
        };
        let mut in_flight = InFlight::default();
        let first = in_flight.insert(started(1), |_| Ok(())).unwrap();
        assert_eq!(in_flight.remove(first).tag, 1);
        let second = in_flight.insert(started(2), |_| Ok(())).unwrap();
        assert_ne!(first, second);
        assert_eq!(in_flight.slots.len(), 1);
        let again = catch_unwind(AssertUnwindSafe(|| in_flight.remove(first).tag));
        assert!(again.is_err());
        let refused = in_flight.insert(started(3), |_| Err(ErrorCode::Invalid));
        assert_eq!(refused, Err(ErrorCode::Invalid));
        assert_eq!(
            in_flight.slots.len() - in_flight.free.len(),
            in_flight.len()
        );
    }
}
