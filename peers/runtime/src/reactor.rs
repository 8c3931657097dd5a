//! The loop: poll the peer; when it has no work, poll again for a while if that pays (`polling`); then sleep in the kernel.
//!
//! Invariants
//! - No sleep while the peer has work: it announces its sleep first, and may refuse.
//! - What the peer pushes is in the kernel before the thread sleeps or polls, at most one round later while it has work.
//! - No spinning while only syncs are in flight: they run on kernel workers that may need this CPU.
//! - A thread that always has work yields its CPU now and then, to its node's other processes; the thread neither yields nor
//!   spins beside a thread that computes on this CPU, for whose whole slice it would wait (`yields`).
//! - Nothing is caught here: a peer that panics ends the thread, and so does an io_uring that fails for good, by a panic with
//!   a [`RingFailure`]. The host of the peer decides what else ends then.

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

/// Token of the handles' doorbell.
const TOKEN_DOORBELL: u64 = 0;

/// A loop on the thread that made it.
pub struct Reactor {
    config: Config,
    clock: Arc<dyn Clock>,
    handle: Handle,
    doorbell: Source,
    _doorbell_watch: Watch,
    /// Last: sources go first.
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

    /// A way to this reactor for other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// A new source, for a peer or a part of one. It is dropped before the reactor.
    #[must_use]
    pub fn source(&self) -> Source {
        Source::new(&self.ring)
    }

    /// The reactor's clock.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// Polls `peer` until a handle asks for the end. What is in flight then is waited for when the reactor is dropped.
    ///
    /// # Panics
    /// With a [`RingFailure`], if the kernel refuses to serve the ring.
    pub fn run(&mut self, peer: &mut impl Peer) {
        let mut waiting: Option<Wait> = None;
        let mut polling = Polling::new(self.config.poll);
        let mut yields = Yields::default();
        let clock = Arc::clone(&self.clock);
        let yield_cpu = || {
            // It cannot fail on Linux.
            let _ = sched_yield();
        };
        while !self.handle.is_stopping() {
            // What many or large requests push may wait for the sleep that follows, or for the next requests: one call into the
            // kernel less. Few and small ones are waited for.
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

    /// What was pushed goes to the kernel, and what the kernel has finished is at its source. For who polls by itself.
    pub fn turn(&mut self) -> Progress {
        self.ring.borrow_mut().submit_pending();
        self.collect()
    }

    /// Sleeps until something happens, at most for `longest`. For who polls by itself.
    pub fn sleep(&mut self, longest: Duration) {
        self.ring.borrow_mut().wait(longest);
    }

    /// What the kernel has finished is at its source. Busy if there was anything, or another thread has called.
    fn collect(&mut self) -> Progress {
        let any = self.ring.borrow_mut().collect();
        while self.doorbell.next().is_some() {
            self.handle.answer_doorbell();
        }
        if any { Progress::Busy } else { Progress::Idle }
    }

    /// Sleeps as [`Reactor::sleep`], unless `peer` has work.
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
