//! Nodes, and the pool on which they work.

use std::collections::{BTreeMap, VecDeque};

use archipelago_blocker::Backend as _;
use archipelago_doubles::MemoryJournals;
use archipelago_doubles::simulated::{Random, SimulatedBackend};
use archipelago_mapper::{ClientId, Effect, EffectId, Mapper, MapperConfig, Sharing};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::error::Error;
use archipelago_protocol::ids::Lineage;
use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::map::{MapReply, MapRequest};
use archipelago_protocol::object::{ObjectOp, ObjectRequest};
use xseg::Region;

/// Longest object request of a mapper, in bytes.
const IO_LEN_MAX: usize = 16 << 10;
/// Calls in flight of all nodes, those of dead ones included.
const CALLS_MAX: usize = 64;
/// Bytes of a volume's or the catalogue's log: the shortest, so that runs go round it.
const LOG_LEN: u64 = 64 << 10;

/// A call in flight.
struct Call {
    /// The mapper that has sent it, by its incarnation.
    incarnation: u128,
    id: EffectId,
    request: ObjectRequest,
    slot: usize,
}

/// A node: one mapper after the other.
pub struct Node {
    mapper: Mapper,
    /// Of the mapper.
    pub incarnation: u128,
    /// It does nothing for a while, and does not know.
    pub frozen: bool,
    tag: u64,
    catalogue: BTreeMap<u64, CatalogueReply>,
    maps: BTreeMap<u64, MapReply>,
    /// Not started yet, because too much is in flight.
    waiting: VecDeque<(EffectId, ObjectRequest, Vec<u8>)>,
}

