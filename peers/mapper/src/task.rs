//! The mapper's longer work as futures, polled by hand: no thread, no clock, no wakers, always in the same order.
//!
//! Invariants
//! - A task runs only inside [`Tasks::run`], one at a time. Every wait is for a reply or a lock, and checks its
//!   condition again when polled: waking too often is harmless.
//! - Nothing is borrowed from a `RefCell` across an await.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What tasks share with those who wake them.
#[derive(Default)]
pub(crate) struct Scheduler {
    current: Cell<u64>,
    next: Cell<u64>,
    ready: RefCell<VecDeque<u64>>,
    spawned: RefCell<Vec<(u64, Task)>>,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler")
            .field("next", &self.next.get())
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Adds a task; it runs in the next [`Tasks::run`].
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let id = self.next.get();
        self.next.set(id + 1);
        self.spawned.borrow_mut().push((id, Box::pin(task)));
    }

    /// The task that is being polled.
    pub(crate) fn current(&self) -> u64 {
        self.current.get()
    }

    pub(crate) fn wake(&self, task: u64) {
        self.ready.borrow_mut().push_back(task);
    }
}

/// The tasks that are not finished.
#[derive(Default)]
pub(crate) struct Tasks {
    waiting: BTreeMap<u64, Task>,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("waiting", &self.waiting.len())
            .finish()
    }
}

impl Tasks {
    /// Runs until every task waits for a reply.
    pub(crate) fn run(&mut self, scheduler: &Scheduler) {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            for (id, task) in scheduler.spawned.take() {
                self.waiting.insert(id, task);
                scheduler.wake(id);
            }
            let Some(id) = scheduler.ready.borrow_mut().pop_front() else {
                return;
            };
            // Woken twice, or finished meanwhile.
            let Some(mut task) = self.waiting.remove(&id) else {
                continue;
            };
            scheduler.current.set(id);
            if task.as_mut().poll(&mut context).is_pending() {
                self.waiting.insert(id, task);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// Mutual exclusion between tasks, across awaits.
#[derive(Debug, Clone)]
pub(crate) struct Lock {
    state: Rc<LockState>,
}

#[derive(Debug)]
struct LockState {
    scheduler: Rc<Scheduler>,
    held: Cell<bool>,
    waiting: RefCell<Vec<u64>>,
}

/// Holds a [`Lock`] until dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    state: Rc<LockState>,
}

impl Lock {
    pub(crate) fn new(scheduler: &Rc<Scheduler>) -> Self {
        let state = LockState {
            scheduler: Rc::clone(scheduler),
            held: Cell::new(false),
            waiting: RefCell::default(),
        };
        Lock {
            state: Rc::new(state),
        }
    }

    /// Waits until nobody else holds it.
    pub(crate) async fn acquire(&self) -> Guard {
        poll_fn(|_context| {
            if self.state.held.replace(true) {
                let task = self.state.scheduler.current();
                self.state.waiting.borrow_mut().push(task);
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        Guard {
            state: Rc::clone(&self.state),
        }
    }

    /// Whether nobody but the caller knows of it.
    pub(crate) fn is_unused(&self) -> bool {
        Rc::strong_count(&self.state) == 1
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.state.held.set(false);
        // All of them: each checks again, in the order in which they came.
        for task in self.state.waiting.take() {
            self.state.scheduler.wake(task);
        }
    }
}
