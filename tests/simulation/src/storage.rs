//! The backend of a node, as its blocker sees it: what is started waits until the simulation answers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use archipelago_blocker::Backend;
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::object::{ObjectReply, ObjectRequest};
use xseg::Span;

/// A call of a blocker.
#[derive(Debug)]
pub(crate) struct BackendCall {
    /// The blocker's.
    pub(crate) ticket: u64,
    pub(crate) request: ObjectRequest,
    /// The memory that the request names.
    pub(crate) memory: Vec<Span>,
}

#[derive(Debug, Default)]
struct Calls {
    started: Vec<BackendCall>,
    replies: VecDeque<(u64, ObjectReply)>,
}

/// A backend that the simulation stands behind. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    capabilities: Capabilities,
    calls: Rc<RefCell<Calls>>,
}

impl Storage {
    /// One that does by itself what `capabilities` say.
    pub(crate) fn new(capabilities: Capabilities) -> Self {
        Storage {
            capabilities,
            calls: Rc::default(),
        }
    }

    /// The calls that were started since this was asked before, in their order.
    pub(crate) fn take_started(&self) -> Vec<BackendCall> {
        std::mem::take(&mut self.calls.borrow_mut().started)
    }

    /// Answers a call.
    pub(crate) fn reply(&self, ticket: u64, reply: ObjectReply) {
        self.calls.borrow_mut().replies.push_back((ticket, reply));
    }
}

impl Backend for Storage {
    fn name(&self) -> &str {
        "simulated"
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        self.calls.borrow_mut().started.push(BackendCall {
            ticket,
            request: *request,
            memory: memory.to_vec(),
        });
    }

    fn poll(&mut self) -> Option<(u64, ObjectReply)> {
        self.calls.borrow_mut().replies.pop_front()
    }
}
