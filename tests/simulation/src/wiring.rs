//! Nodes and their pool, the simulated backend: what blockers ask of it, and what becomes of that.
//!
//! Invariants
//! - Peers run until nothing moves before any backend call completes, so a run depends on its seed and nothing else.
//! - Each backend call that changes something is a crash point: a clone of all that survives the processes.
//! - What is given out for a first write was never written before, but by ourselves since the last unclean end.
//! - A node that was taken over is fenced: what it has in flight has happened or never will, and the backend refuses what
//!   it asks from then on. But for swaps, appends and seals: the backend itself decides those, by the version of a head or by the
//!   end and the token of a log, whenever they come.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_blocker::Backend as _;
use archipelago_doubles::simulated::{Random, SimulatedBackend};
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{BLOCK_SIZE, Epoch, Lineage};
use archipelago_protocol::map::{FLAG_WRITE, MapOp, Placement};
use archipelago_protocol::object::{
    FLAG_DURABLE, ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest,
};

use crate::journal;
use crate::machine::CrashPoint;
use crate::memory::{Memory, MemoryPool};
use crate::node::{Node, Starts};
use crate::oracle::{Crash, Oracle};
use crate::storage::BackendCall;
use crate::trouble::Trouble;
use crate::witness::Answered;

/// The memory of a machine: the guests' areas.
const MEMORY_LEN: usize = AREA_COUNT * GUEST_AREA_LEN;
/// Bytes of a request of the guest at most: all of the largest volume.
pub const GUEST_AREA_LEN: usize = 512 << 10;
const AREA_COUNT: usize = 64;
/// Turns of the peers between two completions: more is a circle.
const TURNS_MAX: usize = 10_000;

/// A call in flight.
#[derive(Debug)]
struct Call {
    node: usize,
    /// The blocker's.
    ticket: u64,
    request: ObjectRequest,
}

/// The nodes and what tasks share with them.
#[derive(Debug)]
pub struct Wiring {
    nodes: Vec<Node>,
    starts: Starts,
    /// The pool.
    pub backend: SimulatedBackend,
    /// What may be read.
    pub oracle: Oracle,
    memory: Memory,
    pool: MemoryPool,
    areas: Vec<usize>,
    calls: BTreeMap<u64, Call>,
    /// Answers that are due although the backend gives none.
    refused: Vec<(usize, u64)>,
    next: u64,
    /// Blocks that were written first, as far as no unclean end came between.
    firsts: BTreeSet<(ObjectId, u64)>,
    /// Volumes that are open for writing: a crash now is their unclean end.
    writing: BTreeSet<Lineage>,
    /// Volumes whose journals may speak for what a failed sync took away.
    doubtful: BTreeSet<Lineage>,
    /// The node that has the pool lost it, and no other has it yet.
    fenced: bool,
    /// The next call that makes something durable fails.
    pub fail_next_sync: bool,
    /// Requests may be refused: something was made to fail.
    pub tolerant: bool,
    /// Something was refused, and that was to be expected.
    pub upset: bool,
    /// A log is being filled: calls that are like those before are no crash points.
    pub filling: bool,
    /// Crash points since they were last taken; `None`: none are taken.
    pub points: Option<Vec<CrashPoint>>,
    wrong: Option<String>,
}

fn makes_durable(request: &ObjectRequest) -> bool {
    match request.op {
        ObjectOp::Sync | ObjectOp::SyncPool | ObjectOp::Append => true,
        ObjectOp::Write => request.flags & FLAG_DURABLE != 0,
        _ => false,
    }
}

/// Whether nothing but the pool's fence keeps a node that was replaced from this: all but what the backend decides itself, by the
/// version of a head or by the end and the token of a log, whenever it comes.
fn needs_fence(request: &ObjectRequest) -> bool {
    !matches!(
        request.op,
        ObjectOp::CompareAndSwap | ObjectOp::Append | ObjectOp::Seal
    )
}

fn reads(op: ObjectOp) -> bool {
    matches!(op, ObjectOp::Read | ObjectOp::ReadSwapped | ObjectOp::List)
}

impl Wiring {
    /// Starts the processes on what `point` left.
    #[must_use]
    pub fn start(point: CrashPoint, memory: &MemoryPool) -> Self {
        let CrashPoint {
            backend,
            journals,
            oracle,
            firsts,
            starts,
            ..
        } = point;
        let pool = memory.clone();
        let memory = pool.take(MEMORY_LEN);
        let starts = Starts::after(starts);
        let capabilities = backend.capabilities();
        let node = Node::start(&starts, journals, &memory, &pool, capabilities);
        Wiring {
            nodes: vec![node],
            starts,
            backend,
            oracle,
            memory,
            pool,
            areas: (0..AREA_COUNT)
                .rev()
                .map(|index| index * GUEST_AREA_LEN)
                .collect(),
            calls: BTreeMap::new(),
            refused: Vec::new(),
            next: 0,
            firsts,
            writing: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            fenced: false,
            fail_next_sync: false,
            tolerant: false,
            upset: false,
            filling: false,
            points: None,
            wrong: None,
        }
    }

