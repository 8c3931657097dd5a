//! Pauses data writes while a thread spends the reserve, and lets the reserve grow when there is space again.
//!
//! Invariants
//! - A paused write has not begun; it begins when the gate is open again.
//! - No write is paused for longer than [`PAUSE_SECONDS`], even if a call on the file system stalls.

use std::io;
use std::sync::Arc;

use archipelago_protocol::ErrorCode;
use nix::sys::eventfd::EventFd;

use crate::blocking_pool::JobQueue;
use crate::jobs::Job;
use crate::reserve::Reserve;
use crate::threads::Threads;
use crate::write_gate::{GateState, Seat};

/// A data write is paused for about this long at most.
const PAUSE_SECONDS: u64 = 2;

/// Whether data writes are paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    Off,
    /// Paused since this time, in seconds of the monotonic clock.
    On(u64),
    /// The pause has taken too long: no further pause until the gate is open again.
    GivenUp,
}

/// Data writes, and their lack of space.
#[derive(Debug)]
pub(crate) struct Throttle {
    reserve: Arc<Reserve>,
    /// This thread's place at the gate.
    seat: Seat,
    pause: Pause,
    /// Indexes of the paused transfers, in order.
    paused: Vec<usize>,
    /// A data write has found no space since the last check of the reserve.
    starved: bool,
}

impl Throttle {
    /// # Errors
    /// If there is no descriptor for the gate's doorbell.
    pub(crate) fn new(reserve: Arc<Reserve>) -> io::Result<Self> {
        Ok(Throttle {
            seat: reserve.gate().join()?,
            reserve,
            pause: Pause::Off,
            paused: Vec::new(),
            starved: false,
        })
    }

    /// Becomes readable whenever the gate has changed.
    pub(crate) fn doorbell(&self) -> &EventFd {
        self.seat.doorbell()
    }

    /// The space that is reserved for metadata.
    pub(crate) fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// Whether data writes are paused.
    pub(crate) fn is_on(&self) -> bool {
        matches!(self.pause, Pause::On(_))
    }

    /// Pauses the data write at `index`.
    pub(crate) fn pause(&mut self, index: usize) {
        self.paused.push(index);
    }

    /// Follows the gate at the time `seconds`. `is_drained`: no data write is in flight except paused ones. Returns the writes to be
    /// resumed.
    #[must_use]
    pub(crate) fn follow_gate(
        &mut self,
        seconds: u64,
        is_drained: impl FnOnce() -> bool,
    ) -> Vec<usize> {
        let gate = self.reserve.gate();
        match (gate.state(&self.seat), self.pause) {
            (GateState::Open, Pause::Off) | (GateState::Closed, _) => Vec::new(),
            (GateState::Open, Pause::On(_) | Pause::GivenUp) => {
                self.pause = Pause::Off;
                std::mem::take(&mut self.paused)
            }
            (GateState::Asked, Pause::GivenUp) => Vec::new(),
            (GateState::Asked, Pause::Off | Pause::On(_)) => {
                if self.pause == Pause::Off {
                    self.pause = Pause::On(seconds);
                }
                if is_drained() {
                    gate.closed(&self.seat);
                }
                Vec::new()
            }
        }
    }

    /// Called about once a second. Returns the writes to be resumed because their pause has taken too long.
    #[must_use]
    pub(crate) fn look(&mut self, seconds: u64) -> Vec<usize> {
        match self.pause {
            Pause::On(since) if seconds.saturating_sub(since) > PAUSE_SECONDS => {
                self.pause = Pause::GivenUp;
                std::mem::take(&mut self.paused)
            }
            _ => Vec::new(),
        }
    }

    /// Lets the reserve grow if it is short.
    pub(crate) fn grow_reserve(&self, threads: &Threads) {
        if self.reserve.is_short() && self.reserve.may_begin_growing() {
            threads.sender().send(JobQueue::Pool, Job::Grow);
        }
    }

    /// Records that a data write ended with `result`: there was no space, or there is space again and the reserve comes first.
    pub(crate) fn data_write_ended(&mut self, result: Result<(), ErrorCode>, threads: &Threads) {
        match result {
            Err(ErrorCode::NoSpace) => self.starved = true,
            Ok(()) if self.starved => {
                self.starved = false;
                self.grow_reserve(threads);
            }
            Ok(()) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[test]
    fn writes_are_paused_from_when_the_gate_asks_until_it_opens_or_time_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Arc::new(Reserve::open(&Layout::new(dir.path())).unwrap());
        let mut throttle = Throttle::new(Arc::clone(&reserve)).unwrap();
        let (drained, in_flight) = (|| true, || false);
        assert!(throttle.follow_gate(0, || panic!("nobody asks")).is_empty());
        std::thread::scope(|threads| {
            // Waits until the gate is closed.
            threads.spawn(|| reserve.gate().close());
            while reserve.gate().state(&throttle.seat) != GateState::Asked {
                std::thread::yield_now();
            }
            assert!(throttle.follow_gate(10, in_flight).is_empty());
            assert!(throttle.is_on());
            throttle.pause(7);
            assert!(throttle.follow_gate(10, drained).is_empty());
        });
        assert_eq!(reserve.gate().state(&throttle.seat), GateState::Closed);
        assert!(throttle.look(10 + PAUSE_SECONDS).is_empty());
        assert_eq!(throttle.look(11 + PAUSE_SECONDS), [7], "long enough");
        assert!(!throttle.is_on());
        reserve.gate().open();
        assert!(throttle.follow_gate(20, drained).is_empty());
    }
}
