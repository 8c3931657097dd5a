//! The gate before data writes: a thread that spends the reserve has the data thread pause them, for they would take what it frees.
//!
//! Invariants
//! - Asked, closed and open again in this order; only the data thread closes, only who asked opens.
//! - Nobody waits for ever: a data thread that does not answer, or writes that do not end, are not waited for any longer than
//!   [`CLOSE_TIMEOUT`]. What is lost then is precedence, and nothing else.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// How long data writes in flight may take to end: a disk needs milliseconds.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether data writes may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateState {
    /// They may.
    Open,
    /// Somebody asks that they do not, and waits for those in flight.
    Asked,
    /// They do not, and none is in flight.
    Closed,
}

/// The gate before data writes.
#[derive(Debug)]
pub(crate) struct WriteGate {
    state: Mutex<GateState>,
    changed: Condvar,
    doorbell: EventFd,
}

impl WriteGate {
    pub(crate) fn new() -> io::Result<WriteGate> {
        Ok(WriteGate {
            state: Mutex::new(GateState::Open),
            changed: Condvar::new(),
            doorbell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: GateState) {
        *self.lock() = state;
        // The counter of an eventfd cannot overflow while a machine runs.
        let _rung = self.doorbell.write(1);
    }

    /// Asks for the gate to be closed, and waits until it is, or for some time.
    pub(crate) fn close(&self) {
        self.set(GateState::Asked);
        let asked = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(asked, CLOSE_TIMEOUT, |state| *state == GateState::Asked);
        drop(waited);
    }

    /// Opens the gate again.
    pub(crate) fn open(&self) {
        self.set(GateState::Open);
    }

    /// Becomes readable whenever the data thread has to look.
    pub(crate) fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    pub(crate) fn state(&self) -> GateState {
        *self.lock()
    }

    /// The data thread: no data write is in flight, and none begins.
    pub(crate) fn closed(&self) {
        let mut state = self.lock();
        if *state == GateState::Asked {
            *state = GateState::Closed;
            self.changed.notify_all();
        }
    }
}
