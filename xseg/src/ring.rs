//! Request and completion ring: one producer, one consumer, in memory of which each can write only its own half.
//!
//! Invariants
//! - Only the producer stores `tail` and the slots, and only the consumer stores `head`; both only count up, from 0.
//! - `tail - head <= capacity`. A value outside this range breaks the ring: it causes neither clamping nor a panic.
//! - An entry is complete before `tail` covers it, and one store of `tail` publishes a whole batch: a producer that dies has either sent an
//!   entry completely or not at all.
//! - Each end works with its private cursor. An end never reads back what it has written, and copies once what the other end has written.
//!
//! The code is generic over [`Words`], so that loom explores the same algorithm that runs in production.

use std::sync::atomic::Ordering;

/// Memory as 64-bit words that another process may write.
pub(crate) trait Words {
    /// Reads word `index`; `order` is `Relaxed` or `Acquire`.
    fn load(&self, index: usize, order: Ordering) -> u64;
    /// `fence(SeqCst)`.
    fn full_fence(&self);
}

/// Words that only this end may write.
pub(crate) trait OwnWords: Words {
    /// Writes word `index`; `order` is `Relaxed` or `Release`.
    fn store(&self, index: usize, value: u64, order: Ordering);
}

/// The position of a ring in the two memories, in words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingLayout {
    /// The producer's cursor, in the producer's memory.
    pub(crate) tail: usize,
    /// The consumer's cursor, in the consumer's memory.
    pub(crate) head: usize,
    /// The first slot, in the producer's memory.
    pub(crate) slots: usize,
    /// Entries: a power of two, so that a cursor maps to a slot by masking.
    pub(crate) capacity: u64,
}

impl RingLayout {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "masked to less than the capacity, which is at most 8192"
    )]
    fn slot(&self, cursor: u64, entry_words: usize) -> usize {
        self.slots + (cursor & (self.capacity - 1)) as usize * entry_words
    }
}

/// Why an entry could not be added or taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RingError {
    /// No free slot; nothing changed.
    Full,
    /// The other end's cursor is impossible: the channel must be broken.
    Broken,
}

/// The end that adds entries of `N` words.
#[derive(Debug)]
pub(crate) struct Producer<const N: usize, W, R> {
    own: W,
    peer: R,
    layout: RingLayout,
    tail: u64,
    published: u64,
    head: u64,
}

impl<const N: usize, W: OwnWords, R: Words> Producer<N, W, R> {
    pub(crate) fn new(own: W, peer: R, layout: RingLayout) -> Self {
        assert!(
            layout.capacity.is_power_of_two(),
            "rings are made with a power of two"
        );
        Producer {
            own,
            peer,
            layout,
            tail: 0,
            published: 0,
            head: 0,
        }
    }

    /// Adds `entry`; the consumer sees it after [`Producer::publish`].
    pub(crate) fn push(&mut self, entry: [u64; N]) -> Result<(), RingError> {
        if self.tail - self.head == self.layout.capacity {
            // Acquire: pairs with the Release of `head` in `Consumer::publish`, which no longer uses the slot.
            let head = self.peer.load(self.layout.head, Ordering::Acquire);
            // A cursor that moved back, or beyond what was published, results in more than the capacity.
            let used = self.published.wrapping_sub(head);
            if used > self.layout.capacity || self.tail.wrapping_sub(head) > self.layout.capacity {
                return Err(RingError::Broken);
            }
            if head == self.head {
                return Err(RingError::Full);
            }
            self.head = head;
        }
        let slot = self.layout.slot(self.tail, N);
        for (word, value) in entry.into_iter().enumerate() {
            // Relaxed: the Release of `tail` in `publish` publishes the slot.
            self.own.store(slot + word, value, Ordering::Relaxed);
        }
        self.tail += 1;
        Ok(())
    }

    /// Publishes the entries added since the last call. Returns whether there were any.
    pub(crate) fn publish(&mut self) -> bool {
        if self.published == self.tail {
            return false;
        }
        self.published = self.tail;
        // Release: pairs with the Acquire of `tail` in `Consumer::refresh`; publishes the slots.
        self.own
            .store(self.layout.tail, self.tail, Ordering::Release);
        true
    }
}

/// The end that takes entries of `N` words.
#[derive(Debug)]
pub(crate) struct Consumer<const N: usize, W, R> {
    own: W,
    peer: R,
    layout: RingLayout,
    head: u64,
    published: u64,
    tail: u64,
}

