//! Throttled changes: too much dirty metadata is not logged yet, so these changes wait for the next log append.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::waiting::WaitingRequest;

/// The throttled changes of a volume, in order.
#[derive(Debug, Default)]
pub(crate) struct ThrottledChanges {
    waiting: RefCell<VecDeque<WaitingRequest>>,
    /// A log append that makes room is running.
    appending: Cell<bool>,
}

impl ThrottledChanges {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Adds a change; whether the caller has to start the log append that makes room.
    pub(crate) fn push(&self, request: WaitingRequest) -> bool {
        self.waiting.borrow_mut().push_back(request);
        !self.appending.replace(true)
    }

    /// The append that makes room has ended.
    pub(crate) fn append_ended(&self) {
        self.appending.set(false);
    }

    /// All of them, to be tried again or refused.
    pub(crate) fn take(&self) -> VecDeque<WaitingRequest> {
        self.waiting.take()
    }
}
