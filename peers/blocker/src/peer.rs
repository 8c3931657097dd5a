//! The peer that serves one backend to any number of channels.
//!
//! Invariants
//! - Each accepted request is answered exactly once; if its channel is closed by then, the answer is dropped.
//! - At most [`ENTRIES_PER_TURN`] requests of a channel are started before the next channel has its turn, and the channels start a turn in
//!   rotation, so a busy client delays another by a bounded amount.
//! - A request on a handle that is not open is answered, and affects no other request.
//! - A started request finishes, also after its client has disconnected: [`BlockerPeer::channel_idle`] returns whether all have.

use archipelago_protocol::control::PeerStatus;
use archipelago_protocol::handle::{HandleAccess, HandleRequest, OpenObject};
use archipelago_protocol::object::{ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{ErrorCode, Grants};
use archipelago_runtime::{Peer, Progress};
use tracing::warn;
use xseg::{ServerPort, Submission};

use crate::backend::Backend;
use crate::channel::{Channel, ChannelId};
use crate::counters::Counters;
use crate::in_flight::{InFlight, Started};
use crate::rights::Rights;
use crate::scatter::ScatterBuffer;

/// Requests of one channel started in one turn: an eighth of a ring.
pub const ENTRIES_PER_TURN: usize = 32;
/// Most unanswered requests of one channel: more than a ring has room for. A client with more has broken the protocol.
pub const IN_FLIGHT_MAX: usize = 4096;
/// Most replies taken from the backend in one turn, so that a fast backend does not delay new requests.
const REPLIES_PER_TURN: usize = 1024;

/// Serves a [`Backend`] on any number of channels. Lives on one thread.
#[derive(Debug)]
pub struct BlockerPeer<B, P = xseg::Server> {
    name: String,
    backend: B,
    channels: Vec<Channel<P>>,
    /// Index of the channel that is served first.
    first: usize,
    next_channel: u64,
    grants: Grants,
    in_flight: InFlight,
    scatter: ScatterBuffer,
    counters: Counters,
}

impl<B: Backend, P: ServerPort> BlockerPeer<B, P> {
    /// Serves `backend`; there are no channels yet.
    pub fn new(backend: B) -> Self {
        BlockerPeer {
            name: format!("blocker-{}", backend.name()),
            backend,
            channels: Vec::new(),
            first: 0,
            next_channel: 0,
            grants: Grants::default(),
            in_flight: InFlight::default(),
            scatter: ScatterBuffer::new(),
            counters: Counters::default(),
        }
    }

    /// Serves `port` from the next poll on, within `rights`.
    pub fn add_channel(&mut self, port: P, rights: Rights) -> ChannelId {
        let id = ChannelId(self.next_channel);
        self.next_channel += 1;
        self.counters.channels += 1;
        self.channels.push(Channel::new(id, port, rights));
        id
    }

    /// Sets what channels with [`Rights::Granted`] may write from now on; before the first call that is nothing. Handles whose grant was
    /// withdrawn are closed; requests that were started on them finish.
    pub fn set_grants(&mut self, grants: Grants) {
        let granted = |channel: &&mut Channel<P>| channel.rights == Rights::Granted;
        for channel in self.channels.iter_mut().filter(granted) {
            let keep = |object: &OpenObject| Rights::Granted.allow_open(object, &grants);
            channel.handles.retain(keep);
        }
        self.grants = grants;
    }

    /// Accepts no more requests of the channel; those that were started finish. A channel whose port is closed is removed without this
    /// call.
    pub fn remove_channel(&mut self, id: ChannelId) {
        if let Some(channel) = self.channels.iter_mut().find(|channel| channel.id == id) {
            channel.leaving = true;
        }
    }

    /// Whether the channel has ended and all its requests have finished: then its client's successor may be served, for no old request can
    /// overtake a new one.
    #[must_use]
    pub fn channel_idle(&self, id: ChannelId) -> bool {
        self.channels.iter().all(|channel| channel.id != id)
    }

    /// Channels served or still finishing.
    #[must_use]
    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }

    /// Requests started and not yet answered, of all channels.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The counters so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The counters, for the node daemon.
    #[must_use]
    pub fn status(&self) -> PeerStatus {
        let mut status = self.counters.status(&self.name);
        let own = self.backend.counters();
        let named = own
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        status.counters.extend(named);
        status
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The backend, for functions of its own kind.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    fn accept_all(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        let count = self.channels.len();
        for turn in 0..count {
            let index = (self.first + turn) % count;
            progress = progress.or(self.accept_from(index));
        }
        self.first = if count == 0 {
            0
        } else {
            (self.first + 1) % count
        };
        progress
    }

    fn accept_from(&mut self, index: usize) -> Progress {
        let mut progress = Progress::Idle;
        for _ in 0..ENTRIES_PER_TURN {
            let channel = &mut self.channels[index];
            if channel.leaving || channel.port.is_closed() {
                break;
            }
            let Some(entry) = channel.port.accept() else {
                break;
            };
            progress = Progress::Busy;
            if channel.in_flight() >= IN_FLIGHT_MAX {
                warn!(
                    channel = channel.id.0,
                    "more than {IN_FLIGHT_MAX} requests in flight: channel cut off"
                );
                channel
                    .port
                    .break_channel("more requests in flight than a ring has room for");
                self.counters.broken += 1;
                break;
            }
            self.start(index, &entry);
        }
        progress
    }

    /// Opens or closes a handle.
    fn change_handles(
        &mut self,
        index: usize,
        request: Result<HandleRequest, ErrorCode>,
    ) -> Result<(), ErrorCode> {
        let channel = &mut self.channels[index];
        match request? {
            HandleRequest::Close { handle } => channel.handles.close(handle),
            HandleRequest::Open {
                handle,
                object,
                again,
            } => {
                if !channel.rights.allow_open(&object, &self.grants) {
                    self.counters.denied += 1;
                    return Err(ErrorCode::Denied);
                }
                if self.backend.is_fenced(&object.token) {
                    return Err(ErrorCode::Stale);
                }
                channel.handles.open(handle, object)?;
                if again && object.access != HandleAccess::Read {
                    self.backend.written_before(object.id);
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, index: usize, entry: &Submission) {
        if let Some(request) = HandleRequest::decode(entry) {
            self.counters.handle_requests += 1;
            let done = self.change_handles(index, request);
            self.counters.failed += u64::from(done.is_err());
            return self.channels[index].answer(entry.tag, &ObjectReply::from(done));
        }
        self.counters.requests += 1;
        let channel = &mut self.channels[index];
        let decoded = ObjectRequest::decode(entry, |handle, op| channel.handles.get(handle, op));
        let allowed = decoded.and_then(|request| {
            match request.op.is_about_pool() && !channel.rights.allow_on_pool(request.op) {
                true => Err(ErrorCode::Denied),
                false => Ok(request),
            }
        });
        let request = match allowed {
            Ok(request) => request,
            Err(code) => {
                match code {
                    ErrorCode::Denied => self.counters.denied += 1,
                    _ => self.counters.refused += 1,
                }
                self.counters.failed += 1;
                return channel.answer(entry.tag, &ObjectReply::failed(code));
            }
        };
        if request.op == ObjectOp::Capabilities {
            let values = [self.backend.capabilities().bits(), 0];
            let reply = ObjectReply {
                values,
                ..ObjectReply::done(0)
            };
            return channel.answer(entry.tag, &reply);
        }
        let started = Started {
            channel: channel.id,
            tag: entry.tag,
            op: request.op,
            len: request.len,
        };
        let resolve = |spans: &mut _| match uses_memory(&request) {
            true => {
                let regions = channel.port.regions();
                let (memory, len) = (&request.memory, request.len);
                self.scatter.resolve(regions, memory, len, spans)
            }
            false => Ok(()),
        };
        let ticket = match self.in_flight.insert(started, resolve) {
            Ok(ticket) => ticket,
            Err(code) => {
                self.counters.refused += 1;
                self.counters.failed += 1;
                return channel.answer(entry.tag, &ObjectReply::failed(code));
            }
        };
        channel.started();
        match request.op {
            ObjectOp::Read | ObjectOp::ReadSwapped => self.counters.reads += 1,
            ObjectOp::Write | ObjectOp::Append => self.counters.writes += 1,
            ObjectOp::Sync | ObjectOp::SyncPool => self.counters.syncs += 1,
            ObjectOp::CompareAndSwap => self.counters.swaps += 1,
            _ => {}
        }
        let memory = self.in_flight.spans(ticket);
        self.backend.start(ticket, &request, memory);
    }

    fn answer_all(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        for _ in 0..REPLIES_PER_TURN {
            let Some((ticket, reply)) = self.backend.poll() else {
                break;
            };
            progress = Progress::Busy;
            self.answer(ticket, &reply);
        }
        progress
    }

    fn answer(&mut self, ticket: u64, reply: &ObjectReply) {
        let started = self.in_flight.remove(ticket);
        match (started.op, reply.result) {
            (ObjectOp::Read | ObjectOp::ReadSwapped, Ok(len)) => {
                self.counters.read_bytes += u64::from(len);
            }
            (ObjectOp::Write | ObjectOp::Append, Ok(_)) => {
                self.counters.written_bytes += u64::from(started.len);
            }
            (_, Ok(_)) => {}
            (_, Err(_)) => self.counters.failed += 1,
        }
        let channel = self
            .channels
            .iter_mut()
            .find(|channel| channel.id == started.channel);
        let channel = channel.expect("a channel stays until its requests have finished");
        if channel.port.is_closed() {
            self.counters.dropped += 1;
        }
        channel.finished(started.tag, reply);
    }

    fn forget_ended(&mut self) {
        self.channels.retain(|channel| {
            let ended = channel.leaving || channel.port.is_closed();
            !(ended && channel.in_flight() == 0)
        });
    }
}

/// Whether the operation moves bytes; for others `len` is a range or unused.
fn uses_memory(request: &ObjectRequest) -> bool {
    use ObjectOp::{Append, CompareAndSwap, List, Read, ReadSwapped, Write};
    matches!(
        request.op,
        Read | Write | Append | CompareAndSwap | ReadSwapped | List
    ) && request.len > 0
}

impl<B: Backend, P: ServerPort> Peer for BlockerPeer<B, P> {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll(&mut self) -> Progress {
        let accepted = self.accept_all();
        let answered = self.answer_all();
        for channel in &mut self.channels {
            channel.publish();
        }
        self.forget_ended();
        accepted.or(answered)
    }

    fn prepare_sleep(&mut self) -> bool {
        // Every port is asked, so that `wake` withdraws exactly the announcements that were made.
        let mut quiet = true;
        for channel in &mut self.channels {
            quiet &= channel.port.prepare_sleep();
        }
        quiet
    }

    fn wake(&mut self) {
        for channel in &mut self.channels {
            channel.port.wake();
        }
    }
}
