//! The backend: calls in flight, faults, counters, crashes.
//!
//! Invariants
//! - A call has its effect when its reply is taken, so between start and reply it is in flight in the full sense.
//! - Data is what the memory held when the call was started.

use std::collections::BTreeMap;

use archipelago_blocker::Backend;
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::Lineage;
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use xseg::Span;

use super::choose::{Chooser, Random};
use super::fault::Fault;
use super::store::{Call, Store};
use crate::pages::{gather, scatter};

/// Operations are numbered below this.
const OPS: usize = 18;

#[derive(Debug, Clone)]
struct InFlight {
    ticket: u64,
    call: Call,
    memory: Vec<Span>,
    fault: Option<Fault>,
}

/// A pool that keeps written apart from durable, and fails on demand.
#[derive(Debug, Clone)]
pub struct SimulatedBackend {
    store: Store,
    in_flight: Vec<InFlight>,
    calls: u64,
    counts: [u64; OPS],
    faults: BTreeMap<u64, Fault>,
    /// Whether calls complete in another order than they were started in.
    shuffled: bool,
    random: Random,
}

impl SimulatedBackend {
    /// An empty pool whose calls complete in their order.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        SimulatedBackend {
            store: Store::default(),
            in_flight: Vec::new(),
            calls: 0,
            counts: [0; OPS],
            faults: BTreeMap::new(),
            shuffled: false,
            random: Random::new(seed),
        }
    }

    /// The same, with calls in flight together completing in an order that the seed says.
    #[must_use]
    pub fn shuffled(mut self) -> Self {
        self.shuffled = true;
        self
    }

    /// The same, whose completed writes are durable: there is nothing to sync.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.store.durable = true;
        self
    }

    /// Goes on with other random numbers: for the images of one run.
    #[must_use]
    pub fn reseeded(mut self, seed: u64) -> Self {
        self.random = Random::new(seed);
        self
    }

    /// Calls started so far; the first is number 1.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Calls of `op` started so far.
    #[must_use]
    pub fn count(&self, op: ObjectOp) -> u64 {
        self.counts[op as usize]
    }

    /// Calls started and not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Requests of the calls in flight.
    pub fn in_flight_requests(&self) -> impl Iterator<Item = &ObjectRequest> {
        self.in_flight.iter().map(|flight| &flight.call.request)
    }

    /// Makes call number `call` fail with `code`.
    pub fn fail_call(&mut self, call: u64, code: ErrorCode) {
        self.set_fault(call, Fault::Fail(code));
    }

    /// Gives call number `call` a fault. Calls that were started already have none.
    pub fn set_fault(&mut self, call: u64, fault: Fault) {
        self.faults.insert(call, fault);
    }

    /// Forgets faults that have not struck yet.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// The pool after a power cut: of everything that was not durable, calls in flight included, what `chooser` says.
    #[must_use]
    pub fn power_cut(mut self, chooser: &mut dyn Chooser) -> Self {
        self.store.settle_logs();
        for flight in std::mem::take(&mut self.in_flight) {
            self.store.begin(&flight.call, chooser);
        }
        self.store.power_cut(chooser);
        self.store.forget_losses();
        self.faults.clear();
        self
    }

    /// The pool after the death of the processes that use it: what was written stays, durable or not; each call in
    /// flight has happened or not, as `chooser` says, and is not answered.
    #[must_use]
    pub fn process_kill(mut self, chooser: &mut dyn Chooser) -> Self {
        for flight in std::mem::take(&mut self.in_flight) {
            if chooser.choose(2) == 1 {
                let _ = self.store.execute(&flight.call);
            }
        }
        self.store.forget_losses();
        self.faults.clear();
        self
    }

    /// The objects that are there, in order.
    #[must_use]
    pub fn objects(&self) -> Vec<ObjectId> {
        self.store.objects()
    }

    /// Whether `lineage` has any object.
    #[must_use]
    pub fn has_lineage(&self, lineage: Lineage) -> bool {
        self.store.has_lineage(lineage)
    }

    /// What an object other than data holds, as reads see it; heads: both slots.
    #[must_use]
    pub fn bytes(&self, id: ObjectId) -> Option<Vec<u8>> {
        self.store.bytes(id)
    }

    /// Damages the medium: changes the bits `mask` of byte `offset` of an object that is there.
    pub fn flip(&mut self, id: ObjectId, offset: u64, mask: u8) {
        self.store.flip(id, offset, mask);
    }

    /// Whether anything but zeros was written to the `len` bytes at `offset` of `id`, durable or not: what must never be
    /// given out as fresh.
    #[must_use]
    pub fn has_data(&self, id: ObjectId, offset: u64, len: usize) -> bool {
        self.store.has_data(id, offset, len)
    }

    /// A call in flight happens now, and is not answered: its client was fenced just after.
    pub fn happen(&mut self, ticket: u64) {
        if let Some(flight) = self.take(ticket) {
            let _ = self.store.execute(&flight.call);
        }
    }

    /// A call in flight never happens, and is not answered: its client was fenced before.
    pub fn forget(&mut self, ticket: u64) {
        self.take(ticket);
    }

    /// A sync failed: those of the pool that are under way fail too, for they cannot know which of the two the disk did first.
    fn fail_syncs_in_flight(&mut self) {
        let syncs = self.in_flight.iter_mut();
        for flight in syncs.filter(|flight| flight.call.request.op == ObjectOp::SyncPool) {
            flight
                .fault
                .get_or_insert(Fault::Fail(ErrorCode::SyncFailed));
        }
    }

    fn take(&mut self, ticket: u64) -> Option<InFlight> {
        let mut flights = self.in_flight.iter();
        let index = flights.position(|flight| flight.ticket == ticket)?;
        Some(self.in_flight.remove(index))
    }

    /// The call at `index` among those in flight completes now: its ticket and its reply.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn complete(&mut self, index: usize) -> (u64, ObjectReply) {
        let flight = self.in_flight.remove(index);
        if let Some(Fault::Fail(code)) = flight.fault {
            // What finds no space leaves nothing: see `docs/assumptions.md`.
            if code != ErrorCode::NoSpace {
                self.store.execute_failing(&flight.call, &mut self.random);
            }
            if matches!(flight.call.request.op, ObjectOp::Sync | ObjectOp::SyncPool) {
                self.fail_syncs_in_flight();
            }
            return (flight.ticket, ObjectReply::failed(code));
        }
        let reply = match self.store.execute(&flight.call) {
            Ok((reply, bytes)) => {
                scatter(&bytes, &flight.memory);
                reply
            }
            Err(code) => ObjectReply::failed(code),
        };
        (flight.ticket, reply)
    }
}

