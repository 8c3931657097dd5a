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

/// A [`Lock`] for each key that somebody works on.
#[derive(Debug)]
pub(crate) struct Locks<K> {
    scheduler: Rc<Scheduler>,
    by_key: RefCell<BTreeMap<K, Lock>>,
}

impl<K: Ord> Locks<K> {
    pub(crate) fn new(scheduler: &Rc<Scheduler>) -> Self {
        Locks {
            scheduler: Rc::clone(scheduler),
            by_key: RefCell::default(),
        }
    }

    /// Waits until nobody else holds the lock of `key`.
    pub(crate) async fn lock(&self, key: K) -> Guard {
        let lock = {
            let mut locks = self.by_key.borrow_mut();
            locks.retain(|_, lock| !lock.is_unused());
            locks
                .entry(key)
                .or_insert_with(|| Lock::new(&self.scheduler))
                .clone()
        };
        lock.acquire().await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll(future: Pin<&mut impl Future<Output = Guard>>) -> Option<Guard> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_lock_is_there_as_long_as_somebody_holds_it_or_waits() {
        let locks = Locks::new(&Rc::new(Scheduler::default()));
        let mut first = pin!(locks.lock(1));
        let held = poll(first.as_mut());
        assert!(held.is_some());
        let mut waiting = pin!(locks.lock(1));
        assert!(poll(waiting.as_mut()).is_none());
        assert!(poll(pin!(locks.lock(2))).is_some(), "another one");
        drop(held);
        assert!(poll(waiting.as_mut()).is_some());
        // What nobody knows any more goes with the next one that is made.
        assert!(poll(pin!(locks.lock(3))).is_some());
        let known: Vec<i32> = locks.by_key.borrow().keys().copied().collect();
        assert_eq!(known, [3]);
    }
}
