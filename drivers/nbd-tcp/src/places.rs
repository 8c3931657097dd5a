//! Places for requests in flight on a volume: a request is submitted only with a place, so that the channel has room for it.
//!
//! Requests that the pool's policy may keep waiting for space (writes, zeros) have places of their own: when a pool is full, reads and
//! flushes go on.

use archipelago_nbd_protocol::command::Command;
use archipelago_nbd_protocol::offer::{BLOCK_MAX, PIECE_MAX};
use archipelago_segment::VolumeOptions;
use tokio::sync::{AcquireError, Semaphore};

/// Buffers of a volume for reads: enough for the longest read, which must be complete before it is answered to a client without structured
/// replies. A buffer takes memory only when it is used.
const READS: usize = (BLOCK_MAX / PIECE_MAX) as usize;
/// Buffers for writes.
const WRITES: usize = 64;
/// Requests without data in flight.
const BARE_REQUESTS: usize = 4;
const FLUSHES: usize = 4;
/// All places of a volume.
pub(crate) const PLACES: usize = READS + WRITES + BARE_REQUESTS + FLUSHES;
/// The channel of a volume: a buffer for each place that needs one.
pub(crate) const OPTIONS: VolumeOptions = VolumeOptions {
    buffers: READS + WRITES,
    buffer_len: PIECE_MAX as usize,
};

/// The kind of place that a request in flight occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A buffer, until its data has been copied.
    Read,
    /// A buffer.
    Write,
    /// No buffer: trim and zeros.
    Bare,
    /// No buffer.
    Flush,
}

impl Place {
    pub(crate) fn of(command: Command) -> Place {
        match command {
            Command::Read | Command::BlockStatus { .. } => Place::Read,
            Command::Write { .. } => Place::Write,
            Command::Trim { .. } | Command::WriteZeroes { .. } => Place::Bare,
            Command::Flush | Command::Disconnect | Command::Cache => Place::Flush,
        }
    }
}

/// The free places.
pub(crate) struct Places {
    reads: Semaphore,
    writes: Semaphore,
    bare: Semaphore,
    flushes: Semaphore,
}

impl Places {
    /// All places, free.
    pub(crate) fn new() -> Places {
        Places {
            reads: Semaphore::new(READS),
            writes: Semaphore::new(WRITES),
            bare: Semaphore::new(BARE_REQUESTS),
            flushes: Semaphore::new(FLUSHES),
        }
    }

    /// Acquires `count` places for requests like `place` when they are free and `ready` is over. A caller that stops waiting has acquired
    /// none.
    ///
    /// # Errors
    /// If the places are closed.
    pub(crate) async fn acquire(
        &self,
        place: Place,
        count: u32,
        ready: impl Future<Output = ()>,
    ) -> Result<(), AcquireError> {
        let places = self.get(place).acquire_many(count).await?;
        ready.await;
        places.forget();
        Ok(())
    }

    /// The places for requests like `place`.
    pub(crate) fn get(&self, place: Place) -> &Semaphore {
        match place {
            Place::Read => &self.reads,
            Place::Write => &self.writes,
            Place::Bare => &self.bare,
            Place::Flush => &self.flushes,
        }
    }

    /// Closes all places: no request can acquire one any more.
    pub(crate) fn close(&self) {
        for place in [Place::Read, Place::Write, Place::Bare, Place::Flush] {
            self.get(place).close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn who_waits_no_longer_has_acquired_no_place() {
        let places = Places::new();
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting = Box::pin(places.acquire(Place::Write, 3, std::future::pending()));
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert_eq!(places.get(Place::Write).available_permits(), WRITES - 3);
        drop(waiting);
        assert_eq!(places.get(Place::Write).available_permits(), WRITES);
        let mut acquired = Box::pin(places.acquire(Place::Write, 3, std::future::ready(())));
        assert!(acquired.as_mut().poll(&mut context).is_ready());
        drop(acquired);
        assert_eq!(places.get(Place::Write).available_permits(), WRITES - 3);
    }
}