/// The nodes and their pool.
pub struct World {
    /// The nodes.
    pub nodes: Vec<Node>,
    backend: SimulatedBackend,
    calls: BTreeMap<u64, Call>,
    memory: Region,
    slots: Vec<usize>,
    next: u64,
    starts: u128,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("nodes", &self.nodes.len())
            .field("calls", &self.calls.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

impl Node {
    fn start(incarnation: u128, number: usize, ended: Vec<u128>) -> Self {
        let config = MapperConfig {
            owner: incarnation,
            node: format!("node{number}"),
            addresses: String::new(),
            sharing: Sharing::Shared { ended },
            log_len: LOG_LEN,
            catalogue_log_len: LOG_LEN,
            cache_bytes: 1 << 20,
            pending_max: 64,
            pack_len_max: 8 << 10,
            io_len_max: IO_LEN_MAX,
        };
        let mut mapper = Mapper::new(config, Box::new(MemoryJournals::new(64)));
        mapper.start();
        Node {
            mapper,
            incarnation,
            frozen: false,
            tag: 0,
            catalogue: BTreeMap::new(),
            maps: BTreeMap::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Asks about names; the tag of the answer.
    pub fn ask(&mut self, request: CatalogueRequest) -> u64 {
        self.tag += 1;
        self.mapper.catalogue_request(self.tag, request);
        self.tag
    }

    /// Asks as a volume peer; the tag of the answer.
    pub fn map(&mut self, request: MapRequest) -> u64 {
        self.tag += 1;
        let nothing = JournaledData::default();
        self.mapper
            .map_request(ClientId(1), self.tag, request, nothing);
        self.tag
    }

    /// The answer about names.
    pub fn answer(&mut self, tag: u64) -> Option<CatalogueReply> {
        self.catalogue.remove(&tag)
    }

    /// The answer to a volume peer.
    pub fn map_answer(&mut self, tag: u64) -> Option<MapReply> {
        self.maps.remove(&tag)
    }

    /// What was found wrong with a volume.
    #[must_use]
    pub fn damage(&self, lineage: Lineage) -> Option<Error> {
        self.mapper.damage(lineage)
    }

    /// Appends of this mapper that came too late.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.mapper.counters().catalogue_refused
    }

    /// Checkpoints of the catalogue that this mapper has made.
    #[must_use]
    pub fn catalogue_checkpoints(&self) -> u64 {
        self.mapper.counters().catalogue_checkpoints
    }
}

impl World {
    /// An empty pool that `count` nodes begin to serve.
    #[must_use]
    pub fn new(count: usize, seed: u64) -> Self {
        let memory = Region::anonymous(CALLS_MAX * IO_LEN_MAX).expect("memory for the calls");
        let mut world = World {
            nodes: Vec::new(),
            backend: SimulatedBackend::new(seed).durable(),
            calls: BTreeMap::new(),
            memory,
            slots: (0..CALLS_MAX).collect(),
            next: 0,
            starts: 0,
        };
        for number in 0..count {
            let node = world.started(number, Vec::new());
            world.nodes.push(node);
        }
        world
    }

    fn started(&mut self, number: usize, ended: Vec<u128>) -> Node {
        self.starts += 1;
        Node::start(self.starts, number, ended)
    }

    /// A mapper dies, and what it has sent goes on; another one starts in its place, which knows that it is dead. What it has lost:
    /// its incarnation.
    pub fn crash(&mut self, number: usize) -> u128 {
        let before = self.nodes[number].incarnation;
        self.nodes[number] = self.started(number, vec![before]);
        before
    }

    /// A node that joins.
    pub fn join(&mut self) -> usize {
        let number = self.nodes.len();
        let node = self.started(number, Vec::new());
        self.nodes.push(node);
        number
    }

    /// Starts what the mappers ask of the pool.
    pub fn send(&mut self) {
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            if node.frozen {
                continue;
            }
            while let Some(effect) = node.mapper.next_effect() {
                match effect {
                    Effect::MapReply { tag, reply, .. } => drop(node.maps.insert(tag, reply)),
                    Effect::CatalogueReply { tag, reply } => {
                        drop(node.catalogue.insert(tag, reply));
                    }
                    Effect::Object { id, request, data } => {
                        node.waiting.push_back((id, request, data));
                    }
                }
            }
            while let Some(slot) = self.slots.pop() {
                let Some((id, request, data)) = node.waiting.pop_front() else {
                    self.slots.push(slot);
                    break;
                };
                let at = (slot * IO_LEN_MAX) as u64;
                self.memory.write(at, &data).expect("a slot for a request");
                let carries = matches!(
                    request.op,
                    ObjectOp::Read
                        | ObjectOp::Write
                        | ObjectOp::Append
                        | ObjectOp::CompareAndSwap
                        | ObjectOp::ReadSwapped
                        | ObjectOp::List
                );
                let len = if carries { u64::from(request.len) } else { 0 };
                let span = self.memory.span(at, len).expect("a slot for a request");
                let spans = if carries {
                    std::slice::from_ref(&span)
                } else {
                    &[]
                };
                self.next += 1;
                self.backend.start(self.next, &request, spans);
                let call = Call {
                    incarnation: node.incarnation,
                    id,
                    request,
                    slot,
                };
                self.calls.insert(self.next, call);
            }
        }
    }

    /// Lets one of the calls in flight complete. `false`: there is none.
    pub fn complete(&mut self, random: &mut Random) -> bool {
        let count = self.backend.in_flight();
        if count == 0 {
            return false;
        }
        self.complete_at(usize::try_from(random.below(count as u64)).expect("an index"));
        true
    }

    /// Lets the call complete that was started first.
    pub fn complete_first(&mut self) -> bool {
        let any = self.backend.in_flight() > 0;
        if any {
            self.complete_at(0);
        }
        any
    }

    fn complete_at(&mut self, index: usize) {
        let (ticket, reply) = self.backend.complete(index);
        let Call {
            incarnation,
            id,
            request,
            slot,
        } = self.calls.remove(&ticket).expect("every call is known");
        let mut read = Vec::new();
        if let (ObjectOp::Read | ObjectOp::ReadSwapped | ObjectOp::List, Ok(len)) =
            (request.op, reply.result)
        {
            read.resize(len as usize, 0);
            let at = (slot * IO_LEN_MAX) as u64;
            self.memory
                .read(at, &mut read)
                .expect("a slot for a request");
        }
        self.slots.push(slot);
        let mut nodes = self.nodes.iter_mut();
        // Of a mapper that has died: it has happened all the same.
        if let Some(node) = nodes.find(|node| node.incarnation == incarnation) {
            node.mapper.object_done(id, reply, read);
        }
    }

    /// Whether the pool holds anything of `lineage`.
    #[must_use]
    pub fn holds(&self, lineage: Lineage) -> bool {
        self.backend.has_lineage(lineage)
    }
}
