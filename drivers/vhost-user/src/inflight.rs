//! The in-flight region: the requests that a dead endpoint had taken and not completed. Split layout of the vhost-user specification
//! ("Inflight I/O tracking").
//!
//! ```text
//! queue:  0 features u64 | 8 version u16 | 10 desc_num u16 | 12 last_batch_head u16 | 14 used_idx u16 | 16 entries
//! entry:  0 inflight u8 | 1 padding | 6 next u16 | 8 counter u64
//! ```
//!
//! Commit points. The endpoint can die between any two stores; the next endpoint sees:
//! - [`QueueLog::taken`]: `counter` before `inflight`. Without the mark the chain is taken from the avail ring again.
//! - [`QueueLog::batch`] links the batch through `next`, then the used index is published, then [`QueueLog::commit`]
//!   clears the marks and stores `used_idx`. In between, `used_idx` differs from the ring's: the batch is found through
//!   `last_batch_head` and its marks are cleared by [`QueueLog::recover`].
//!
//! Ordering. No other process reads the region while its endpoint runs; the successor maps it after the death, of which the closed socket
//! informs the front end. So the successor finds what the dead thread had stored, up to some instruction: only the order of the stores must
//! be kept, by the compiler and by the processor. Each store that must not come before the preceding ones is a Release, and pairs with the
//! Acquire loads of `recover`.
//!
//! The front end can write the region: every index is validated, and an invalid region costs that guest its requests only.

use std::sync::atomic::{Ordering, fence};

use xseg::Region;

const VERSION: u16 = 1;
const VERSION_AT: u64 = 8;
const SIZE_AT: u64 = 10;
const BATCH_HEAD_AT: u64 = 12;
const USED_AT: u64 = 14;
const HEADER_LEN: u64 = 16;
const ENTRY_LEN: u64 = 16;
const NEXT_AT: u64 = 6;
const COUNTER_AT: u64 = 8;

/// Bytes of one queue's part for rings of `size` entries, a multiple of 64.
#[must_use]
pub fn queue_len(size: u16) -> u64 {
    (HEADER_LEN + ENTRY_LEN * u64::from(size)).next_multiple_of(64)
}

/// The part of an in-flight region that one queue uses.
#[derive(Debug, Clone)]
pub struct QueueLog {
    region: Region,
    base: u64,
    size: u16,
    counter: u64,
}

impl QueueLog {
    /// The part of queue `index`. `None`: the region has no part for it.
    #[must_use]
    pub fn new(region: &Region, start: u64, index: u16, size: u16) -> Option<QueueLog> {
        let len = queue_len(size);
        let base = len.checked_mul(u64::from(index))?.checked_add(start)?;
        let end = base.checked_add(len)?;
        (base.is_multiple_of(8) && end <= region.len()).then(|| QueueLog {
            region: region.clone(),
            base,
            size,
            counter: 0,
        })
    }

