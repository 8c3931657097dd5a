//! A server's port that services its own socket.
//!
//! A shared channel has a socket beside its rings: regions are added and removed over it, and its end is the client's death. The peer
//! behind the port knows only [`ServerPort`]; so the port itself reads its socket, in [`ServerPort::accept`], whenever the loop signals
//! that something may have come.

use std::cell::Cell;
use std::rc::Rc;

use xseg::{Completion, RegionTable, Server, ServerPort, Submission};

/// Signals to all ports of a thread that something may have come over a socket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attention {
    count: Rc<Cell<u64>>,
}

impl Attention {
    /// Makes every port read its socket once.
    pub(crate) fn call(&self) {
        self.count.set(self.count.get().wrapping_add(1));
    }
}

/// A server's port, and the last signal of the loop that it has handled.
#[derive(Debug)]
pub(crate) struct HostedServer {
    port: Server,
    attention: Attention,
    seen: u64,
}

impl HostedServer {
    pub(crate) fn new(port: Server, attention: &Attention) -> HostedServer {
        HostedServer {
            port,
            seen: attention.count.get().wrapping_sub(1),
            attention: attention.clone(),
        }
    }
}

impl ServerPort for HostedServer {
    fn accept(&mut self) -> Option<Submission> {
        let called = self.attention.count.get();
        if self.seen != called {
            self.seen = called;
            while self.port.service() {}
        }
        self.port.accept()
    }

    fn complete(&mut self, completion: Completion) {
        self.port.complete(completion);
    }

    fn publish(&mut self) {
        self.port.publish();
    }

    fn regions(&self) -> &RegionTable {
        self.port.regions()
    }

    fn break_channel(&mut self, why: &str) {
        self.port.break_channel(why);
    }

    fn is_closed(&self) -> bool {
        self.port.is_closed()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.port.prepare_sleep()
    }

    fn wake(&mut self) {
        self.port.wake();
    }
}
