//! What the device and the threads around it share: figures, and the few values of the configuration space that change.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing::debug;
use xseg::Region;

use crate::inflight::queue_len;
use crate::metrics::Metrics;
use crate::ring_check::Problem;

/// Bytes after an in-flight area, in which the state of the write cache outlives the endpoint.
pub(crate) const TRAILER_LEN: u64 = 64;
const TRAILER_MAGIC: u32 = u32::from_le_bytes(*b"aWCE");

/// State shared between the device and its threads.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) metrics: Metrics,
    size: AtomicU64,
    writeback: AtomicBool,
    pub(crate) finished: AtomicBool,
    /// Signalled when the volume's size has changed, for the connection's thread to notify the front end.
    pub(crate) notice: File,
    trailer: Mutex<Option<(Region, u64)>>,
    problem: Mutex<Option<Problem>>,
}

impl Shared {
    pub(crate) fn new(size: u64, notice: File) -> Self {
        Shared {
            metrics: Metrics::default(),
            size: AtomicU64::new(size),
            writeback: AtomicBool::new(true),
            finished: AtomicBool::new(false),
            notice,
            trailer: Mutex::new(None),
            problem: Mutex::new(None),
        }
    }

    /// Bytes of the volume.
    pub(crate) fn size(&self) -> u64 {
        // Relaxed: no other data is published with the number, and the volume validates requests as well.
        self.size.load(Ordering::Relaxed)
    }

    /// Changes the size; the front end is notified of a new one.
    pub(crate) fn set_size(&self, size: u64) {
        // Relaxed: the volume validates requests as well.
        if self.size.swap(size, Ordering::Relaxed) != size {
            signal(&self.notice);
        }
    }

    /// Why the guest is not served, although nothing has failed.
    pub(crate) fn problem(&self) -> Option<Problem> {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the problem; returns the former one.
    pub(crate) fn set_problem(&self, problem: Option<Problem>) -> Option<Problem> {
        let mut now = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut now, problem)
    }

    /// Whether the guest has its write cache on.
    pub(crate) fn writeback(&self) -> bool {
        // Acquire: pairs with the release in `set_writeback`, whose acknowledgement the guest sees after it.
        self.writeback.load(Ordering::Acquire)
    }

    /// Switches the guest's write cache.
    pub(crate) fn set_writeback(&self, writeback: bool) {
        // Release: pairs with the Acquire in `writeback`.
        self.writeback.store(writeback, Ordering::Release);
        let trailer = self.trailer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((region, at)) = &*trailer {
            note(region, *at, writeback);
        }
    }

    /// Takes the write cache's state from behind an in-flight area, if a predecessor stored it there: a guest that has switched its cache
    /// off does not send that again to the endpoint's successor.
    pub(crate) fn recall_writeback(&self, region: &Region, start: u64, queues: u16, size: u16) {
        let at = queue_len(size)
            .checked_mul(u64::from(queues))
            .and_then(|len| len.checked_add(start));
        let Some(at) = at.filter(|at| at.is_multiple_of(8)) else {
            return;
        };
        // Acquire: pairs with the Release store of the magic number in `note`; the state is there then.
        let Ok(magic) = region.load_u32(at, Ordering::Acquire) else {
            return;
        };
        if magic == TRAILER_MAGIC {
            // Relaxed: the Acquire load of the magic number came before.
            let noted = region.load_u32(at + 4, Ordering::Relaxed).unwrap_or(0);
            // Release: pairs with the Acquire in `writeback`.
            self.writeback.store(noted == 1, Ordering::Release);
        } else if magic == 0 {
            note(region, at, self.writeback());
        } else {
            return;
        }
        let mut trailer = self.trailer.lock().unwrap_or_else(PoisonError::into_inner);
        *trailer = Some((region.clone(), at));
    }
}

fn note(region: &Region, at: u64, writeback: bool) {
    // Release of the magic number: pairs with the Acquire in `recall_writeback` of a successor; the state is there then. The state
    // itself is Relaxed: a later change of it is one word, old or new.
    let stored = region
        .store_u32(at + 4, u32::from(writeback), Ordering::Relaxed)
        .and_then(|()| region.store_u32(at, TRAILER_MAGIC, Ordering::Release));
    if let Err(error) = stored {
        debug!(%error, "no room behind the in-flight area");
    }
}

/// Signals an eventfd, which does not block: when its count is full, a signal is pending already.
pub(crate) fn signal(eventfd: &File) {
    use std::io::Write;
    let mut eventfd = eventfd;
    // An eventfd takes its number in the host's byte order.
    #[expect(clippy::host_endian_bytes, reason = "the kernel's interface")]
    let one = 1u64.to_ne_bytes();
    match eventfd.write(&one) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(error) => debug!(%error, "an eventfd cannot be signalled"),
    }
}
