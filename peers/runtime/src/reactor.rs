//! The loop: poll all peers; when none has work, poll again for a while if that pays (`polling`); then sleep in the kernel.
//!
//! Invariants
//! - No sleep while a peer has work: each peer announces its sleep first, and any that refuses keeps all awake.
//! - What peers push is in the kernel before the thread sleeps or polls, at most one round later while it has work.
//! - No spinning while only syncs are in flight: they run on kernel workers that may need this CPU.
//! - A thread that always has work yields its CPU now and then, to its node's other processes; nobody yields or spins
//!   beside somebody who computes on this CPU, whose whole slice he would wait for (`yields`).
//! - A peer that panics is dropped and reported; the others go on. An io_uring that fails for good ends the thread, by a
//!   panic with a [`RingFailure`].

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity, sched_yield};
use nix::unistd::Pid;

use crate::clock::Clock;
use crate::config::Config;
use crate::failure::RingFailure;
use crate::handle::{Handle, Inbox};
use crate::peer::{Peer, Progress};
use crate::polling::{Activity, Polling, Wait};
use crate::ring::Ring;
use crate::source::{Source, Watch};
use crate::yields::Yields;

/// Number of a peer in its reactor. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u64);

/// A peer that panicked, or a call from a handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    /// The peer; `None`: a call.
    pub peer: Option<PeerId>,
    /// What it was called.
    pub name: String,
    /// What it said.
    pub message: String,
}

/// Told about each panic, on the reactor's thread.
pub type PanicHook = Box<dyn FnMut(&Panicked) + Send>;

/// Calls from handles that are run before the peers have their turn again.
const CALLS_PER_TURN: usize = 64;
/// Token of the handles' bell.
const TOKEN_BELL: u64 = 0;

struct Hosted {
    id: PeerId,
    peer: Box<dyn Peer>,
}

/// A loop on the thread that made it.
pub struct Reactor {
    config: Config,
    clock: Arc<dyn Clock>,
    hook: PanicHook,
    inbox: Inbox,
    peers: Vec<Hosted>,
    next_peer: u64,
    bell_source: Source,
    _bell: Watch,
    /// Last: peers and sources go first.
    ring: Rc<RefCell<Ring>>,
}

impl Reactor {
    /// A reactor on this thread; [`Config::cpu`] does not apply.
    ///
    /// # Errors
    /// What the kernel says to `io_uring_setup` or `eventfd`.
    pub fn new(
        config: Config,
        clock: Arc<dyn Clock>,
        hook: PanicHook,
    ) -> Result<Reactor, RingFailure> {
        let ring = Rc::new(RefCell::new(Ring::new(&config)?));
        let inbox = Handle::open().map_err(|error| RingFailure::new("eventfd", error))?;
        let bell_source = Source::new(&ring);
        let bell = bell_source
            .poll_readable(inbox.handle.bell(), TOKEN_BELL)
            .map_err(|error| RingFailure::new("dup", error))?;
        Ok(Reactor {
            config,
            clock,
            hook,
            inbox,
            peers: Vec::new(),
            next_peer: 1,
            bell_source,
            _bell: bell,
            ring,
        })
    }

    /// A reactor on a thread of its own, pinned as `config` says.
    ///
    /// # Errors
    /// What the kernel says to a new thread, its pinning, `io_uring_setup` or `eventfd`.
    pub fn spawn(
        config: Config,
        clock: Arc<dyn Clock>,
        hook: PanicHook,
    ) -> io::Result<(Handle, JoinHandle<()>)> {
        let (sender, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(config.name.clone());
        let joined = thread.spawn(move || {
            let reactor = config
                .cpu
                .map_or(Ok(()), pin)
                .and_then(|()| Ok(Reactor::new(config, clock, hook)?));
            match reactor {
                Ok(mut reactor) => {
                    let _ = sender.send(Ok(reactor.handle()));
                    reactor.run();
                }
                Err(error) => {
                    let _ = sender.send(Err(error));
                }
            }
        })?;
        let handle = started
            .recv()
            .map_err(|_gone| io::Error::other("the reactor's thread ended at once"))??;
        Ok((handle, joined))
    }

    /// A way to this reactor for other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.inbox.handle.clone()
    }

