//! A node: a mapper, a volume peer, and what their tasks wait for.
//!
//! Invariants
//! - A mapper that died is replaced only when all that it asked of the backend has ended, as the blocker has it.
//! - What a dead mapper was asked is answered by nobody (volumes), or with [`ErrorCode::Unavailable`] (names).

use std::collections::{BTreeMap, BTreeSet};

use archipelago_doubles::MemoryJournals;
use archipelago_mapper::{ClientId, Effect, EffectId, Mapper};
use archipelago_protocol::carry::{AREA_LEN, Carried};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::error::{Error, ErrorCode};
use archipelago_protocol::ids::Lineage;
use archipelago_protocol::map::{MapOp, MapReply, MapRequest};
use archipelago_protocol::object::{ObjectReply, ObjectRequest};
use archipelago_protocol::volume::{
    OpenMode, Segment, VolumeEvent, VolumeHandle, VolumeInfo, VolumeOp, VolumeRequest, Volumes,
};
use archipelago_runtime::{Peer, Progress};
use archipelago_volume::{ControlEvent, VolumePeer};
use xseg::local::{LocalClient, LocalServer};
use xseg::{Region, RegionId, ServerPort, Span};

use crate::journal;
use crate::memory::{Memory, MemoryPool};
use crate::port::MapPort;
use crate::trouble::Trouble;

/// The volume peer's connection.
const CLIENT: ClientId = ClientId(1);
/// Requests in flight on a channel.
const CHANNEL_LEN: usize = 256;
/// Bytes of the blocker channel's arena: some cells.
const ARENA_LEN: usize = 64 << 10;

/// Who waits for a backend call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Owner {
    /// The mapper of this incarnation.
    Mapper(u64, EffectId),
    /// The volume peer, by the tag of its submission.
    Volume(u64),
}

/// A request of a node to the backend.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) owner: Owner,
    pub(crate) request: ObjectRequest,
    /// What the mapper writes; the volume peer's bytes are in `memory`.
    pub(crate) data: Vec<u8>,
    pub(crate) memory: Option<Span>,
}

/// What the mapper answered.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) request: MapRequest,
    pub(crate) reply: MapReply,
    /// Whose session it was.
    pub(crate) lineage: Option<Lineage>,
}

/// The two peers of a node.
#[derive(Debug)]
pub struct Node {
    owner: u128,
    mapper: Option<Mapper>,
    incarnation: u64,
    peer: VolumePeer<MapPort, LocalClient>,
    map_server: LocalServer,
    object_server: LocalServer,
    guest: RegionId,
    pub(crate) journals: MemoryJournals,
    next: u64,
    /// Calls of the mapper that the backend has not answered, of dead mappers too.
    mapper_calls: usize,
    /// Requests to the mapper that it has not answered, by tag.
    asked: BTreeMap<u64, MapRequest>,
    asked_names: BTreeSet<u64>,
    /// Lineages by the mapper's handle.
    sessions: BTreeMap<u32, Lineage>,
    /// Volumes whose end may be clean already: they were asked to close.
    pub(crate) closing: BTreeSet<Lineage>,
    handles: BTreeSet<VolumeHandle>,
    results: BTreeMap<u64, Result<(), ErrorCode>>,
    opened: BTreeMap<VolumeHandle, Result<VolumeInfo, Error>>,
    closed: BTreeMap<VolumeHandle, Result<(), Error>>,
    catalogues: BTreeMap<u64, CatalogueReply>,
    begun: BTreeSet<u64>,
    snapshots: BTreeMap<u64, Result<(), Error>>,
    pool: MemoryPool,
    arenas: Vec<Memory>,
}

/// A channel, and its arena for as long as the node lives.
fn channel(pool: &MemoryPool, arena_len: usize) -> (LocalClient, LocalServer, Memory) {
    let arena = pool.take(arena_len);
    let (client, server) =
        xseg::local::channel_over(CHANNEL_LEN, arena.clone()).expect("a legal length");
    (client, server, arena)
}

fn map_channel(pool: &MemoryPool) -> (LocalClient, LocalServer, Memory) {
    channel(pool, usize::try_from(AREA_LEN).expect("an area is small"))
}

impl Node {
    /// Starts both peers; requests of guests name `memory`.
    pub(crate) fn start(
        owner: u128,
        journals: MemoryJournals,
        memory: &Region,
        pool: &MemoryPool,
    ) -> Self {
        let (map_client, map_server, map_arena) = map_channel(pool);
        let (object_client, object_server, object_arena) = channel(pool, ARENA_LEN);
        let mut peer =
            VolumePeer::new(MapPort::new(map_client), object_client).expect("cells fit the arena");
        let guest = peer.fresh_region();
        peer.add_region(guest, memory.clone())
            .expect("the first region");
        Node {
            owner,
            mapper: Some(journal::mapper(owner, &journals)),
            incarnation: 1,
            peer,
            map_server,
            object_server,
            guest,
            journals,
            next: 0,
            mapper_calls: 0,
            asked: BTreeMap::new(),
            asked_names: BTreeSet::new(),
            sessions: BTreeMap::new(),
            closing: BTreeSet::new(),
            handles: BTreeSet::new(),
            results: BTreeMap::new(),
            opened: BTreeMap::new(),
            closed: BTreeMap::new(),
            catalogues: BTreeMap::new(),
            begun: BTreeSet::new(),
            snapshots: BTreeMap::new(),
            pool: pool.clone(),
            arenas: vec![map_arena, object_arena],
        }
    }

    fn ticket(&mut self) -> u64 {
        self.next += 1;
        self.next
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

    /// Submits a request whose bytes are in guest memory at `area`; its cookie.
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
        match &mut self.mapper {
            Some(mapper) => {
                mapper.catalogue_request(tag, request);
                self.asked_names.insert(tag);
            }
            None => self.no_mapper(tag),
        }
        tag
    }

