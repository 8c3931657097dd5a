//! A backend without the data of volumes.

use std::collections::VecDeque;
use std::time::Duration;

use archipelago_blocker::Backend;
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::control::{PoolReport, Wait};
use archipelago_protocol::handle::FencingToken;
use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest};
use xseg::Span;

/// Another backend, whose objects of data are neither read nor written: a reply is ready when the request was started.
#[derive(Debug)]
pub struct NullData<B> {
    backend: B,
    replies: VecDeque<(u64, ObjectReply)>,
}

impl<B: Backend> NullData<B> {
    /// All but the data is in `backend`.
    pub fn new(backend: B) -> Self {
        NullData {
            backend,
            replies: VecDeque::new(),
        }
    }
}

impl<B: Backend> Backend for NullData<B> {
    fn name(&self) -> &str {
        "null"
    }

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.backend.counters()
    }

    fn pool_report(&self) -> Option<PoolReport> {
        self.backend.pool_report()
    }

    fn look(&mut self, now: Duration) {
        self.backend.look(now);
    }

    fn waits(&self) -> Vec<Wait> {
        self.backend.waits()
    }

    fn is_fenced(&self, token: &FencingToken) -> bool {
        self.backend.is_fenced(token)
    }

    fn written_before(&mut self, id: ObjectId) {
        self.backend.written_before(id);
    }

    fn failed_pool_syncs_elsewhere(&self) -> u64 {
        self.backend.failed_pool_syncs_elsewhere()
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        let is_transfer = matches!(request.op, ObjectOp::Read | ObjectOp::Write);
        if is_transfer && request.id.kind == ObjectKind::Data {
            let reply = ObjectReply::done(request.len);
            self.replies.push_back((ticket, reply));
        } else {
            self.backend.start(ticket, request, memory);
        }
    }

    fn poll(&mut self) -> Option<(u64, ObjectReply)> {
        self.replies.pop_front().or_else(|| self.backend.poll())
    }
}
