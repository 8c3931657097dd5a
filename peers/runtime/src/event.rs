//! Completions of requests, and the queues in which they wait for the source that sent the request.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

/// The completion of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The request's token.
    pub token: u64,
    /// What the system call would have returned: a count (for watches the poll mask), or a negative errno.
    pub result: i32,
}

impl Event {
    /// The count, or the error.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn outcome(&self) -> io::Result<u32> {
        u32::try_from(self.result).map_err(|_negative| io::Error::from_raw_os_error(-self.result))
    }
}

/// Events that wait to be collected, each with the mark of its watch.
pub(crate) type Queue = Rc<RefCell<VecDeque<(Event, Option<Rc<Cell<bool>>>)>>>;