    /// The answer about names.
    pub fn take_catalogue(&mut self, tag: u64) -> Option<CatalogueReply> {
        self.catalogues.remove(&tag)
    }

    /// Checkpoints of volumes so far.
    #[must_use]
    pub fn checkpoints(&self) -> u64 {
        let mapper = self.mapper.as_ref();
        mapper.map_or(0, |mapper| mapper.counters().checkpoints)
    }

    /// Has the mapper drop what is not durable, of all sessions: what a failed sync means.
    pub(crate) fn abandon(&mut self) {
        for handle in std::mem::take(&mut self.sessions).into_keys() {
            let tag = self.ticket();
            let request = MapRequest::new(MapOp::Abandon, handle);
            if let Some(mapper) = &mut self.mapper {
                mapper.map_request(CLIENT, tag, request, Carried::default());
            }
        }
    }

    fn no_mapper(&mut self, tag: u64) {
        let error = Error::new(ErrorCode::Unavailable, "the mapper died");
        self.catalogues.insert(tag, CatalogueReply::Failed(error));
    }

    /// The mapper's process dies; the volume peer's lives.
    pub(crate) fn kill_mapper(&mut self) {
        self.mapper = None;
        self.peer.ports_mut().0.disconnect();
        self.asked.clear();
        self.sessions.clear();
        self.closing.clear();
        for tag in std::mem::take(&mut self.asked_names) {
            self.no_mapper(tag);
        }
    }

    fn revive_mapper(&mut self) -> bool {
        if self.mapper.is_some() || self.mapper_calls > 0 {
            return false;
        }
        let (client, server, arena) = map_channel(&self.pool);
        self.map_server = server;
        self.arenas.push(arena);
        self.peer.ports_mut().0.reconnect(client);
        self.incarnation += 1;
        self.mapper = Some(journal::mapper(self.owner, &self.journals));
        true
    }

    // What the peers do.

    /// Lets the peers move once. Whether anything moved; what they ask of the backend and what was answered go to the end
    /// of `asked` and `told`.
    pub(crate) fn turn(&mut self, asked: &mut Vec<Asked>, told: &mut Vec<Told>) -> bool {
        let mut moved = self.revive_mapper();
        moved |= self.peer.poll() == Progress::Busy;
        moved |= self.take_events();
        moved |= self.serve_map();
        moved |= self.serve_mapper(asked, told);
        moved | self.serve_objects(asked)
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
                        if result.is_err() {
                            self.handles.remove(&handle);
                        }
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
        while self.mapper.is_some()
            && let Some(entry) = self.map_server.accept()
        {
            any = true;
            let request = MapRequest::decode(&entry).expect("the volume peer speaks the protocol");
            if let (MapOp::Close, Some(lineage)) = (request.op, self.sessions.get(&request.handle))
            {
                self.closing.insert(*lineage);
            }
            let carried = self.carried(&request);
            self.asked.insert(entry.tag, request);
            if let Some(mapper) = &mut self.mapper {
                mapper.map_request(CLIENT, entry.tag, request, carried);
            }
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
    fn serve_mapper(&mut self, asked: &mut Vec<Asked>, told: &mut Vec<Told>) -> bool {
        let mut any = false;
        while let Some(effect) = self.mapper.as_mut().and_then(Mapper::next_effect) {
            any = true;
            match effect {
                Effect::Object { id, request, data } => {
                    self.mapper_calls += 1;
                    asked.push(Asked {
                        owner: Owner::Mapper(self.incarnation, id),
                        request,
                        data,
                        memory: None,
                    });
                }
                Effect::MapReply { tag, reply, .. } => {
                    if let Some(request) = self.asked.remove(&tag) {
                        told.push(self.note(request, reply));
                        self.map_server.complete(reply.encode(tag));
                    }
                }
                Effect::CatalogueReply { tag, reply } => {
                    self.asked_names.remove(&tag);
                    self.catalogues.insert(tag, reply);
                }
            }
        }
        any
    }

    fn note(&mut self, request: MapRequest, reply: MapReply) -> Told {
        let mut lineage = self.sessions.get(&request.handle).copied();
        if let (MapOp::Close | MapOp::Abandon, Some(lineage)) = (request.op, lineage) {
            self.closing.remove(&lineage);
        }
        match (request.op, reply.result) {
            (MapOp::Open, Ok(handle)) => {
                let [high, low] = request.operand;
                lineage = Some(Lineage::from_words(high, low));
                self.sessions.insert(handle, Lineage::from_words(high, low));
            }
            (MapOp::Close | MapOp::Abandon, Ok(_)) => drop(self.sessions.remove(&request.handle)),
            (MapOp::SnapshotBegin, Ok(_)) => drop(self.begun.insert(request.operand[0])),
            _ => {}
        }
        Told {
            request,
            reply,
            lineage,
        }
    }

    /// Passes on what the volume peer asks of the backend.
    fn serve_objects(&mut self, asked: &mut Vec<Asked>) -> bool {
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
            asked.push(Asked {
                owner: Owner::Volume(entry.tag),
                request,
                data: Vec::new(),
                memory: Some(span),
            });
        }
        any
    }

    /// The backend's answer; `data` is what the mapper reads.
    pub(crate) fn answer(&mut self, owner: Owner, reply: ObjectReply, data: Vec<u8>) {
        match owner {
            Owner::Mapper(incarnation, id) => {
                self.mapper_calls -= 1;
                if let Some(mapper) = &mut self.mapper
                    && incarnation == self.incarnation
                {
                    mapper.object_done(id, reply, data);
                }
            }
            Owner::Volume(tag) => self.object_server.complete(reply.encode(tag)),
        }
    }
}