impl Backend for SimulatedBackend {
    fn name(&self) -> &str {
        "simulated"
    }

    fn capabilities(&self) -> Capabilities {
        match self.store.durable {
            true => Capabilities::DURABLE,
            false => Capabilities::NONE,
        }
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        self.calls += 1;
        self.counts[request.op as usize] += 1;
        let mut data = Vec::new();
        let carries = [ObjectOp::Write, ObjectOp::Append, ObjectOp::CompareAndSwap];
        if carries.contains(&request.op) {
            gather(&mut data, memory);
        }
        let call = Call {
            request: *request,
            data: data.into(),
            moment: self.store.now + 1,
        };
        let fault = self.faults.remove(&self.calls);
        self.in_flight.push(InFlight {
            ticket,
            call,
            memory: memory.to_vec(),
            fault,
        });
    }

    fn poll(&mut self) -> Option<(u64, ObjectReply)> {
        let hangs = |flight: &InFlight| flight.fault == Some(Fault::Hang);
        let ready = self
            .in_flight
            .iter()
            .filter(|flight| !hangs(flight))
            .count();
        if ready == 0 {
            return None;
        }
        let chosen = if self.shuffled {
            self.random.choose(ready)
        } else {
            0
        };
        let index = (0..self.in_flight.len())
            .filter(|index| !hangs(&self.in_flight[*index]))
            .nth(chosen);
        Some(self.complete(index.expect("as many as were counted")))
    }
}
