//! Sleep words, and the rule of the doorbell: a publisher wakes the other end if that sleeps, once, and wakes nobody else.
//!
//! The race: the publisher stores a cursor and then reads the other end's sleep word; the sleeper stores its sleep word and then reads the
//! cursor. Each has a full fence between its store and its load, so at least one of them sees the other's store: either the publisher rings
//! the doorbell, or the sleeper finds the work and does not sleep.
//!
//! Invariants
//! - A sleep word is odd while its owner sleeps or is about to sleep; it only grows.
//! - The publisher can only read the sleep word, so it records privately for which value it has rung.

use std::sync::atomic::Ordering;

use crate::ring::{OwnWords, Words};

/// The end that may sleep.
#[derive(Debug)]
pub(crate) struct Sleeper<W> {
    own: W,
    word: usize,
    value: u64,
}

impl<W: OwnWords> Sleeper<W> {
    pub(crate) fn new(own: W, word: usize) -> Self {
        Sleeper {
            own,
            word,
            value: 0,
        }
    }

    /// Announces sleep. After this the caller checks all its inputs once more, and sleeps only if all are empty.
    pub(crate) fn announce(&mut self) {
        if self.value.is_multiple_of(2) {
            self.value += 1;
            // Relaxed: the fence below orders the store before the second look at the inputs.
            self.own.store(self.word, self.value, Ordering::Relaxed);
        }
        // SeqCst: pairs with the fence in `Doorbell::needed`; see the race above.
        self.own.full_fence();
    }

    /// Withdraws the announcement. Returns whether there was one.
    pub(crate) fn wake(&mut self) -> bool {
        if self.value.is_multiple_of(2) {
            return false;
        }
        self.value += 1;
        // Relaxed: if the store is seen late, the doorbell is rung once too often, but never once too rarely.
        self.own.store(self.word, self.value, Ordering::Relaxed);
        true
    }
}

/// The end that rings.
#[derive(Debug)]
pub(crate) struct Doorbell<R> {
    peer: R,
    word: usize,
    rung: u64,
}

impl<R: Words> Doorbell<R> {
    pub(crate) fn new(peer: R, word: usize) -> Self {
        // 0 is even, so the doorbell is never rung for it.
        Doorbell {
            peer,
            word,
            rung: 0,
        }
    }

    /// Whether the doorbell must be rung after a publication.
    pub(crate) fn needed(&mut self) -> bool {
        // SeqCst: pairs with the fence in `Sleeper::announce`; see the race above.
        self.peer.full_fence();
        // Relaxed: the fence above orders the load after the store of the cursor.
        let value = self.peer.load(self.word, Ordering::Relaxed);
        let needed = !value.is_multiple_of(2) && value != self.rung;
        if needed {
            self.rung = value;
        }
        needed
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::tests::VecWords;

    #[test]
    fn the_doorbell_rings_once_per_sleep() {
        let words = VecWords::new(1);
        let mut sleeper = Sleeper::new(words.clone(), 0);
        let mut doorbell = Doorbell::new(words, 0);
        assert!(!doorbell.needed(), "nobody sleeps");
        for _ in 0..3 {
            sleeper.announce();
            sleeper.announce();
            assert!(doorbell.needed());
            assert!(!doorbell.needed(), "rung already");
            assert!(sleeper.wake());
            assert!(!sleeper.wake());
            assert!(!doorbell.needed());
        }
    }
}
