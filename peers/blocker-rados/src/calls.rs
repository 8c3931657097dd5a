//! Calls on the cluster under way: what waits for each, and since when.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use archipelago_protocol::control::Wait;
use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp};
use librados_sys::{Cluster, Completed, Completions, Pool, ReadOp, WriteOp};
use xseg::Span;

use crate::known::Known;
use crate::names::ObjectName;
use crate::open::Opened;

/// A call that has not returned for so long is reported.
const WAIT_SECONDS_MIN: u64 = 1;
/// Most calls that are reported: the oldest.
const WAITS_MAX: usize = 16;

/// Number of a task, used again after its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskId(pub(crate) usize);

/// A read or write under way.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) ticket: u64,
    pub(crate) op: ObjectOp,
    pub(crate) len: u32,
    /// The spans for the bytes of a read, if there are several.
    pub(crate) scattered: Vec<Span>,
}

/// What waits for a call.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// A read or write of one call.
    Transfer(Transfer),
    /// A task, which finds the completion there.
    Task(TaskId, Rc<RefCell<Option<Completed>>>),
}

#[derive(Debug)]
struct Entry {
    waiter: Waiter,
    id: ObjectId,
    op: ObjectOp,
    since: u64,
}

/// The purpose of the calls of a task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose {
    pub(crate) task: TaskId,
    pub(crate) op: ObjectOp,
    pub(crate) id: ObjectId,
}

/// The pools, and calls on them.
pub(crate) struct Calls {
    cluster: Cluster,
    /// Heads, logs, packs, indexes.
    pub(crate) metadata: Pool,
    /// Data of volumes.
    pub(crate) data: Pool,
    pub(crate) known: RefCell<Known>,
    completions: RefCell<Completions>,
    entries: RefCell<Entries>,
    /// The purpose of the task that is being polled.
    purpose: Cell<Option<Purpose>>,
    seconds: Cell<u64>,
    pool_name: String,
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls")
            .field("pool", &self.pool_name)
            .finish_non_exhaustive()
    }
}

/// Calls by their tokens at librados.
#[derive(Debug, Default)]
struct Entries {
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
}

impl Entries {
    fn insert(&mut self, entry: Entry) -> u64 {
        let index = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(index) {
            Some(slot) => *slot = Some(entry),
            None => self.slots.push(Some(entry)),
        }
        index as u64
    }

    fn remove(&mut self, token: u64) -> Option<Entry> {
        let index = usize::try_from(token).ok()?;
        let entry = self.slots.get_mut(index)?.take()?;
        self.free.push(index);
        Some(entry)
    }
}

/// The completion of a call that a task awaits.
#[derive(Debug)]
pub(crate) struct Call(Rc<RefCell<Option<Completed>>>);

impl Future for Call {
    type Output = Completed;

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Completed> {
        match self.0.borrow_mut().take() {
            Some(completed) => Poll::Ready(completed),
            None => Poll::Pending,
        }
    }
}

impl Calls {
    /// Calls on an open pool.
    pub(crate) fn new(opened: Opened, pool_name: String) -> Self {
        Calls {
            cluster: opened.cluster,
            metadata: opened.metadata,
            data: opened.data,
            known: RefCell::default(),
            completions: RefCell::new(opened.completions),
            entries: RefCell::default(),
            purpose: Cell::new(None),
            seconds: Cell::new(0),
            pool_name,
        }
    }

    /// Has `body` use the connection if nothing is under way; otherwise does nothing.
    pub(crate) fn at_end(&self, body: impl FnOnce(&Cluster, &Pool, &mut Completions)) {
        let mut completions = self.completions.borrow_mut();
        if completions.in_flight() == 0 {
            body(&self.cluster, &self.metadata, &mut completions);
        }
    }

    /// The pool of objects of the kind of `id`.
    pub(crate) fn pool_of(&self, id: ObjectId) -> &Pool {
        match id.kind {
            ObjectKind::Data => &self.data,
            _ => &self.metadata,
        }
    }

