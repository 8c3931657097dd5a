//! The loop: poll the peer; if it has no work, poll again for a while if that pays (`polling`); then sleep in the kernel.
//!
//! Invariants
//! - The thread does not sleep while the peer has work: it announces the sleep to the peer first, and the peer may refuse.
//! - What the peer pushes reaches the kernel before the thread sleeps or polls, at most one round later while the peer has work.
//! - The thread does not spin while only syncs are in flight: they run on kernel workers that may need this CPU.
//! - A thread that always has work yields its CPU now and then to other processes of its node. It neither yields to nor spins beside a
//!   thread that computes on this CPU, since it would wait for the whole time slice of that thread (`yields`).
//! - Panics are not caught here. A peer that panics ends the thread, and so does an io_uring that fails permanently, by a panic with a
//!   [`RingFailure`]. The host of the peer decides what else ends then.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::sched_yield;

use crate::clock::Clock;
use crate::config::Config;
use crate::failure::RingFailure;
use crate::handle::Handle;
use crate::peer::{Peer, Progress};
use crate::polling::{Activity, Polling, Wait};
use crate::ring::Ring;
use crate::source::{Source, Watch};
use crate::yields::Yields;

/// Token of the doorbell of all handles.
const TOKEN_DOORBELL: u64 = 0;

/// A loop on the thread that created it.
pub struct Reactor {
    config: Config,
    clock: Arc<dyn Clock>,
    handle: Handle,
    doorbell: Source,
    _doorbell_watch: Watch,
    /// The last field: sources are dropped first.
    ring: Rc<RefCell<Ring>>,
}

impl Reactor {
    /// A reactor on this thread.
    ///
    /// # Errors
    /// The kernel's error of `io_uring_setup` or `eventfd`.
    pub fn new(config: Config, clock: Arc<dyn Clock>) -> Result<Reactor, RingFailure> {
        let ring = Rc::new(RefCell::new(Ring::new(&config)?));
        let handle = Handle::open().map_err(|error| RingFailure::new("eventfd", error))?;
        let doorbell = Source::new(&ring);
        let watch = doorbell
            .poll_readable(handle.doorbell(), TOKEN_DOORBELL)
            .map_err(|error| RingFailure::new("dup", error))?;
        Ok(Reactor {
            config,
            clock,
            handle,
            doorbell,
            _doorbell_watch: watch,
            ring,
        })
    }

    /// A handle to this reactor for other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// A new source, for a peer or a part of one. It must be dropped before the reactor.
    #[must_use]
    pub fn source(&self) -> Source {
        Source::new(&self.ring)
    }

    /// The reactor's clock.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// Polls `peer` until a handle asks the reactor to end. Requests in flight at that time are awaited when the reactor is dropped.
    ///
    /// # Panics
    /// With a [`RingFailure`], if the kernel refuses to serve the ring.
    pub fn run(&mut self, peer: &mut impl Peer) {
        let mut waiting: Option<Wait> = None;
        let mut polling = Polling::new(self.config.poll);
        let mut yields = Yields::default();
        let clock = Arc::clone(&self.clock);
        let yield_cpu = || {
            // The call cannot fail on Linux.
            let _ = sched_yield();
        };
        while !self.handle.is_stopping() {
            // When requests are many or large, pushed ones may wait for the sleep that follows or for the next requests: that saves a call
            // into the kernel. Few and small requests are submitted at once, since somebody waits for them.
            let gathers = polling.is_certain_to_sleep();
            let older = self.ring.borrow_mut().has_pending();
            if older && !gathers {
                self.ring.borrow_mut().submit();
            }
            let progress = self.collect().or(peer.poll());
            let now = clock.now();
            if progress == Progress::Busy {
                if older && gathers {
                    self.ring.borrow_mut().submit_pending();
                }
                if let Some(wait) = waiting.take() {
                    polling.end(wait, now);
                }
                yields.busy(now, &*clock, yield_cpu);
                continue;
            }
            let wait = waiting.get_or_insert_with(|| polling.begin(now, self.activity()));
            if self.may_spin() && yields.may_spin(now) && wait.polls(now) {
                self.ring.borrow_mut().submit_pending();
                yields.spin(now, &*clock, yield_cpu);
                continue;
            }
            wait.sleeps();
            self.sleep_beside(peer);
            yields.slept(now, &*clock, yield_cpu);
        }
    }

    /// Submits what was pushed, and takes over what the kernel has completed. For callers that poll by themselves.
    pub fn turn(&mut self) -> Progress {
        self.ring.borrow_mut().submit_pending();
        self.collect()
    }

    /// Sleeps until something happens, at most for `longest`. For callers that poll by themselves.
    pub fn sleep(&mut self, longest: Duration) {
        self.ring.borrow_mut().wait(longest);
    }

    /// Takes over what the kernel has completed. Busy if there was anything, or another thread has rung the doorbell.
    fn collect(&mut self) -> Progress {
        let any = self.ring.borrow_mut().collect();
        while self.doorbell.next().is_some() {
            self.handle.answer_doorbell();
        }
        if any { Progress::Busy } else { Progress::Idle }
    }

    /// Sleeps as [`Reactor::sleep`] does, unless `peer` has work.
    fn sleep_beside(&mut self, peer: &mut impl Peer) {
        if peer.prepare_sleep() {
            self.ring.borrow_mut().wait(self.config.sleep_max);
        } else {
            self.ring.borrow_mut().submit_pending();
        }
        peer.wake();
    }

    fn activity(&self) -> Activity {
        self.ring.borrow_mut().activity()
    }

    fn may_spin(&self) -> bool {
        !self.ring.borrow().load().is_syncs_only()
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
