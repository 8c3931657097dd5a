//! The trait that each kind of storage implements.

use std::time::Duration;

use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::control::{PoolReport, Wait};
use archipelago_protocol::handle::FencingToken;
use archipelago_protocol::object::{ObjectId, ObjectReply, ObjectRequest};
use xseg::Span;

/// Storage for objects, polled from one thread. The contract is [`archipelago_protocol::object`]'s.
///
/// Requests were validated for form. [`ObjectOp::Capabilities`](archipelago_protocol::object::ObjectOp::Capabilities) is answered
/// elsewhere. `memory` holds exactly `request.len` bytes and stays mapped until the reply.
pub trait Backend {
    /// Its name in logs and figures.
    fn name(&self) -> &str;

    /// Its capabilities, the same from its first request to its last.
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    /// Its own figures by name, in the order in which they are shown.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Its report about the pool, if that is a pool of files.
    fn pool_report(&self) -> Option<PoolReport> {
        None
    }

    /// Called about once a second with the monotonic time.
    fn look(&mut self, _now: Duration) {}

    /// Calls on its storage that have not returned for a second or longer as of the last [`Backend::look`], the oldest first.
    fn waits(&self) -> Vec<Wait> {
        Vec::new()
    }

    /// Whether the pool knows that the incarnation with `token` was fenced: its opens are refused as stale.
    fn is_fenced(&self, _token: &FencingToken) -> bool {
        false
    }

    /// Reports that a client wrote to `id` through a predecessor of this process, and that these writes may not be durable: the next sync
    /// of `id` covers them, too, or fails. A backend that made everything durable when it was opened has nothing to do.
    fn written_before(&mut self, _id: ObjectId) {}

    /// Failed syncs of the pool so far, of other backends of the same pool on other threads of this process: they may have dropped data of
    /// this one.
    fn failed_pool_syncs_elsewhere(&self) -> u64 {
        0
    }

    /// Takes a request; exactly one reply with `ticket` follows from [`Backend::poll`]. Never blocks on storage: blocking calls are made by
    /// other threads.
    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]);

    /// The next reply, in any order.
    fn poll(&mut self) -> Option<(u64, ObjectReply)>;
}
