//! The ring and the doorbell under loom: all interleavings and all stale reads that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xseg --release model`

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicU64, fence};
use loom::thread;

use crate::doorbell::{Doorbell, Sleeper};
use crate::ring::{Consumer, OwnWords, Producer, RingError, RingLayout, Words};

#[derive(Clone)]
struct LoomWords(Arc<Vec<AtomicU64>>);

impl LoomWords {
    fn new(len: usize) -> LoomWords {
        LoomWords(Arc::new((0..len).map(|_| AtomicU64::new(0)).collect()))
    }
}

impl Words for LoomWords {
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0[index].load(order)
    }
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl OwnWords for LoomWords {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.0[index].store(value, order);
    }
}

const LAYOUT: RingLayout = RingLayout {
    tail: 0,
    head: 0,
    slots: 2,
    capacity: 2,
};
/// The sleep word is stored after the cursor in both memories.
const SLEEP: usize = 1;

type ModelProducer = Producer<2, LoomWords, LoomWords>;
type ModelConsumer = Consumer<2, LoomWords, LoomWords>;

fn ring() -> (ModelProducer, ModelConsumer, LoomWords, LoomWords) {
    let (down, up) = (LoomWords::new(6), LoomWords::new(2));
    (
        Producer::new(down.clone(), up.clone(), LAYOUT),
        Consumer::new(up.clone(), down.clone(), LAYOUT),
        down,
        up,
    )
}

#[test]
fn model_entries_pass_whole_and_in_order_around_the_end_of_the_ring() {
    const ENTRIES: u64 = 3;
    loom::model(|| {
        let (mut producer, mut consumer, ..) = ring();
        let sender = thread::spawn(move || {
            for number in 1..=ENTRIES {
                while let Err(error) = producer.push([number, number]) {
                    assert_eq!(error, RingError::Full);
                    thread::yield_now();
                }
                producer.publish();
            }
        });
        for number in 1..=ENTRIES {
            loop {
                if let Some(entry) = consumer.pop().expect("both ends are honest") {
                    assert_eq!(entry, [number, number]);
                    consumer.publish();
                    break;
                }
                thread::yield_now();
            }
        }
        sender.join().unwrap();
    });
}

/// A sleeper with two inputs from two publishers: loom reports a deadlock if a wake-up is lost.
#[test]
fn model_no_wake_up_is_lost() {
    loom::model(|| {
        let doorbell = Arc::new(Notify::new());
        let own = LoomWords::new(2);
        let mut inputs = Vec::new();
        for _ in 0..2 {
            let down = LoomWords::new(6);
            let mut producer: ModelProducer = Producer::new(down.clone(), own.clone(), LAYOUT);
            let mut ringer = Doorbell::new(own.clone(), SLEEP);
            let eventfd = Arc::clone(&doorbell);
            inputs.push(Consumer::<2, _, _>::new(LoomWords::new(2), down, LAYOUT));
            thread::spawn(move || {
                producer.push([5, 5]).unwrap();
                if producer.publish() && ringer.needed() {
                    eventfd.notify();
                }
            });
        }
        let mut sleeper = Sleeper::new(own, SLEEP);
        let mut taken = 0;
        while taken < 2 {
            for input in &mut inputs {
                while let Some(entry) = input.pop().unwrap() {
                    assert_eq!(entry, [5, 5]);
                    taken += 1;
                }
            }
            if taken < 2 {
                sleeper.announce();
                let mut empty = true;
                for input in &mut inputs {
                    empty &= !input.refresh().unwrap();
                }
                if empty {
                    doorbell.wait();
                }
                sleeper.wake();
            }
        }
    });
}

/// A producer that dies after an unpublished entry: the published entries are there, complete, and nothing else.
#[test]
fn model_the_dead_have_sent_what_they_published() {
    loom::model(|| {
        let (mut producer, mut consumer, ..) = ring();
        let dying = thread::spawn(move || {
            producer.push([1, 1]).unwrap();
            producer.publish();
            producer.push([2, 2]).unwrap();
        });
        let early = consumer.pop().unwrap();
        dying.join().unwrap();
        let mut all: Vec<[u64; 2]> = early.into_iter().collect();
        while let Some(entry) = consumer.pop().unwrap() {
            all.push(entry);
        }
        assert_eq!(all, [[1, 1]]);
    });
}
