//! What a session has to write before it may write, and the requests that wait for a try.

use std::cell::{Cell, RefCell};

use super::waiting::WaitingRequest;
use crate::head::VolumeHead;

/// What has to be written before a session may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// The log, and this first head.
    First(VolumeHead),
    /// The tree's pages that are not stored, and this head: it gets their root.
    Next(VolumeHead),
    /// What a client that disconnected had reported: the head is this process's own.
    Left,
}

/// How far the beginning of a session is.
#[derive(Debug, Default)]
pub(crate) struct WriteStart {
    due: Cell<Option<Due>>,
    waiting: RefCell<Vec<WaitingRequest>>,
}

impl WriteStart {
    /// What is due; `None`: the session has begun.
    pub(crate) fn due(&self) -> Option<Due> {
        self.due.get()
    }

    pub(crate) fn set_due(&self, due: Due) {
        self.due.set(Some(due));
    }

    /// A client disconnected: another session begins, unless something else is due anyway.
    pub(crate) fn set_left(&self) {
        self.due.set(Some(self.due.get().unwrap_or(Due::Left)));
    }

    pub(crate) fn done(&self) {
        self.due.set(None);
    }

    /// Whether the head and what it leads to are still those of the session before.
    pub(crate) fn is_before_head(&self) -> bool {
        matches!(self.due.get(), Some(Due::First(_) | Due::Next(_)))
    }

    /// Adds a request that waits for a try; whether it is the first one.
    pub(crate) fn wait(&self, request: WaitingRequest) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push(request);
        waiting.len() == 1
    }

    /// The requests that wait, for the result of a try.
    pub(crate) fn take_waiting(&self) -> Vec<WaitingRequest> {
        self.waiting.take()
    }
}
