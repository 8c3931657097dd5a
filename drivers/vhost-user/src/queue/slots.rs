//! The requests of one ring that are in flight: a slot per head, made when the size of the ring is set, so that taking a request allocates
//! nothing.

use archipelago_protocol::ErrorCode;

use crate::failure::Failure;
use crate::request::{Kind, Request};

/// A request as taken from the ring.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) kind: Kind,
    /// The request, if it is valid.
    pub(crate) request: Option<Request>,
    /// For lists of ranges, the first byte and the sum.
    pub(crate) ranges: (u64, u64),
    /// Region and offset of the status byte.
    pub(crate) status: (u32, u64),
    /// Bytes for the guest, without the status byte.
    pub(crate) len: u64,
    /// Memory generation of its segments.
    pub(crate) generation: u64,
}

/// The result of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceResult {
    /// The volume's final answer.
    Done(Result<(), ErrorCode>),
    /// It waited for space, and was given back undone.
    Recalled,
}

/// The outcome of a request whose last piece is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is completed, and perhaps has failed.
    Completed(Option<Failure>),
    /// It was given back, in whole or in part, and has not failed otherwise: it is done again.
    Recalled,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Free,
    InFlight {
        /// Pieces that the volume has not answered.
        pieces: u32,
        failure: Option<Failure>,
        recalled: bool,
    },
    /// The volume has given it back.
    Recalled,
}

/// A head's slot.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    state: State,
    taken: Taken,
    /// Guest memory that the request writes: address, bytes; filled while a migration runs.
    dirty: Vec<(u64, u32)>,
}

impl Slot {
    /// The request.
    pub(crate) fn taken(&self) -> &Taken {
        &self.taken
    }

    /// Whether the request is in flight.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.state, State::InFlight { .. })
    }

    /// Whether the volume has given the request back; the place of its status byte is known.
    pub(super) fn is_recalled(&self) -> bool {
        matches!(self.state, State::Recalled)
    }

    /// Guest memory that the request writes.
    pub(super) fn dirty(&self) -> &[(u64, u32)] {
        &self.dirty
    }

    /// First byte of the request's range in the volume, and its length.
    #[cold]
    pub(crate) fn range(&self) -> (u64, u64) {
        match self.taken.request {
            Some(Request::Read { offset, len } | Request::Write { offset, len }) => (offset, len),
            Some(Request::Discard | Request::WriteZeroes) => self.taken.ranges,
            Some(Request::Flush | Request::GetId) | None => (0, 0),
        }
    }
}

/// All slots of a ring.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    in_flight: usize,
}

impl Slots {
    /// Makes a slot for each of `size` heads. Nothing is in flight.
    pub(super) fn resize(&mut self, size: u16) {
        let size = usize::from(size);
        if self.slots.len() != size {
            self.slots.clear();
            self.slots.resize_with(size, Slot::default);
        }
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The oldest memory generation of a request in flight.
    pub(super) fn oldest_generation(&self) -> Option<u64> {
        let busy = self.slots.iter().filter(|slot| slot.is_busy());
        busy.map(|slot| slot.taken.generation).min()
    }

    /// The slot of `head`; `None`: there is no such head.
    pub(super) fn get(&self, head: u16) -> Option<&Slot> {
        self.slots.get(usize::from(head))
    }

    /// Records that `head` is in flight, in so many `pieces`.
    pub(super) fn begin(
        &mut self,
        head: u16,
        taken: Taken,
        pieces: u32,
        failure: Option<Failure>,
        dirty: impl Iterator<Item = (u64, u32)>,
    ) {
        let slot = &mut self.slots[usize::from(head)];
        debug_assert!(!slot.is_busy(), "taken once");
        slot.taken = taken;
        slot.dirty.clear();
        slot.dirty.extend(dirty);
        self.in_flight += 1;
        slot.state = State::InFlight {
            pieces,
            failure,
            recalled: false,
        };
    }

    /// Records that `head`, which was recalled, is in flight again, without pieces: to be completed.
    pub(super) fn begin_again(&mut self, head: u16) {
        self.slots[usize::from(head)].state = State::InFlight {
            pieces: 0,
            failure: None,
            recalled: false,
        };
        self.in_flight += 1;
    }

    /// Records the volume's answer to a piece of `head`. Returns the outcome of the request, if that was the last piece; an unexpected
    /// answer is ignored.
    pub(super) fn piece_done(&mut self, head: u16, result: PieceResult) -> Option<Outcome> {
        let slot = self.slots.get_mut(usize::from(head));
        let Some(State::InFlight {
            pieces: left @ 1..,
            failure,
            recalled,
        }) = slot.map(|slot| &mut slot.state)
        else {
            debug_assert!(false, "the volume has answered what was not asked");
            return None;
        };
        *left -= 1;
        match result {
            PieceResult::Recalled => *recalled = true,
            PieceResult::Done(Err(code)) => *failure = Some(Failure::Volume(code)),
            PieceResult::Done(Ok(())) => {}
        }
        let (failure, recalled) = (*failure, *recalled);
        (*left == 0).then_some(match failure {
            None if recalled => Outcome::Recalled,
            failure => Outcome::Completed(failure),
        })
    }

    /// Frees the slot of `head`.
    pub(super) fn end(&mut self, head: u16) -> &Slot {
        self.finish(head, State::Free)
    }

    /// Frees the slot of `head`, which the volume has given back.
    pub(super) fn recall(&mut self, head: u16) {
        self.finish(head, State::Recalled);
    }

    fn finish(&mut self, head: u16, state: State) -> &Slot {
        let slot = &mut self.slots[usize::from(head)];
        debug_assert!(slot.is_busy(), "ended once");
        slot.state = state;
        self.in_flight -= 1;
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_with_its_last_piece_and_a_failure_counts_more_than_a_recall() {
        let mut slots = Slots::default();
        slots.resize(4);
        let ok = PieceResult::Done(Ok(()));
        let failed = PieceResult::Done(Err(ErrorCode::Io));
        let failure = Some(Failure::Volume(ErrorCode::Io));
        for (answers, outcome) in [
            ([ok, ok], Outcome::Completed(None)),
            ([ok, PieceResult::Recalled], Outcome::Recalled),
            ([failed, PieceResult::Recalled], Outcome::Completed(failure)),
        ] {
            slots.begin(2, Taken::default(), 2, None, std::iter::empty());
            assert_eq!(slots.in_flight(), 1);
            assert_eq!(slots.piece_done(2, answers[0]), None);
            assert_eq!(slots.piece_done(2, answers[1]), Some(outcome));
            slots.end(2);
            assert_eq!(slots.in_flight(), 0);
        }
    }
}