    /// Runs `body`, whose calls are for a task with this purpose.
    pub(crate) fn within<T>(&self, purpose: Purpose, body: impl FnOnce() -> T) -> T {
        let before = self.purpose.replace(Some(purpose));
        let result = body();
        self.purpose.set(before);
        result
    }

    /// Starts a change of an object of the metadata pool, for the running task.
    pub(crate) fn change(&self, name: &ObjectName, op: WriteOp) -> Call {
        self.change_in(&self.metadata, name, op)
    }

    /// Starts a change of an object of `pool`.
    pub(crate) fn change_in(&self, pool: &Pool, name: &ObjectName, op: WriteOp) -> Call {
        self.start(|completions, token| pool.operate(completions, token, name.as_c_str(), op))
    }

    /// Starts a read of an object of the metadata pool, for the running task.
    pub(crate) fn look(&self, name: &ObjectName, op: ReadOp) -> Call {
        self.look_in(&self.metadata, name, op)
    }

    /// Starts a read of an object of `pool`.
    pub(crate) fn look_in(&self, pool: &Pool, name: &ObjectName, op: ReadOp) -> Call {
        self.start(|completions, token| pool.query(completions, token, name.as_c_str(), op))
    }

    fn start(&self, start: impl FnOnce(&mut Completions, u64)) -> Call {
        let purpose = self
            .purpose
            .get()
            .expect("calls of tasks are made by tasks");
        let end = Rc::new(RefCell::new(None));
        let token = self.entries.borrow_mut().insert(Entry {
            waiter: Waiter::Task(purpose.task, Rc::clone(&end)),
            id: purpose.id,
            op: purpose.op,
            since: self.seconds.get(),
        });
        start(&mut self.completions.borrow_mut(), token);
        Call(end)
    }

    /// Starts the one call of a transfer.
    pub(crate) fn transfer(
        &self,
        transfer: Transfer,
        id: ObjectId,
        op: ObjectOp,
        start: impl FnOnce(&mut Completions, u64),
    ) {
        let token = self.entries.borrow_mut().insert(Entry {
            waiter: Waiter::Transfer(transfer),
            id,
            op,
            since: self.seconds.get(),
        });
        start(&mut self.completions.borrow_mut(), token);
    }

    /// The next call that has ended.
    pub(crate) fn next(&self) -> Option<(Waiter, Completed)> {
        loop {
            let completed = self.completions.borrow_mut().poll()?;
            let entry = self.entries.borrow_mut().remove(completed.token);
            if let Some(entry) = entry {
                return Some((entry.waiter, completed));
            }
        }
    }

    /// Resets the doorbell, whose signal has been handled.
    pub(crate) fn silence(&self) {
        // The read fails if another descriptor has woken the thread.
        let _counted = self.completions.borrow().doorbell().read();
    }

    /// Sets the monotonic time.
    pub(crate) fn look_at(&self, now: Duration) {
        self.seconds.set(now.as_secs());
    }

    /// Calls that have not returned, the oldest first.
    pub(crate) fn waits(&self) -> Vec<Wait> {
        let now = self.seconds.get();
        let entries = self.entries.borrow();
        let mut waits: Vec<Wait> = entries
            .slots
            .iter()
            .flatten()
            .map(|entry| (entry, now.saturating_sub(entry.since)))
            .filter(|(_, seconds)| *seconds >= WAIT_SECONDS_MIN)
            .map(|(entry, seconds)| Wait {
                lineage: entry.id.lineage,
                what: format!(
                    "{:?} of {} in the RADOS pool `{}`",
                    entry.op,
                    // The beginning of its RADOS objects' names.
                    ObjectName::whole(entry.id),
                    self.pool_name
                ),
                seconds,
            })
            .collect();
        waits.sort_by_key(|wait| std::cmp::Reverse(wait.seconds));
        waits.truncate(WAITS_MAX);
        waits
    }
}
