//! Requests that take several calls: a future each, polled when one of its calls ends.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply};

use crate::calls::{Calls, Purpose, TaskId};

type Future = Pin<Box<dyn std::future::Future<Output = ObjectReply>>>;

struct Task {
    of: TaskOf,
    future: Future,
}

/// The request that a task answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskOf {
    pub(crate) ticket: u64,
    pub(crate) op: ObjectOp,
    pub(crate) id: ObjectId,
    /// Bytes for which it was admitted.
    pub(crate) admitted: u32,
}

/// The tasks under way.
#[derive(Default)]
pub(crate) struct Tasks {
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("under_way", &(self.tasks.len() - self.free.len()))
            .finish_non_exhaustive()
    }
}

impl Tasks {
    /// Starts a task; returns its reply, if it ends at once.
    pub(crate) fn start(
        &mut self,
        calls: &Calls,
        of: TaskOf,
        future: impl std::future::Future<Output = ObjectReply> + 'static,
    ) -> Option<(TaskOf, ObjectReply)> {
        let task = Task {
            of,
            future: Box::pin(future),
        };
        let index = self.free.pop().unwrap_or(self.tasks.len());
        match self.tasks.get_mut(index) {
            Some(slot) => *slot = Some(task),
            None => self.tasks.push(Some(task)),
        }
        self.go_on(calls, TaskId(index))
    }

    /// Continues a task, one of whose calls has ended; returns its reply, if it ends.
    pub(crate) fn go_on(&mut self, calls: &Calls, id: TaskId) -> Option<(TaskOf, ObjectReply)> {
        let task = self.tasks.get_mut(id.0)?.as_mut()?;
        let of = task.of;
        let purpose = Purpose {
            task: id,
            op: of.op,
            id: of.id,
        };
        let future = &mut task.future;
        let mut context = Context::from_waker(Waker::noop());
        let polled = calls.within(purpose, || future.as_mut().poll(&mut context));
        let Poll::Ready(reply) = polled else {
            return None;
        };
        self.tasks[id.0] = None;
        self.free.push(id.0);
        Some((of, reply))
    }
}
