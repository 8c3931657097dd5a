//! The mapper, the volume peer and the backend, wired as in one thread of a node.
//!
//! Invariants
//! - Peers run until nothing moves before any backend call completes, so a run depends on its seed and nothing else.
//! - Each backend call that changes something is a crash point: a clone of all that survives the processes.
//! - What is given out for a first write was never written before, but by ourselves since the last unclean end.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_blocker::Backend;
use archipelago_blocker::simulated::SimulatedBackend;
use archipelago_mapper::{ClientId, Effect, EffectId, Mapper};
use archipelago_protocol::carry::{AREA_LEN, Carried};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::error::{Error, ErrorCode};
use archipelago_protocol::ids::{BLOCK_SIZE, Epoch, Lineage};
use archipelago_protocol::map::{FLAG_WRITE, MapOp, MapReply, MapRequest, Placement};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::volume::{
    OpenMode, Segment, VolumeEvent, VolumeHandle, VolumeInfo, VolumeOp, VolumeRequest, Volumes,
};
use archipelago_runtime::{Peer, Progress};
use archipelago_volume::{ControlEvent, VolumePeer};
use xseg::local::{LocalClient, LocalServer};
use xseg::{RegionId, ServerPort};

use crate::journal::Journals;
use crate::machine::CrashPoint;
use crate::memory::{Memory, MemoryPool};
use crate::oracle::Oracle;
use crate::trouble::Trouble;

/// The memory of a machine: first what the mapper's calls move, then the guest's areas.
const MEMORY_LEN: usize = AREAS_START + AREA_COUNT * GUEST_AREA_LEN;
const AREAS_START: usize = 1 << 20;
/// Bytes of a request of the guest at most: all of the largest volume.
pub const GUEST_AREA_LEN: usize = 512 << 10;
const AREA_COUNT: usize = 64;
/// The volume peer's connection.
const CLIENT: ClientId = ClientId(1);
/// Requests in flight on a channel.
const CHANNEL_LEN: usize = 256;
/// Bytes of the blocker channel's arena: some cells.
const ARENA_LEN: usize = 64 << 10;
/// Turns of the peers between two completions: more is a circle.
const TURNS_MAX: usize = 10_000;

/// Who waits for a backend call.
#[derive(Debug, Clone, Copy)]
enum Owner {
    Mapper(EffectId),
    /// The volume peer, by the tag of its submission.
    Volume(u64),
}

