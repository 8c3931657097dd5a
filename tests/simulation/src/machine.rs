//! One run of the machine: the peers, the backend, and the tasks that use them, interleaved by a seed.
//!
//! Invariants
//! - Only [`Machine::step`] lets a backend call complete, and the seed says which: every order is possible.
//! - Each call that is started is a crash point: a clone of all that survives the processes, taken while it is in flight.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use archipelago_doubles::MemoryJournals;
use archipelago_doubles::simulated::{Random, SimulatedBackend};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::object::ObjectId;

use crate::journal;
use crate::memory::MemoryPool;
use crate::node::Node;
use crate::oracle::Oracle;
use crate::trouble::Trouble;
use crate::wiring::Wiring;

/// All that survives the processes, at one moment, and what may be read of it.
#[derive(Debug, Clone)]
pub struct CrashPoint {
    /// The pool, with a call in flight.
    pub backend: SimulatedBackend,
    /// What survives only a kill.
    pub journals: MemoryJournals,
    /// What may be read.
    pub oracle: Oracle,
    /// Blocks that may be given out as fresh although they hold data: written, zeroed and closed cleanly.
    pub firsts: BTreeSet<(ObjectId, u64)>,
    /// A sync has failed, and the mapper was not told: the journals may speak for what is lost.
    pub doubtful: bool,
    /// Mappers that were started: each has a number of its own.
    pub starts: u128,
}

impl CrashPoint {
    /// An empty pool.
    #[must_use]
    pub fn empty(backend: SimulatedBackend) -> Self {
        CrashPoint {
            backend,
            journals: journal::journals(),
            oracle: Oracle::default(),
            firsts: BTreeSet::new(),
            doubtful: false,
            starts: 0,
        }
    }
}

type Task = Pin<Box<dyn Future<Output = Result<(), Trouble>>>>;

/// What a task does its requests with: a node.
#[derive(Debug, Clone)]
pub struct Link {
    wiring: Rc<RefCell<Wiring>>,
    node: usize,
}

impl Link {
    /// Looks at, or changes, what is shared.
    pub fn with<T>(&self, look: impl FnOnce(&mut Wiring) -> T) -> T {
        look(&mut self.wiring.borrow_mut())
    }

    /// Looks at, or changes, the node.
    pub fn node<T>(&self, look: impl FnOnce(&mut Node) -> T) -> T {
        look(self.wiring.borrow_mut().node(self.node))
    }

    /// Waits until `take` gives something.
    pub async fn wait<T>(&self, take: impl Fn(&mut Node) -> Option<T>) -> T {
        poll_fn(|_context| self.node(&take).map_or(Poll::Pending, Poll::Ready)).await
    }

    /// A piece of guest memory, as soon as there is one.
    pub async fn take_area(&self) -> usize {
        let take = || self.with(Wiring::take_area);
        poll_fn(|_context| take().map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Asks the mapper about names.
    pub async fn catalogue(&self, request: CatalogueRequest) -> CatalogueReply {
        let tag = self.node(|node| node.ask_catalogue(request));
        self.wait(|node| node.take_catalogue(tag)).await
    }
}

/// The peers over a backend, and tasks.
pub struct Machine {
    link: Link,
    tasks: Vec<Task>,
    random: Random,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("tasks", &self.tasks.len())
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Starts the processes on what `point` left.
    #[must_use]
    pub fn start(point: CrashPoint, memory: &MemoryPool, seed: u64) -> Self {
        let wiring = Wiring::start(point, memory);
        let link = Link {
            wiring: Rc::new(RefCell::new(wiring)),
            node: 0,
        };
        Machine {
            link,
            tasks: Vec::new(),
            random: Random::new(seed),
        }
    }

    /// For tasks.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// The node that has the pool is fenced.
    pub fn fence(&mut self) {
        let random = &mut self.random;
        self.link.with(|wiring| wiring.fence(random));
    }

    /// Another node takes the pool: what its tasks use. The tasks of the one that had it are forgotten.
    pub fn hand_over(&mut self) -> Link {
        self.tasks.clear();
        self.link.with(Wiring::hand_over);
        self.link.node += 1;
        self.link.clone()
    }

    /// Adds a task.
    pub fn spawn(&mut self, task: impl Future<Output = Result<(), Trouble>> + 'static) {
        self.tasks.push(Box::pin(task));
    }

    /// Tasks that have not ended.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.tasks.len()
    }

    /// Runs everything that can run without the backend.
    ///
    /// # Errors
    /// What a task found wrong.
    pub fn quiet(&mut self) -> Result<(), Trouble> {
        loop {
            let before = self.tasks.len();
            self.poll_tasks()?;
            let moved = self.link.with(Wiring::run)?;
            if !moved && before == self.tasks.len() {
                return Ok(());
            }
        }
    }

    /// Runs everything that can run, then lets one backend call complete. `false`: nothing is left to do.
    ///
    /// # Errors
    /// What a task found wrong, or that it waits for nothing.
    pub fn step(&mut self) -> Result<bool, Trouble> {
        self.quiet()?;
        let in_flight = self.link.with(|wiring| wiring.backend.in_flight());
        if in_flight == 0 {
            return if self.tasks.is_empty() {
                Ok(false)
            } else {
                Err(Trouble::Wrong("a task waits for nothing".to_owned()))
            };
        }
        let index = self.random.below(in_flight as u64);
        self.link
            .with(|wiring| wiring.complete(usize::try_from(index).expect("an index")));
        Ok(true)
    }

    /// Runs until nothing is left to do.
    ///
    /// # Errors
    /// What a task found wrong.
    pub fn finish(&mut self) -> Result<(), Trouble> {
        while self.step()? {}
        Ok(())
    }

    /// Crash points since they were last taken.
    pub fn take_points(&mut self) -> Vec<CrashPoint> {
        self.link.with(|wiring| {
            wiring
                .points
                .as_mut()
                .map(std::mem::take)
                .unwrap_or_default()
        })
    }

    fn poll_tasks(&mut self) -> Result<(), Trouble> {
        let mut context = Context::from_waker(Waker::noop());
        let mut failed = Ok(());
        self.tasks
            .retain_mut(|task| match task.as_mut().poll(&mut context) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    let excused = matches!(result, Err(Trouble::Refused(..)))
                        && self.link.with(|wiring| wiring.tolerant);
                    if excused {
                        self.link.with(|wiring| wiring.upset = true);
                    } else {
                        failed = std::mem::replace(&mut failed, Ok(())).and(result);
                    }
                    false
                }
            });
        failed
    }
}
