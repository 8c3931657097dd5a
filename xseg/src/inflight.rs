//! A client's private table of requests in flight. It alone decides what was requested and has not been answered yet.
//!
//! Invariants
//! - A tag is (slot, sequence); two requests of a table never have the same sequence. So an answer that arrives twice, late, or without a
//!   request matches no entry.
//! - Another process can neither read nor write this table.

use crate::entry::{Completion, Submission};

/// Most slots of a table: the tag has 16 bits for the slot.
pub(crate) const SLOTS_MAX: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 16;

#[derive(Debug, Clone, Copy)]
struct Request {
    cookie: u64,
    submission: Submission,
}

/// The requests in flight of one client.
#[derive(Debug)]
pub(crate) struct InFlight {
    slots: Vec<Option<Request>>,
    free: Vec<u16>,
    /// Number of requests entered so far: the sequence of the last one.
    entered: u64,
}

impl InFlight {
    /// A table of `slots` requests, 1 to [`SLOTS_MAX`].
    pub(crate) fn new(slots: usize) -> InFlight {
        assert!(
            (1..=SLOTS_MAX).contains(&slots),
            "checked by the channel's constructor"
        );
        let last = u16::try_from(slots - 1).expect("at most 65536 slots");
        InFlight {
            slots: vec![None; slots],
            free: (0..=last).rev().collect(),
            entered: 0,
        }
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Number of requests entered so far.
    pub(crate) fn entered(&self) -> u64 {
        self.entered
    }

    /// Enters a request and sets its tag; `None`: all slots are in use.
    pub(crate) fn enter(&mut self, cookie: u64, mut submission: Submission) -> Option<Submission> {
        let slot = self.free.pop()?;
        self.entered += 1;
        // The sequence loses its upper 16 bits after 2^48 requests, nine years at a million per second; by then, the requests of nine years
        // ago are answered.
        submission.tag = u64::from(slot) | self.entered << SLOT_BITS;
        self.slots[usize::from(slot)] = Some(Request { cookie, submission });
        Some(submission)
    }

    /// Removes the request that `completion` answers from the table. `None`: no such request is in flight.
    pub(crate) fn take(&mut self, completion: &Completion) -> Option<u64> {
        let slot =
            u16::try_from(completion.tag & (SLOTS_MAX as u64 - 1)).expect("masked to 16 bits");
        let entry = self.slots.get_mut(usize::from(slot))?;
        match entry {
            Some(request) if request.submission.tag == completion.tag => {
                let cookie = request.cookie;
                *entry = None;
                self.free.push(slot);
                Some(cookie)
            }
            _ => None,
        }
    }

    /// The requests in flight in the order in which they were submitted.
    pub(crate) fn in_order(&self) -> Vec<Submission> {
        let mut list: Vec<Submission> = self
            .slots
            .iter()
            .flatten()
            .map(|request| request.submission)
            .collect();
        // Relative to the last one, so that requests are also in order after the sequence has wrapped around.
        let age =
            |tag: u64| (self.entered << SLOT_BITS).wrapping_sub(tag & !(SLOTS_MAX as u64 - 1));
        list.sort_unstable_by_key(|submission| std::cmp::Reverse(age(submission.tag)));
        list
    }

    /// Removes all requests; their answers will match no entry.
    pub(crate) fn clear(&mut self) {
        for (slot, entry) in self.slots.iter_mut().enumerate() {
            if entry.take().is_some() {
                self.free
                    .push(u16::try_from(slot).expect("at most 65536 slots"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(tag: u64) -> Completion {
        Completion {
            tag,
            ..Completion::default()
        }
    }

    /// Enters a request for `offset`; its tag.
    fn enter(table: &mut InFlight, offset: u64) -> u64 {
        let submission = Submission {
            offset,
            ..Submission::default()
        };
        table.enter(offset, submission).unwrap().tag
    }

    fn order(table: &InFlight) -> Vec<u64> {
        let offsets = table.in_order().into_iter();
        offsets.map(|submission| submission.offset).collect()
    }

    #[test]
    fn an_answer_fits_once_and_only_its_own_request() {
        let mut table = InFlight::new(2);
        let first = table.enter(7, Submission::default()).unwrap();
        let second = table.enter(8, Submission::default()).unwrap();
        assert_eq!(table.enter(9, Submission::default()), None, "two slots");
        assert_eq!(
            table.take(&answer(first.tag + (1 << 16))),
            None,
            "a sequence of another time"
        );
        assert_eq!(table.take(&answer(first.tag)), Some(7));
        assert_eq!(table.take(&answer(first.tag)), None, "answered already");
        let third = table.enter(9, Submission::default()).unwrap();
        assert_ne!(
            third.tag, first.tag,
            "the slot is used again, the tag is not"
        );
        assert_eq!(
            table.take(&answer(first.tag)),
            None,
            "a late answer to the slot's former request"
        );
        assert_eq!(
            table.take(&answer(0xffff)),
            None,
            "a slot that does not exist"
        );
        assert_eq!(table.take(&answer(second.tag)), Some(8));
        assert_eq!((table.len(), table.free(), table.entered()), (1, 1, 3));
    }

    #[test]
    fn replay_keeps_the_order_of_submission_whatever_the_slots() {
        let mut table = InFlight::new(4);
        let tags: Vec<u64> = (0..4).map(|n| enter(&mut table, n)).collect();
        table.take(&answer(tags[2]));
        table.take(&answer(tags[0]));
        enter(&mut table, 4);
        enter(&mut table, 5);
        assert_eq!(order(&table), [1, 3, 4, 5]);
        table.clear();
        assert_eq!((table.len(), table.free()), (0, 4));
    }

    #[test]
    fn a_sequence_that_begins_anew_is_no_older() {
        // 48 bits of it stand in a tag.
        for entered in [(1 << 48) - 2, (1 << 48) + (1 << 16) - 2] {
            let mut table = InFlight::new(4);
            table.entered = entered;
            for offset in 0..4 {
                enter(&mut table, offset);
            }
            assert_eq!(order(&table), [0, 1, 2, 3]);
        }
    }
}