impl<const N: usize, W: OwnWords, R: Words> Consumer<N, W, R> {
    pub(crate) fn new(own: W, peer: R, layout: RingLayout) -> Self {
        assert!(
            layout.capacity.is_power_of_two(),
            "rings are made with a power of two"
        );
        Consumer {
            own,
            peer,
            layout,
            head: 0,
            published: 0,
            tail: 0,
        }
    }

    /// Takes the next entry, as a private copy. `None`: no entry is published.
    pub(crate) fn pop(&mut self) -> Result<Option<[u64; N]>, RingError> {
        if !self.refresh()? {
            return Ok(None);
        }
        let slot = self.layout.slot(self.head, N);
        // Relaxed: `refresh` has acquired the `tail` that published the slot.
        let entry = std::array::from_fn(|word| self.peer.load(slot + word, Ordering::Relaxed));
        self.head += 1;
        Ok(Some(entry))
    }

    /// Returns the slots of taken entries to the producer.
    pub(crate) fn publish(&mut self) {
        if self.published != self.head {
            self.published = self.head;
            // Release: pairs with the Acquire of `head` in `Producer::push`; the loads of the slots come before.
            self.own
                .store(self.layout.head, self.head, Ordering::Release);
        }
    }

    /// Whether an entry can be taken.
    pub(crate) fn refresh(&mut self) -> Result<bool, RingError> {
        if self.head == self.tail {
            // Acquire: pairs with the Release of `tail` in `Producer::publish`.
            let tail = self.peer.load(self.layout.tail, Ordering::Acquire);
            // Slots that were taken and not returned still belong to the consumer: a correct producer has not passed them.
            if tail.wrapping_sub(self.head) > self.layout.capacity
                || tail.wrapping_sub(self.published) > self.layout.capacity
            {
                return Err(RingError::Broken);
            }
            self.tail = tail;
        }
        Ok(self.head != self.tail)
    }
}

