//! Requests to detach: refused while a client is connected, or answered when the endpoint has ended.

use std::sync::mpsc::{Receiver, Sender};

use archipelago_endpoint::Detach;

use crate::shared::{DetachRequest, Detached};

/// The requests of the threads of control.
#[derive(Debug)]
pub(crate) struct Detaching {
    requests: Receiver<DetachRequest>,
    /// The requests that wait for the end; the first one has begun it.
    waiting: Vec<Sender<Detached>>,
}

impl Detaching {
    pub(crate) fn new(requests: Receiver<DetachRequest>) -> Self {
        Detaching {
            requests,
            waiting: Vec::new(),
        }
    }

    /// Takes new requests, while `in_use` clients are connected. `true`: the end begins.
    pub(crate) fn take_requests(&mut self, in_use: usize) -> bool {
        let had_begun = self.has_begun();
        while let Ok(DetachRequest { how, reply }) = self.requests.try_recv() {
            if how == Detach::IfUnused && in_use > 0 && !self.has_begun() {
                // The requester may have stopped waiting.
                let _dropped = reply.send(Detached::InUse(in_use));
            } else {
                self.waiting.push(reply);
            }
        }
        self.has_begun() && !had_begun
    }

    pub(crate) fn has_begun(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Answers all requests: the endpoint has ended.
    pub(crate) fn finish(&self) {
        for reply in &self.waiting {
            let _gone = reply.send(Detached::Done);
        }
    }
}