/// The peers and what tasks share with them.
#[derive(Debug)]
pub struct Wiring {
    mapper: Mapper,
    peer: VolumePeer<LocalClient, LocalClient>,
    map_server: LocalServer,
    object_server: LocalServer,
    /// The pool.
    pub backend: SimulatedBackend,
    journals: Journals,
    /// What may be read.
    pub oracle: Oracle,
    memory: Memory,
    guest: RegionId,
    areas: Vec<usize>,
    calls: BTreeMap<u64, (Owner, ObjectRequest)>,
    next: u64,
    /// Requests to the mapper that it has not answered, by tag.
    asked: BTreeMap<u64, MapRequest>,
    /// Lineages by the mapper's handle.
    sessions: BTreeMap<u32, Lineage>,
    handles: BTreeSet<VolumeHandle>,
    results: BTreeMap<u64, Result<(), ErrorCode>>,
    opened: BTreeMap<VolumeHandle, Result<VolumeInfo, Error>>,
    closed: BTreeMap<VolumeHandle, Result<(), Error>>,
    catalogues: BTreeMap<u64, CatalogueReply>,
    begun: BTreeSet<u64>,
    snapshots: BTreeMap<u64, Result<(), Error>>,
    /// Blocks that were written first, as far as no unclean end came between.
    pub firsts: BTreeSet<(ObjectId, u64)>,
    /// Volumes that are open for writing: a crash now is their unclean end.
    writing: BTreeSet<Lineage>,
    /// Crash points since they were last taken; `None`: none are taken.
    pub points: Option<Vec<CrashPoint>>,
    wrong: Option<String>,
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
        } = point;
        let map_arena_len = usize::try_from(AREA_LEN).expect("an area is small");
        let (map_client, map_server) =
            xseg::local::channel(CHANNEL_LEN, map_arena_len).expect("memory for a channel");
        let (object_client, object_server) =
            xseg::local::channel(CHANNEL_LEN, ARENA_LEN).expect("memory for a channel");
        let mut peer = VolumePeer::new(map_client, object_client).expect("cells fit the arena");
        let guest = peer.fresh_region();
        let memory = memory.take(MEMORY_LEN);
        peer.add_region(guest, (*memory).clone())
            .expect("the first region");
        Wiring {
            mapper: crate::journal::mapper(&journals),
            peer,
            map_server,
            object_server,
            backend,
            journals,
            oracle,
            memory,
            guest,
            areas: (0..AREA_COUNT)
                .rev()
                .map(|index| AREAS_START + index * GUEST_AREA_LEN)
                .collect(),
            calls: BTreeMap::new(),
            next: 0,
            asked: BTreeMap::new(),
            sessions: BTreeMap::new(),
            handles: BTreeSet::new(),
            results: BTreeMap::new(),
            opened: BTreeMap::new(),
            closed: BTreeMap::new(),
            catalogues: BTreeMap::new(),
            begun: BTreeSet::new(),
            snapshots: BTreeMap::new(),
            firsts,
            writing: BTreeSet::new(),
            points: None,
            wrong: None,
        }
    }

    fn ticket(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What survives the processes now.
    #[must_use]
    pub fn crash_point(&self) -> CrashPoint {
        CrashPoint {
            backend: self.backend.clone(),
            journals: self.journals.snapshot(),
            oracle: self.oracle.clone(),
            firsts: self
                .firsts
                .iter()
                .filter(|(id, _)| !self.writing.contains(&id.lineage))
                .copied()
                .collect(),
        }
    }

    // What tasks ask for.

    /// Starts to open a volume.
    pub fn open(&mut self, lineage: Lineage, mode: OpenMode) -> VolumeHandle {
        let handle = self.peer.open(lineage, mode);
        self.handles.insert(handle);
        handle
    }

    /// The answer to an open.
    pub fn take_opened(&mut self, handle: VolumeHandle) -> Option<Result<VolumeInfo, Error>> {
        self.opened.remove(&handle)
    }

    /// Starts to close a volume.
    pub fn close(&mut self, handle: VolumeHandle) {
        self.peer.close(handle);
    }

    /// The answer to a close.
    pub fn take_closed(&mut self, handle: VolumeHandle) -> Option<Result<(), Error>> {
        self.closed.remove(&handle)
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

    /// Submits a request; its cookie.
    ///
    /// # Errors
    /// What the volume peer says.
    pub fn submit(
        &mut self,
        handle: VolumeHandle,
        op: VolumeOp,
        offset: u64,
        len: u64,
        area: Option<usize>,
    ) -> Result<u64, Trouble> {
        let cookie = self.ticket();
        let segment = area.map(|area| Segment {
            region: self.guest.0,
            len: u32::try_from(len).expect("requests are small"),
            offset: area as u64,
        });
        let request = VolumeRequest {
            op,
            offset,
            len,
            segments: segment.as_slice(),
        };
        self.peer.submit(handle, cookie, request)?;
        Ok(cookie)
    }

    /// The answer to a request.
    pub fn take_result(&mut self, cookie: u64) -> Option<Result<(), ErrorCode>> {
        self.results.remove(&cookie)
    }

    /// Starts a snapshot of an open volume.
    pub fn snapshot(&mut self, lineage: Lineage, token: u64) {
        self.peer.snapshot(lineage, token, token);
    }

    /// Whether the snapshot's epoch has begun.
    #[must_use]
    pub fn has_begun(&self, token: u64) -> bool {
        self.begun.contains(&token) || self.snapshots.contains_key(&token)
    }

    /// The answer to a snapshot.
    pub fn take_snapshot(&mut self, token: u64) -> Option<Result<(), Error>> {
        self.snapshots.remove(&token)
    }

    /// The volume has another size.
    pub fn resized(&mut self, lineage: Lineage, size: u64) {
        self.peer.resized(lineage, size);
    }

    /// Asks about names.
    pub fn ask_catalogue(&mut self, request: CatalogueRequest) -> u64 {
        let tag = self.ticket();
        self.mapper.catalogue_request(tag, request);
        tag
    }

    /// The answer about names.
    pub fn take_catalogue(&mut self, tag: u64) -> Option<CatalogueReply> {
        self.catalogues.remove(&tag)
    }

    /// Has the mapper drop what is not durable, of all sessions: what a failed sync means.
    pub fn abandon(&mut self) {
        for handle in std::mem::take(&mut self.sessions).into_keys() {
            let tag = self.ticket();
            let request = MapRequest::new(MapOp::Abandon, handle);
            self.mapper
                .map_request(CLIENT, tag, request, Carried::default());
        }
    }

    // What the peers do.

    /// Runs the peers until they can only wait for the backend. Whether anything moved.
    ///
    /// # Errors
    /// What they did wrong.
    pub fn run(&mut self) -> Result<bool, Trouble> {
        let mut any = false;
        for _ in 0..TURNS_MAX {
            let mut moved = self.peer.poll() == Progress::Busy;
            moved |= self.take_events();
            moved |= self.serve_map();
            moved |= self.serve_mapper();
            moved |= self.serve_objects();
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

    fn take_events(&mut self) -> bool {
        let mut any = false;
        for handle in self.handles.clone() {
            while let Some(event) = self.peer.next_event(handle) {
                any = true;
                match event {
                    VolumeEvent::Done { cookie, result } => {
                        self.results.insert(cookie, result);
                    }
                    VolumeEvent::Opened { result } => {
                        self.opened.insert(handle, result);
                    }
                    VolumeEvent::Closed { result } => {
                        self.handles.remove(&handle);
                        self.closed.insert(handle, result);
                    }
                    VolumeEvent::Resized { .. } => {}
                }
            }
        }
        while let Some(ControlEvent::SnapshotDone { token, result, .. }) =
            self.peer.next_control_event()
        {
            any = true;
            self.snapshots.insert(token, result);
        }
        any
    }

    /// Passes on what the volume peer asks of the mapper.
    fn serve_map(&mut self) -> bool {
        let mut any = false;
        while let Some(entry) = self.map_server.accept() {
            any = true;
            let request = MapRequest::decode(&entry).expect("the volume peer speaks the protocol");
            let lineage = self.sessions.get(&request.handle);
            if let (MapOp::Close, Some(lineage)) = (request.op, lineage) {
                self.writing.remove(lineage);
            }
            let carried = self.carried(&request);
            self.asked.insert(entry.tag, request);
            self.mapper.map_request(CLIENT, entry.tag, request, carried);
        }
        any
    }

    fn carried(&self, request: &MapRequest) -> Carried {
        if request.op != MapOp::FlushCommit || request.len == 0 {
            return Carried::default();
        }
        let mut area = vec![0; usize::try_from(request.len).expect("an area is small")];
        let arena = self.map_server.regions().get(RegionId::ARENA);
        arena
            .expect("a channel has an arena")
            .read(request.offset, &mut area)
            .expect("areas lie in the arena");
        Carried::new(area).expect("the volume peer hands over whole areas")
    }

    /// Carries out what the mapper asks for.
    fn serve_mapper(&mut self) -> bool {
        let mut any = false;
        while let Some(effect) = self.mapper.next_effect() {
            any = true;
            match effect {
                Effect::Object { id, request, data } => {
                    self.memory
                        .write(0, &data)
                        .expect("the mapper's requests are small");
                    let span = self.memory.span(0, u64::from(request.len));
                    let span = span.expect("the mapper's requests are small");
                    self.begin(Owner::Mapper(id), request, &[span]);
                }
                Effect::MapReply { tag, reply, .. } => {
                    if let Some(request) = self.asked.remove(&tag) {
                        self.look_at(&request, &reply);
                        self.map_server.complete(reply.encode(tag));
                    }
                }
                Effect::CatalogueReply { tag, reply } => drop(self.catalogues.insert(tag, reply)),
            }
        }
        any
    }

    fn look_at(&mut self, request: &MapRequest, reply: &MapReply) {
        let Ok(result) = reply.result else { return };
        match request.op {
            MapOp::Open => {
                let [high, low] = request.operand;
                let lineage = Lineage::from_words(high, low);
                self.sessions.insert(result, lineage);
                if request.flags & FLAG_WRITE != 0 {
                    self.writing.insert(lineage);
                }
            }
            MapOp::Close | MapOp::Abandon => drop(self.sessions.remove(&request.handle)),
            MapOp::SnapshotBegin => drop(self.begun.insert(request.operand[0])),
            MapOp::Locate if reply.placement() == Some(Placement::First) => {
                let lineage = self.sessions[&request.handle];
                let id = ObjectId::data(lineage, Epoch(reply.values[0]));
                self.check_fresh(id, request.offset, u64::from(result));
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

    /// Passes on what the volume peer asks of the backend.
    fn serve_objects(&mut self) -> bool {
        let mut any = false;
        while let Some(entry) = self.object_server.accept() {
            any = true;
            let request =
                ObjectRequest::decode(&entry).expect("the volume peer speaks the protocol");
            let memory = request.memory;
            assert_eq!(memory.count, 0, "requests here have one segment");
            let region = self.object_server.regions().get(RegionId(memory.region));
            let span = region
                .and_then(|region| region.span(memory.offset, u64::from(request.len)).ok())
                .expect("the volume peer names memory that it has");
            self.begin(Owner::Volume(entry.tag), request, &[span]);
        }
        any
    }

    fn begin(&mut self, owner: Owner, request: ObjectRequest, memory: &[xseg::Span]) {
        let ticket = self.ticket();
        let moves = matches!(
            request.op,
            ObjectOp::Read
                | ObjectOp::Write
                | ObjectOp::CompareAndSwap
                | ObjectOp::ReadSwapped
                | ObjectOp::List
        );
        self.backend
            .start(ticket, &request, if moves { memory } else { &[] });
        self.calls.insert(ticket, (owner, request));
        let changes = !matches!(
            request.op,
            ObjectOp::Read | ObjectOp::ReadSwapped | ObjectOp::List | ObjectOp::Stat
        );
        if changes && self.points.is_some() {
            let point = self.crash_point();
            self.points.get_or_insert_default().push(point);
        }
    }

    /// Lets the backend call number `index` among those in flight complete.
    pub fn complete(&mut self, index: usize) {
        let (ticket, reply) = self.backend.complete(index);
        let (owner, request) = self.calls.remove(&ticket).expect("every call has an owner");
        match owner {
            Owner::Mapper(id) => {
                let data = self.data_of(&request, &reply);
                self.mapper.object_done(id, reply, data);
            }
            Owner::Volume(tag) => self.object_server.complete(reply.encode(tag)),
        }
    }

    fn data_of(&self, request: &ObjectRequest, reply: &ObjectReply) -> Vec<u8> {
        let reads = matches!(
            request.op,
            ObjectOp::Read | ObjectOp::ReadSwapped | ObjectOp::List
        );
        match reply.result {
            Ok(len) if reads => self.bytes(0, len as usize),
            _ => Vec::new(),
        }
    }
}