#[cfg(not(loom))]
#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, fence};

    use proptest::prelude::*;

    use super::*;

    /// Words in private memory, for tests and for miri: `cargo +nightly miri test -p xseg ring`.
    #[derive(Debug, Clone)]
    pub(crate) struct VecWords(pub(crate) Arc<Vec<AtomicU64>>);

    impl VecWords {
        pub(crate) fn new(len: usize) -> VecWords {
            VecWords(Arc::new((0..len).map(|_| AtomicU64::new(0)).collect()))
        }
    }

    impl Words for VecWords {
        fn load(&self, index: usize, order: Ordering) -> u64 {
            self.0[index].load(order)
        }
        fn full_fence(&self) {
            fence(Ordering::SeqCst);
        }
    }

    impl OwnWords for VecWords {
        fn store(&self, index: usize, value: u64, order: Ordering) {
            self.0[index].store(value, order);
        }
    }

    type TestProducer = Producer<2, VecWords, VecWords>;
    type TestConsumer = Consumer<2, VecWords, VecWords>;

    fn ring(capacity: u64) -> (TestProducer, TestConsumer, VecWords, VecWords) {
        let slots = usize::try_from(capacity).unwrap() * 2;
        let (down, up) = (VecWords::new(1 + slots), VecWords::new(1));
        let layout = RingLayout {
            tail: 0,
            head: 0,
            slots: 1,
            capacity,
        };
        let producer = Producer::new(down.clone(), up.clone(), layout);
        let consumer = Consumer::new(up.clone(), down.clone(), layout);
        (producer, consumer, down, up)
    }

    #[test]
    fn a_full_ring_refuses_and_stays_unchanged() {
        let (mut producer, mut consumer, ..) = ring(2);
        producer.push([1, 1]).unwrap();
        producer.push([2, 2]).unwrap();
        assert_eq!(producer.push([3, 3]), Err(RingError::Full));
        assert_eq!(consumer.pop(), Ok(None), "not published");
        assert!(producer.publish() && !producer.publish());
        assert_eq!(consumer.pop(), Ok(Some([1, 1])));
        assert_eq!(
            producer.push([3, 3]),
            Err(RingError::Full),
            "the slot is not given back yet"
        );
        consumer.publish();
        producer.push([3, 3]).unwrap();
        assert_eq!(consumer.pop(), Ok(Some([2, 2])));
    }

    #[test]
    fn cursors_that_cannot_be_break_the_ring() {
        for tail in [3, u64::MAX, 1 << 63] {
            let (_, mut consumer, down, _) = ring(2);
            down.store(0, tail, Ordering::Relaxed);
            assert_eq!(consumer.pop(), Err(RingError::Broken), "tail {tail}");
        }
        for head in [3, u64::MAX] {
            let (mut producer, _, _, up) = ring(2);
            producer.push([0, 0]).unwrap();
            producer.push([0, 0]).unwrap();
            producer.publish();
            up.store(0, head, Ordering::Relaxed);
            assert_eq!(producer.push([0, 0]), Err(RingError::Broken), "head {head}");
        }
        let (mut producer, _, _, up) = ring(2);
        producer.push([0, 0]).unwrap();
        producer.publish();
        producer.push([0, 0]).unwrap();
        up.store(0, 2, Ordering::Relaxed);
        assert_eq!(
            producer.push([0, 0]),
            Err(RingError::Broken),
            "consumed more than was published"
        );
        let (mut producer, mut consumer, down, _) = ring(2);
        producer.push([0, 0]).unwrap();
        producer.publish();
        consumer.pop().unwrap();
        down.store(0, 0, Ordering::Relaxed);
        assert_eq!(consumer.pop(), Err(RingError::Broken), "tail went back");
    }

    #[test]
    fn two_threads_exchange_everything_in_order() {
        let rounds: u64 = if cfg!(miri) { 100 } else { 100_000 };
        let (mut producer, mut consumer, ..) = ring(8);
        let sender = std::thread::spawn(move || {
            let mut next = 0;
            while next < rounds {
                match producer.push([next, !next]) {
                    Ok(()) => next += 1,
                    Err(RingError::Full) => {
                        producer.publish();
                        std::thread::yield_now();
                    }
                    Err(RingError::Broken) => unreachable!("both ends are honest"),
                }
            }
            producer.publish();
        });
        let mut expected = 0;
        while expected < rounds {
            match consumer.pop().unwrap() {
                Some(entry) => {
                    assert_eq!(entry, [expected, !expected]);
                    expected += 1;
                    if expected % 3 == 0 {
                        consumer.publish();
                    }
                }
                None => {
                    consumer.publish();
                    std::thread::yield_now();
                }
            }
        }
        sender.join().unwrap();
    }

    proptest! {
        // Compared with a queue: in every interleaving of calls, the entries taken are the entries added.
        #[test]
        fn a_ring_behaves_like_a_bounded_queue(log in 0u32..4, steps in proptest::collection::vec(0u8..4, 0..200)) {
            let capacity = 1u64 << log;
            let (mut producer, mut consumer, ..) = ring(capacity);
            let mut queue = std::collections::VecDeque::new();
            let (mut pushed, mut visible, mut held) = (0u64, 0usize, 0usize);
            for step in steps {
                match step {
                    0 => {
                        let result = producer.push([pushed, 7]);
                        if queue.len() + held < usize::try_from(capacity).unwrap() {
                            prop_assert_eq!(result, Ok(()));
                            queue.push_back(pushed);
                            pushed += 1;
                        } else {
                            prop_assert_eq!(result, Err(RingError::Full));
                        }
                    }
                    1 => {
                        producer.publish();
                        visible = queue.len();
                    }
                    2 => {
                        let got = consumer.pop().unwrap();
                        if visible > 0 {
                            visible -= 1;
                            held += 1;
                            prop_assert_eq!(got, Some([queue.pop_front().unwrap(), 7]));
                        } else {
                            prop_assert_eq!(got, None);
                        }
                    }
                    _ => {
                        consumer.publish();
                        held = 0;
                    }
                }
            }
        }

        // Whatever the words contain, an end reads only its own slots and takes at most `capacity` entries per tail.
        #[test]
        fn any_words_are_survived(words in proptest::collection::vec(any::<u64>(), 9), pops in 1usize..40) {
            let (_, mut consumer, down, _) = ring(4);
            for (index, word) in words.iter().enumerate() {
                down.store(index, *word, Ordering::Relaxed);
            }
            let mut taken = 0;
            for _ in 0..pops {
                if let Ok(Some(_)) = consumer.pop() {
                    taken += 1;
                }
            }
            prop_assert!(taken <= 4);
        }
    }
}
