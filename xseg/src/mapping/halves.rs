//! The two halves of a channel's control memory, as words.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::Mapping;
use crate::ring::{OwnWords, Words};

const WORD_BYTES: usize = size_of::<u64>();

/// The half that this process writes and its peer can only read.
#[derive(Debug, Clone)]
pub(crate) struct OwnHalf(Arc<Mapping>);

impl OwnHalf {
    /// Fresh memory of `len` bytes.
    pub(crate) fn new(len: usize) -> io::Result<OwnHalf> {
        Mapping::control(len).map(|mapping| OwnHalf(Arc::new(mapping)))
    }

    /// The descriptor that the peer maps.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.0.fd
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        let start = index * WORD_BYTES;
        self.0.check(start, WORD_BYTES);
        // SAFETY: in range (checked above), aligned (the base is page-aligned and `start` a multiple of 8), mapped for
        // reading and writing as long as `self.0` lives; only this process writes it, and only by such atomics.
        unsafe { AtomicU64::from_ptr(self.0.address(start).cast()) }
    }
}

impl Words for OwnHalf {
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.word(index).load(order)
    }

    #[inline]
    fn full_fence(&self) {
        // SeqCst: pairs with the other end's fence between sleep word and cursor; the race is written out in `doorbell`.
        fence(Ordering::SeqCst);
    }
}

impl OwnWords for OwnHalf {
    #[inline]
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.word(index).store(value, order);
    }
}

/// The half that the peer writes and this process can only read.
#[derive(Debug, Clone)]
pub(crate) struct PeerHalf(Arc<Mapping>);

impl PeerHalf {
    /// Maps `len` bytes that the peer made, after checking that their size and their writers can never change.
    pub(crate) fn new(fd: OwnedFd, len: usize) -> io::Result<PeerHalf> {
        Mapping::control_of_peer(fd, len).map(|mapping| PeerHalf(Arc::new(mapping)))
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn mapping(&self) -> &Mapping {
        &self.0
    }
}

impl Words for PeerHalf {
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        let start = index * WORD_BYTES;
        self.0.check(start, WORD_BYTES);
        // SAFETY: in range (checked above), aligned (the base is page-aligned and `start` a multiple of 8) and mapped
        // as long as `self.0` lives. The memory is mapped read-only: nothing is done with the reference but a relaxed
        // load of 8 bytes, which the standard library documents as permitted on read-only memory.
        let word = unsafe { AtomicU64::from_ptr(self.0.address(start).cast()) };
        let value = word.load(Ordering::Relaxed);
        if order != Ordering::Relaxed {
            // A relaxed load and this fence are an acquire load, which is not permitted on read-only memory. The partner is the
            // Release store of the same word in the other process: the ring's cursors name theirs.
            fence(Ordering::Acquire);
        }
        value
    }

    #[inline]
    fn full_fence(&self) {
        // SeqCst: pairs with the other end's fence between sleep word and cursor; the race is written out in `doorbell`.
        fence(Ordering::SeqCst);
    }
}