    /// Entries of the queue.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    fn entry(&self, head: u16) -> u64 {
        self.base + HEADER_LEN + ENTRY_LEN * u64::from(head)
    }

    fn load(&self, at: u64) -> u16 {
        // Acquire: pairs with the Release in `store` of a predecessor.
        let loaded = self.region.load_u16(self.base + at, Ordering::Acquire);
        loaded.unwrap_or(0)
    }

    fn store(&self, at: u64, value: u16) {
        // Release: the stores before it are in the region if this one is; pairs with the Acquire in `load` of a successor.
        let stored = self
            .region
            .store_u16(self.base + at, value, Ordering::Release);
        debug_assert!(stored.is_ok(), "the part was checked when it was made");
    }

    fn is_marked(&self, head: u16) -> bool {
        let mut byte = [0];
        let read = self.region.read(self.entry(head), &mut byte);
        // Acquire: pairs with the Release fence in `mark` of a predecessor; the counter is there then.
        fence(Ordering::Acquire);
        read.is_ok() && byte == [1]
    }

    fn mark(&self, head: u16, value: u8) {
        // Release: the earlier stores (the counter of a head that is taken, the used index that covers a head which is done) are there if
        // the mark is. Pairs with the Acquire fence in `is_marked` of a successor. Stores that must come after the mark are Release stores
        // themselves.
        fence(Ordering::Release);
        let stored = self.region.write(self.entry(head), &[value]);
        debug_assert!(stored.is_ok(), "heads are below the size");
    }

    /// Makes the marks agree with the ring, whose used index is `used`. Returns the heads that were taken and not completed, in the order
    /// in which they were taken.
    pub fn recover(&mut self, used: u16) -> Vec<u16> {
        if self.load(VERSION_AT) != VERSION || self.load(SIZE_AT) != self.size {
            // A new region: zeros. `used_idx` must be the ring's at once; otherwise a ring that begins elsewhere than at 0 would look like
            // one with a half-committed batch, and the entry that `last_batch_head` 0 names would be dropped.
            for head in 0..self.size {
                self.mark(head, 0);
            }
            self.store(USED_AT, used);
            self.store(SIZE_AT, self.size);
            self.store(VERSION_AT, VERSION);
            return Vec::new();
        }
        let batch = used.wrapping_sub(self.load(USED_AT));
        if batch <= self.size {
            let mut head = self.load(BATCH_HEAD_AT);
            for _ in 0..batch {
                if head >= self.size {
                    break;
                }
                self.mark(head, 0);
                // Relaxed: the Acquire load of the batch's head came before.
                let next = self
                    .region
                    .load_u16(self.entry(head) + NEXT_AT, Ordering::Relaxed);
                head = next.unwrap_or(self.size);
            }
        }
        self.store(USED_AT, used);
        let mut taken: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.is_marked(*head))
            .map(|head| {
                // Relaxed: the fence in `is_marked` came before.
                let counter = self
                    .region
                    .load_u64(self.entry(head) + COUNTER_AT, Ordering::Relaxed);
                (counter.unwrap_or(0), head)
            })
            .collect();
        taken.sort_unstable();
        self.counter = taken.last().map_or(0, |(last, _)| last.wrapping_add(1));
        taken.into_iter().map(|(_, head)| head).collect()
    }

    /// Records that `head` counts as not taken.
    pub fn untaken(&self, head: u16) {
        self.mark(head, 0);
    }

    /// Records that `head` was taken.
    pub fn taken(&mut self, head: u16) {
        let at = self.entry(head) + COUNTER_AT;
        // Relaxed: the fence in `mark` orders it before the mark.
        let stored = self.region.store_u64(at, self.counter, Ordering::Relaxed);
        debug_assert!(stored.is_ok(), "heads are below the size");
        self.counter = self.counter.wrapping_add(1);
        self.mark(head, 1);
    }

    /// Links `head` into the batch that is about to be published.
    pub fn batch(&self, head: u16) {
        let last = self.load(BATCH_HEAD_AT);
        let at = self.entry(head) + NEXT_AT;
        // Relaxed: the Release store of the batch's head in the next line publishes it.
        let stored = self.region.store_u16(at, last, Ordering::Relaxed);
        debug_assert!(stored.is_ok(), "heads are below the size");
        self.store(BATCH_HEAD_AT, head);
    }

    /// Clears the marks of the batch, which the used index `used` covers now.
    pub fn commit(&self, heads: &[u16], used: u16) {
        for head in heads {
            self.mark(*head, 0);
        }
        self.store(USED_AT, used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(region: &Region) -> QueueLog {
        QueueLog::new(region, 0, 0, 8).unwrap()
    }

    #[test]
    fn what_was_taken_and_not_completed_comes_back_in_order() {
        let region = Region::anonymous(4096).unwrap();
        let mut first = log(&region);
        assert!(first.recover(500).is_empty());
        for head in [5, 0, 3, 1] {
            first.taken(head);
        }
        first.batch(3);
        first.commit(&[3], 501);
        assert_eq!(log(&region).recover(501), [5, 0, 1]);
        assert_eq!(log(&region).recover(501), [5, 0, 1]);
    }

    #[test]
    fn nothing_is_lost_when_nothing_was_completed_yet() {
        // https://github.com/spdk/spdk/issues/3766
        let region = Region::anonymous(4096).unwrap();
        let mut first = log(&region);
        assert!(first.recover(7).is_empty());
        first.taken(0);
        assert_eq!(log(&region).recover(7), [0]);
    }

    #[test]
    fn a_batch_that_was_published_and_not_committed_is_not_done_twice() {
        let region = Region::anonymous(4096).unwrap();
        let mut first = log(&region);
        first.recover(0xfffe);
        for head in 0..6 {
            first.taken(head);
        }
        first.batch(4);
        first.commit(&[4], 0xffff);
        for head in [1, 2, 5] {
            first.batch(head);
        }
        // Death after the used index went from 0xffff to 2, with one mark cleared.
        first.mark(1, 0);
        assert_eq!(log(&region).recover(2), [0, 3]);
    }

    #[test]
    fn a_linked_batch_that_was_not_published_is_done_again() {
        let region = Region::anonymous(4096).unwrap();
        let mut first = log(&region);
        first.recover(0);
        first.taken(2);
        first.taken(1);
        first.batch(2);
        assert_eq!(log(&region).recover(0), [2, 1]);
    }

    #[test]
    fn a_region_that_lies_is_bounded() {
        let region = Region::anonymous(4096).unwrap();
        let mut first = log(&region);
        first.recover(0);
        first.store(BATCH_HEAD_AT, 60_000);
        assert!(log(&region).recover(8).is_empty());
        assert!(QueueLog::new(&region, 0, 100, 8).is_none());
    }
}