    /// What a call from a handle would get.
    pub fn context(&mut self) -> Context<'_> {
        Context { reactor: self }
    }

    /// Runs until a handle asks for the end, then drops the peers and waits for what is in flight.
    ///
    /// # Panics
    /// With a [`RingFailure`], if the kernel refuses to serve the ring.
    pub fn run(&mut self) {
        let handle = self.handle();
        let mut waiting: Option<Wait> = None;
        let mut polling = Polling::new(self.config.poll);
        let mut yields = Yields::default();
        let clock = Arc::clone(&self.clock);
        let yield_cpu = || {
            // It cannot fail on Linux.
            let _ = sched_yield();
        };
        while !handle.is_stopping() {
            // What many or large requests push may wait for the sleep that follows, or for the next requests: one call into the
            // kernel less. Few and small ones are waited for.
            let gathers = polling.is_certain_to_sleep();
            let older = self.ring.borrow_mut().has_pending();
            if older && !gathers {
                self.ring.borrow_mut().submit();
            }
            let progress = self.round();
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
            self.sleep(self.config.sleep_max);
            yields.slept(now, &*clock, yield_cpu);
        }
        self.peers.clear();
    }

    /// One round, and what was pushed before goes to the kernel.
    pub fn turn(&mut self) -> Progress {
        self.ring.borrow_mut().submit_pending();
        self.round()
    }

    /// What the kernel has finished, calls from handles, each peer once.
    fn round(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        if self.ring.borrow_mut().collect() {
            progress = Progress::Busy;
        }
        progress = progress.or(self.run_calls());
        let mut index = 0;
        while index < self.peers.len() {
            let hosted = &mut self.peers[index];
            match catch_unwind(AssertUnwindSafe(|| hosted.peer.poll())) {
                Ok(did) => {
                    progress = progress.or(did);
                    index += 1;
                }
                Err(payload) => self.contain(index, payload.as_ref()),
            }
        }
        progress
    }

    /// Sleeps until something happens, at most for `longest`; not at all if a peer has work.
    pub fn sleep(&mut self, longest: Duration) {
        let mut quiet = true;
        let mut index = 0;
        while index < self.peers.len() {
            let hosted = &mut self.peers[index];
            match catch_unwind(AssertUnwindSafe(|| hosted.peer.prepare_sleep())) {
                Ok(ready) => {
                    quiet &= ready;
                    index += 1;
                }
                Err(payload) => {
                    quiet = false;
                    self.contain(index, payload.as_ref());
                }
            }
        }
        if quiet {
            self.ring.borrow_mut().wait(longest);
        } else {
            self.ring.borrow_mut().submit_pending();
        }
        let mut index = 0;
        while index < self.peers.len() {
            let hosted = &mut self.peers[index];
            match catch_unwind(AssertUnwindSafe(|| hosted.peer.wake())) {
                Ok(()) => index += 1,
                Err(payload) => self.contain(index, payload.as_ref()),
            }
        }
    }

    fn activity(&self) -> Activity {
        self.ring.borrow_mut().activity()
    }

    fn may_spin(&self) -> bool {
        !self.ring.borrow().load().is_syncs_only()
    }

    fn run_calls(&mut self) -> Progress {
        while self.bell_source.next().is_some() {
            // Only to reset the counter, so that the bell can be rung for ever.
            let _ = self.inbox.handle.bell().read();
        }
        let mut progress = Progress::Idle;
        for _ in 0..CALLS_PER_TURN {
            let Ok(call) = self.inbox.calls.try_recv() else {
                break;
            };
            progress = Progress::Busy;
            let mut context = Context { reactor: self };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| call(&mut context))) {
                self.report(None, "call".to_owned(), payload.as_ref());
            }
        }
        progress
    }

    fn contain(&mut self, index: usize, payload: &(dyn Any + Send)) {
        let hosted = self.peers.remove(index);
        let name = catch_unwind(AssertUnwindSafe(|| hosted.peer.name().to_owned()));
        let id = hosted.id;
        let _ = catch_unwind(AssertUnwindSafe(|| drop(hosted)));
        self.report(Some(id), name.unwrap_or_default(), payload);
    }

    fn report(&mut self, peer: Option<PeerId>, name: String, payload: &(dyn Any + Send)) {
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned());
        let message = text
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .or_else(|| {
                let failure = payload.downcast_ref::<RingFailure>()?;
                Some(format!("{failure}: {}", failure.cause()))
            })
            .unwrap_or_else(|| "no message".to_owned());
        tracing::error!(peer = name, message, "panic contained");
        (self.hook)(&Panicked {
            peer,
            name,
            message,
        });
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("config", &self.config)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

/// What can be done on a reactor's own thread.
pub struct Context<'a> {
    reactor: &'a mut Reactor,
}

impl Context<'_> {
    /// A new source for one peer.
    #[must_use]
    pub fn source(&self) -> Source {
        Source::new(&self.reactor.ring)
    }

    /// Hosts `peer` from the next round on.
    pub fn add_peer(&mut self, peer: Box<dyn Peer>) -> PeerId {
        let id = PeerId(self.reactor.next_peer);
        self.reactor.next_peer += 1;
        self.reactor.peers.push(Hosted { id, peer });
        id
    }

    /// Takes a peer back; `None`: it is not there, or has panicked.
    pub fn remove_peer(&mut self, id: PeerId) -> Option<Box<dyn Peer>> {
        let peers = &mut self.reactor.peers;
        let index = peers.iter().position(|hosted| hosted.id == id)?;
        Some(peers.remove(index).peer)
    }

    /// The reactor's clock.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.reactor.clock)
    }

    /// A way to this reactor for other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.reactor.handle()
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

#[cfg(test)]
mod tests;