    /// The node that has the pool.
    #[must_use]
    pub fn owner(&self) -> usize {
        self.nodes.len() - 1
    }

    /// A node.
    pub fn node(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number]
    }

    /// What survives the processes now.
    #[must_use]
    pub fn crash_point(&self) -> CrashPoint {
        CrashPoint {
            backend: self.backend.clone(),
            journals: self.nodes[self.owner()].journals(),
            oracle: self.oracle.clone(),
            firsts: self
                .firsts
                .iter()
                .filter(|(id, _)| !self.ends_uncleanly(id.lineage))
                .copied()
                .collect(),
            doubtful: !self.doubtful.is_empty(),
            starts: self.starts.count(),
        }
    }

    /// A piece of guest memory. `None`: more requests are in flight than there are areas.
    pub fn take_area(&mut self) -> Option<usize> {
        self.areas.pop()
    }

    /// Puts `bytes` into guest memory.
    pub fn fill(&mut self, area: usize, bytes: &[u8]) {
        self.memory
            .write(area as u64, bytes)
            .expect("requests fit into an area");
    }

    /// Takes `len` bytes out of guest memory.
    #[must_use]
    pub fn bytes(&self, area: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read(area as u64, &mut bytes)
            .expect("requests fit into an area");
        bytes
    }

    /// Gives a piece of guest memory back.
    pub fn give_area(&mut self, area: usize) {
        self.areas.push(area);
    }

    /// Whether a crash now is certainly an unclean end of the volume.
    fn ends_uncleanly(&self, lineage: Lineage) -> bool {
        self.writing.contains(&lineage) && !self.nodes[self.owner()].is_closing(lineage)
    }

    /// Volumes end uncleanly: what was given out as fresh is so no more.
    fn end_uncleanly(&mut self) {
        let mut firsts = std::mem::take(&mut self.firsts);
        firsts.retain(|(id, _)| !self.ends_uncleanly(id.lineage));
        self.firsts = firsts;
        self.writing.clear();
    }

    /// The mapper of the node that has the pool dies, alone.
    pub fn kill_mapper(&mut self) {
        self.end_uncleanly();
        let owner = self.owner();
        self.nodes[owner].kill_mapper();
    }

    /// The backend takes nothing more from the node that has the pool; what is in flight has happened or never will.
    pub fn fence(&mut self, random: &mut Random) {
        let tickets: Vec<u64> = self.calls.keys().copied().collect();
        for ticket in tickets {
            if !needs_fence(&self.calls[&ticket].request) {
                continue;
            }
            if random.below(2) == 0 {
                self.backend.happen(ticket);
            } else {
                self.backend.forget(ticket);
            }
            let call = self.calls.remove(&ticket).expect("listed just now");
            self.refused.push((call.node, call.ticket));
        }
        self.fenced = true;
    }

    /// Another node takes the pool of the one that was fenced, which lives.
    pub fn hand_over(&mut self) {
        self.fenced = false;
        self.end_uncleanly();
        self.doubtful.clear();
        self.oracle.crash(Crash::PowerCut);
        let journals = journal::journals();
        let capabilities = self.backend.capabilities();
        let (memory, pool) = (&self.memory, &self.pool);
        let node = Node::start(&self.starts, journals, memory, pool, capabilities);
        self.nodes.push(node);
    }

    /// Has the mapper drop what is not durable, of all sessions.
    pub fn abandon(&mut self) {
        let owner = self.owner();
        self.nodes[owner].abandon();
    }

    // What the peers do.

    /// Runs the peers until they can only wait for the backend. Whether anything moved.
    ///
    /// # Errors
    /// What they did wrong.
    pub fn run(&mut self) -> Result<bool, Trouble> {
        let mut any = false;
        for _ in 0..TURNS_MAX {
            let mut moved = false;
            for (node, ticket) in std::mem::take(&mut self.refused) {
                let reply = ObjectReply::failed(ErrorCode::Stale);
                self.nodes[node].answer(ticket, reply);
                moved = true;
            }
            for number in 0..self.nodes.len() {
                moved |= self.nodes[number].turn();
                let answered = self.nodes[number].take_answered();
                if number == self.owner() {
                    answered.iter().for_each(|answered| self.look_at(answered));
                }
                let calls = self.nodes[number].take_calls();
                calls.into_iter().for_each(|call| self.begin(number, call));
            }
            if let Some(wrong) = self.wrong.take() {
                return Err(Trouble::Wrong(wrong));
            }
            if !moved {
                return Ok(any);
            }
            any = true;
        }
        Err(Trouble::Wrong("the peers go round in circles".to_owned()))
    }

    fn look_at(&mut self, answered: &Answered) {
        let (Ok(result), Some(lineage)) = (answered.reply.result, answered.lineage) else {
            return;
        };
        match answered.request.op {
            MapOp::Open if answered.request.flags & FLAG_WRITE != 0 => {
                self.writing.insert(lineage);
            }
            MapOp::Close => {
                self.writing.remove(&lineage);
                self.doubtful.remove(&lineage);
            }
            MapOp::Abandon => {
                self.writing.remove(&lineage);
                self.firsts.retain(|(id, _)| id.lineage != lineage);
                self.doubtful.remove(&lineage);
            }
            MapOp::Locate if answered.reply.placement() == Some(Placement::First) => {
                let id = ObjectId::data(lineage, Epoch(answered.reply.values[0]));
                self.check_fresh(id, answered.request.offset, u64::from(result));
            }
            _ => {}
        }
    }

    /// What a crash left behind is never written into again: a first write goes where nothing ever was, but for what was
    /// written first since the last crash (and zeroed meanwhile).
    fn check_fresh(&mut self, id: ObjectId, offset: u64, len: u64) {
        for block in offset / BLOCK_SIZE..(offset + len) / BLOCK_SIZE {
            let ours = !self.firsts.insert((id, block));
            let block_len = usize::try_from(BLOCK_SIZE).expect("a block is small");
            if !ours && self.backend.has_data(id, block * BLOCK_SIZE, block_len) {
                self.wrong = Some(format!(
                    "block {block} of {id:?} is given out as fresh, but holds data"
                ));
            }
        }
    }

    fn begin(&mut self, node: usize, call: BackendCall) {
        let BackendCall {
            ticket,
            request,
            memory,
        } = call;
        let ours = node == self.owner() && !self.fenced;
        if !ours && needs_fence(&request) {
            return self.refused.push((node, ticket));
        }
        let is_sync = matches!(request.op, ObjectOp::Sync | ObjectOp::SyncPool);
        if is_sync && self.backend.capabilities().has(Capabilities::DURABLE) {
            self.wrong = Some(format!(
                "a pool that has nothing to sync is asked: {request:?}"
            ));
        }
        self.next += 1;
        if ours && self.fail_next_sync && makes_durable(&request) {
            self.fail_next_sync = false;
            let call = self.backend.calls() + 1;
            self.backend.fail_call(call, ErrorCode::SyncFailed);
        }
        self.backend.start(self.next, &request, &memory);
        let call = Call {
            node,
            ticket,
            request,
        };
        self.calls.insert(self.next, call);
        let changes = !reads(request.op) && request.op != ObjectOp::Stat;
        let filler = self.filling
            && matches!(request.op, ObjectOp::Write | ObjectOp::Append)
            && matches!(request.id.kind, ObjectKind::Data | ObjectKind::Log);
        if changes && !filler && self.points.is_some() {
            let point = self.crash_point();
            self.points.get_or_insert_default().push(point);
        }
    }

    /// Lets the backend call number `index` among those in flight complete.
    pub fn complete(&mut self, index: usize) {
        let (ticket, reply) = self.backend.complete(index);
        let Call {
            node,
            ticket,
            request,
        } = self.calls.remove(&ticket).expect("every call has an owner");
        let swaps = matches!(request.op, ObjectOp::CompareAndSwap | ObjectOp::Seal);
        if reply.result.is_err() && node == self.owner() && (swaps || makes_durable(&request)) {
            self.note_failure(&request);
        }
        self.nodes[node].answer(ticket, reply);
    }

    fn note_failure(&mut self, request: &ObjectRequest) {
        let lineage = request.id.lineage;
        if request.op == ObjectOp::SyncPool {
            self.oracle.sync_in_doubt(None);
            self.doubtful.extend(&self.writing);
        } else if lineage == Lineage::CATALOGUE {
            // A snapshot that fails for it ends its volume's session, as a failed sync of the volume would.
            self.oracle.sync_in_doubt(None);
        } else {
            self.oracle.sync_in_doubt(Some(lineage));
            if self.writing.contains(&lineage) {
                self.doubtful.insert(lineage);
            }
        }
    }

    /// Objects of things that are gone.
    #[must_use]
    pub fn leftovers(&self) -> Vec<ObjectId> {
        let needed = self.oracle.needed();
        let mut objects = self.backend.objects();
        objects.retain(|id| id.lineage != Lineage::CATALOGUE && !needed.contains(&id.lineage));
        objects
    }
}
