//! Changes that are throttled: too much is not logged, so they wait until something was.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::waiting::WaitingRequest;

/// The throttled changes of a volume, in order.
#[derive(Debug, Default)]
pub(crate) struct ThrottledChanges {
    waiting: RefCell<VecDeque<WaitingRequest>>,
    /// Something is being logged for them.
    relieving: Cell<bool>,
}

impl ThrottledChanges {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Adds a change; whether the caller has to start the relief.
    pub(crate) fn push(&self, request: WaitingRequest) -> bool {
        self.waiting.borrow_mut().push_back(request);
        !self.relieving.replace(true)
    }

    /// The relief has ended.
    pub(crate) fn relieved(&self) {
        self.relieving.set(false);
    }

    /// All of them, to be tried again or refused.
    pub(crate) fn take(&self) -> VecDeque<WaitingRequest> {
        self.waiting.take()
    }
}
