//! The gate before data writes: a thread that spends the reserve has the data threads pause data writes, which would otherwise take the
//! released space.
//!
//! Invariants
//! - It is asked for, closed and open again in this order; only data threads close it, and only the thread that asked opens it.
//! - It is closed when each data thread has closed its own side: a [`Seat`].
//! - No wait is endless: a data thread that does not answer, or writes that do not end, are waited for no longer than [`CLOSE_TIMEOUT`].
//!   Then data may take the released space; no other harm is done.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Timeout for data writes in flight: a disk needs milliseconds.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether data writes may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateState {
    /// They may.
    Open,
    /// A thread asks that none begins, and waits for those in flight.
    Asked,
    /// None may begin, and none is in flight.
    Closed,
}

/// The side of a data thread.
#[derive(Debug)]
struct Side {
    state: GateState,
    doorbell: Arc<EventFd>,
}

/// The gate before data writes.
#[derive(Debug, Default)]
pub(crate) struct WriteGate {
    /// One for each data thread.
    sides: Mutex<Vec<Side>>,
    changed: Condvar,
}

/// The place of a data thread at the gate.
#[derive(Debug)]
pub(crate) struct Seat {
    index: usize,
    doorbell: Arc<EventFd>,
}

impl Seat {
    /// Becomes readable whenever its data thread has to check the gate.
    pub(crate) fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }
}

/// Whether some data thread has not closed its side yet.
fn is_awaited(sides: &[Side]) -> bool {
    sides.iter().any(|it| it.state == GateState::Asked)
}

impl WriteGate {
    /// A place for a further data thread, valid as long as the gate exists.
    pub(crate) fn join(&self) -> io::Result<Seat> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let doorbell = Arc::new(EventFd::from_flags(flags)?);
        let mut sides = self.lock();
        sides.push(Side {
            state: GateState::Open,
            doorbell: Arc::clone(&doorbell),
        });
        let index = sides.len() - 1;
        Ok(Seat { index, doorbell })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Side>> {
        // No code panics while the lock is held.
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: GateState) {
        for side in self.lock().iter_mut() {
            side.state = state;
            // The counter of an eventfd cannot overflow while a machine runs.
            let _rung = side.doorbell.write(1);
        }
    }

    /// Asks for the gate to be closed, and waits until it is, or for the timeout.
    pub(crate) fn close(&self) {
        self.set(GateState::Asked);
        let asked = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(asked, CLOSE_TIMEOUT, |sides| is_awaited(sides));
        drop(waited);
    }

    /// Opens the gate again.
    pub(crate) fn open(&self) {
        self.set(GateState::Open);
    }

    /// The state of the side of `seat`.
    pub(crate) fn state(&self, seat: &Seat) -> GateState {
        self.lock()[seat.index].state
    }

    /// Closes the side of `seat`: none of its data writes is in flight, and none begins.
    pub(crate) fn closed(&self, seat: &Seat) {
        let side = &mut self.lock()[seat.index];
        if side.state == GateState::Asked {
            side.state = GateState::Closed;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_closed_when_every_data_thread_has_closed_its_side() {
        let gate = WriteGate::default();
        let [one, two] = [(); 2].map(|()| gate.join().unwrap());
        let closing = || gate.close();
        std::thread::scope(|threads| {
            let closer = threads.spawn(closing);
            while gate.state(&two) != GateState::Asked {
                std::thread::yield_now();
            }
            gate.closed(&one);
            assert_eq!(gate.state(&two), GateState::Asked);
            assert!(is_awaited(&gate.lock()), "the other one still writes");
            gate.closed(&two);
            assert!(!is_awaited(&gate.lock()));
            closer.join().unwrap();
        });
        assert_eq!(gate.state(&one), GateState::Closed);
        gate.open();
        assert_eq!([&one, &two].map(|it| gate.state(it)), [GateState::Open; 2]);
    }
}
