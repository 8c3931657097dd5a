//! The announcements of open handles: a client sends them to each successor of its server before any request.
//!
//! Invariants
//! - There are never more announcements in a ring than it has slots, and none when the first request is sent.
//! - An answer matches one announcement in flight, and only once.

use crate::entry::{Completion, Submission};

const SLOT_BITS: u32 = 16;
/// Set in the tags of announcements, whose other bits are number and slot. In a tag of a request, this bit belongs to the sequence, which
/// never gets that far.
const ANNOUNCEMENT: u64 = 1 << 63;

/// The announcements of a client.
#[derive(Debug, Default)]
pub(crate) struct Reopened {
    /// By number: the cookie of the completion, and the announced submission.
    entries: Vec<Option<(u64, Submission)>>,
}

/// The state of the announcements to one server. They are sent in batches, so that each has its own slot.
#[derive(Debug, Default)]
pub(crate) struct Announcing {
    /// The first number that has not been sent.
    next: usize,
    /// The numbers of the batch by slot, until they are answered.
    batch: Vec<Option<usize>>,
    in_flight: usize,
}

impl Reopened {
    pub(crate) fn announce(&mut self, number: u32, cookie: u64, submission: Submission) {
        let index = number as usize;
        if self.entries.len() <= index {
            self.entries.resize(index + 1, None);
        }
        self.entries[index] = Some((cookie, submission));
    }

    pub(crate) fn withdraw(&mut self, number: u32) {
        if let Some(entry) = self.entries.get_mut(number as usize) {
            *entry = None;
        }
    }

    /// The entries of the next batch for a ring of `slots`, if the previous batch was answered.
    pub(crate) fn next_batch(&self, at: &mut Announcing, slots: usize) -> Vec<Submission> {
        if at.in_flight > 0 {
            return Vec::new();
        }
        at.batch.clear();
        let mut entries = Vec::new();
        while let (Some(entry), true) = (self.entries.get(at.next), entries.len() < slots) {
            if let Some((_, submission)) = entry {
                let slot = entries.len() as u64;
                entries.push(Submission {
                    tag: ANNOUNCEMENT | (at.next as u64) << SLOT_BITS | slot,
                    ..*submission
                });
                at.batch.push(Some(at.next));
            }
            at.next += 1;
        }
        at.in_flight = entries.len();
        entries
    }

    /// Whether the server has answered all announcements and none is left to be sent.
    pub(crate) fn are_done(&self, at: &Announcing) -> bool {
        let rest = self.entries.get(at.next..).unwrap_or_default();
        at.in_flight == 0 && rest.iter().all(Option::is_none)
    }

    /// Handles an answer. Returns `None` if it matches no announcement; else the cookie, unless the announcement was withdrawn meanwhile.
    pub(crate) fn answered(
        &self,
        at: &mut Announcing,
        completion: &Completion,
    ) -> Option<Option<u64>> {
        let slot = usize::try_from(completion.tag & ((1 << SLOT_BITS) - 1)).ok()?;
        let number = usize::try_from((completion.tag & !ANNOUNCEMENT) >> SLOT_BITS).ok()?;
        let in_flight = at.batch.get_mut(slot)?;
        if *in_flight != Some(number) || completion.tag & ANNOUNCEMENT == 0 {
            return None;
        }
        *in_flight = None;
        at.in_flight -= 1;
        Some(self.entries.get(number)?.map(|(cookie, _)| cookie))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_sent_as_there_is_room_and_is_done_when_all_is_answered() {
        let mut open = Reopened::default();
        let submission = |offset| Submission {
            offset,
            ..Submission::default()
        };
        for number in 0..5 {
            open.announce(number, 10 + u64::from(number), submission(number.into()));
        }
        open.withdraw(1);
        let mut at = Announcing::default();
        assert!(!open.are_done(&at));
        let mut seen = Vec::new();
        while !open.are_done(&at) {
            let sent = open.next_batch(&mut at, 3);
            assert!((1..=3).contains(&sent.len()));
            assert!(open.next_batch(&mut at, 3).is_empty());
            for entry in sent {
                let completion = Completion {
                    tag: entry.tag,
                    ..Completion::default()
                };
                let cookie = open.answered(&mut at, &completion).unwrap();
                seen.push((entry.offset, cookie));
                assert_eq!(open.answered(&mut at, &completion), None, "twice");
            }
        }
        assert_eq!(seen, [0, 2, 3, 4].map(|number| (number, Some(10 + number))));
        let lie = Completion::default();
        assert_eq!(open.answered(&mut at, &lie), None);
    }
}
