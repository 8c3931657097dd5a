//! A node: the production peers over local channels, and what tasks wait for.
//!
//! Invariants
//! - The peers have their turns in one order: volume peer, mapper, blocker.
//! - A mapper that died is replaced only when its channel to the blocker is idle: all that it asked for has ended.
//! - What a dead mapper was asked is answered by nobody (volumes), or with [`ErrorCode::Unavailable`] (names).

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use archipelago_blocker::{BlockerPeer, ChannelId, Rights};
use archipelago_doubles::MemoryJournals;
use archipelago_mapper::MapperPeer;
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::error::{Error, ErrorCode};
use archipelago_protocol::ids::Lineage;
use archipelago_protocol::journaled::AREA_LEN;
use archipelago_protocol::object::ObjectReply;
use archipelago_protocol::volume::{
    OpenMode, Segment, VolumeEvent, VolumeHandle, VolumeInfo, VolumeOp, VolumeRequest, Volumes,
};
use archipelago_runtime::{Peer, Progress};
use archipelago_volume::{ControlEvent, VolumePeer};
use xseg::local::{LocalClient, LocalServer};
use xseg::{Region, RegionId};

use crate::journal;
use crate::memory::{Memory, MemoryPool};
use crate::port::MapPort;
use crate::storage::{BackendCall, Storage};
use crate::trouble::Trouble;
use crate::witness::{Answered, Sessions, Witness};

/// Bytes of the page of a status: three runs, so that a volume takes several.
pub(crate) const STATUS_PAGE_LEN: u32 = 24;
/// Requests in flight on a channel.
const CHANNEL_LEN: usize = 256;
/// Bytes of the arena of the volume peer's channel to the blocker: some cells.
const VOLUME_ARENA_LEN: usize = 64 << 10;
/// Bytes of the mapper's: two of its longest requests, so that others wait, and memory is used again.
const MAPPER_ARENA_LEN: usize = 2 * journal::IO_LEN_MAX;

/// Counts the mappers that are started, of all nodes. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Starts(Rc<Cell<u128>>);

impl Starts {
    /// When so many were started.
    pub(crate) fn after(count: u128) -> Self {
        Starts(Rc::new(Cell::new(count)))
    }

    pub(crate) fn count(&self) -> u128 {
        self.0.get()
    }

    /// The number of one that starts now.
    fn next(&self) -> u128 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

/// The peers of a node.
#[derive(Debug)]
pub struct Node {
    starts: Starts,
    peer: VolumePeer<MapPort, LocalClient>,
    mapper: Option<MapperPeer<Witness, LocalClient>>,
    blocker: BlockerPeer<Storage, LocalServer>,
    storage: Storage,
    sessions: Sessions,
    /// The mapper's channel to the blocker.
    mapper_channel: ChannelId,
    guest: RegionId,
    journals: MemoryJournals,
    next: u64,
    /// What tasks wait for, by the tag of the mapper's catalogue.
    asked_names: BTreeMap<u64, u64>,
    handles: BTreeSet<VolumeHandle>,
    outcomes: Outcomes,
    arenas: Arenas,
}

/// What has come and was not fetched yet.
#[derive(Debug, Default)]
struct Outcomes {
    results: BTreeMap<u64, Result<(), ErrorCode>>,
    opened: BTreeMap<VolumeHandle, Result<VolumeInfo, Error>>,
    closed: BTreeMap<VolumeHandle, Result<(), Error>>,
    catalogues: BTreeMap<u64, CatalogueReply>,
    snapshots: BTreeMap<u64, Result<(), Error>>,
}

/// The arenas of a node's channels, for as long as it lives.
#[derive(Debug)]
struct Arenas {
    pool: MemoryPool,
    taken: Vec<Memory>,
}

impl Arenas {
    fn channel(&mut self, arena_len: usize) -> (LocalClient, LocalServer) {
        let arena = self.pool.take(arena_len);
        let region = arena.clone();
        self.taken.push(arena);
        xseg::local::channel_over(CHANNEL_LEN, region).expect("a legal length")
    }

    fn map_channel(&mut self) -> (LocalClient, LocalServer) {
        self.channel(usize::try_from(AREA_LEN).expect("an area is small"))
    }
}

impl Node {
    /// Starts both peers on a backend with `capabilities`; requests of guests name `memory`.
    pub(crate) fn start(
        starts: &Starts,
        journals: MemoryJournals,
        memory: &Region,
        pool: &MemoryPool,
        capabilities: Capabilities,
    ) -> Self {
        let mut arenas = Arenas {
            pool: pool.clone(),
            taken: Vec::new(),
        };
        let (map_client, map_server) = arenas.map_channel();
        let (object_client, object_server) = arenas.channel(VOLUME_ARENA_LEN);
        let mut peer =
            VolumePeer::new(MapPort::new(map_client), object_client).expect("cells fit the arena");
        let guest = peer.fresh_region();
        peer.add_region(guest, memory.clone())
            .expect("the first region");
        let (storage, sessions) = (Storage::new(capabilities), Sessions::default());
        let mut blocker = BlockerPeer::new(storage.clone());
        blocker.add_channel(object_server, Rights::Data);
        let (mapper_client, mapper_server) = arenas.channel(MAPPER_ARENA_LEN);
        let mapper_channel = blocker.add_channel(mapper_server, Rights::All);
        let mut node = Node {
            starts: starts.clone(),
            peer,
            mapper: None,
            blocker,
            storage,
            sessions,
            mapper_channel,
            guest,
            journals,
            next: 0,
            asked_names: BTreeMap::new(),
            handles: BTreeSet::new(),
            outcomes: Outcomes::default(),
            arenas,
        };
        node.start_mapper(map_server, mapper_client);
        node
    }

    fn start_mapper(&mut self, map_server: LocalServer, blocker: LocalClient) {
        let mapper = journal::mapper(self.starts.next(), &self.journals);
        let mut mapper = MapperPeer::new(mapper, blocker);
        let server = Witness::new(map_server, &self.sessions);
        mapper.add_channel(server, archipelago_mapper::Rights::All);
        self.mapper = Some(mapper);
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
        self.outcomes.opened.remove(&handle)
    }

    /// Starts to close a volume.
    pub fn close(&mut self, handle: VolumeHandle) {
        self.peer.close(handle);
    }

    /// The answer to a close.
    pub fn take_closed(&mut self, handle: VolumeHandle) -> Option<Result<(), Error>> {
        self.outcomes.closed.remove(&handle)
    }

    /// Submits a request whose bytes, or whose page, are in guest memory at `area`; its cookie.
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
        let memory_len = match op {
            VolumeOp::BlockStatus => STATUS_PAGE_LEN,
            _ => u32::try_from(len).expect("requests are small"),
        };
        let segment = area.map(|area| Segment {
            region: self.guest.0,
            len: memory_len,
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
        self.outcomes.results.remove(&cookie)
    }

    /// Starts a snapshot of an open volume.
    pub fn snapshot(&mut self, lineage: Lineage, token: u64) {
        self.peer.snapshot(lineage, token, token);
    }

    /// Whether the snapshot's epoch has begun.
    #[must_use]
    pub fn has_begun(&self, token: u64) -> bool {
        self.sessions.has_begun(token) || self.outcomes.snapshots.contains_key(&token)
    }

    /// The answer to a snapshot.
    pub fn take_snapshot(&mut self, token: u64) -> Option<Result<(), Error>> {
        self.outcomes.snapshots.remove(&token)
    }

    /// The volume has another size.
    pub fn resized(&mut self, lineage: Lineage, size: u64) {
        self.peer.resized(lineage, size);
    }

    /// Asks about names.
    pub fn ask_catalogue(&mut self, request: CatalogueRequest) -> u64 {
        let tag = self.ticket();
        match &mut self.mapper {
            Some(mapper) => drop(self.asked_names.insert(mapper.ask(request), tag)),
            None => self.no_mapper(tag),
        }
        tag
    }

    /// The answer about names.
    pub fn take_catalogue(&mut self, tag: u64) -> Option<CatalogueReply> {
        self.outcomes.catalogues.remove(&tag)
    }

    /// Checkpoints of volumes so far.
    #[must_use]
    pub fn checkpoints(&self) -> u64 {
        let mapper = self.mapper.as_ref();
        mapper.map_or(0, |mapper| mapper.mapper().counters().checkpoints)
    }

    /// Has the mapper drop what is not durable, of all sessions: what a failed sync means.
    pub(crate) fn abandon(&mut self) {
        self.sessions.abandon();
    }

    /// Whether the volume's end may be clean already: it was asked to close.
    pub(crate) fn is_closing(&self, lineage: Lineage) -> bool {
        self.sessions.is_closing(lineage)
    }

    /// The journals as they are now.
    pub(crate) fn journals(&self) -> MemoryJournals {
        self.journals.snapshot()
    }

    fn no_mapper(&mut self, tag: u64) {
        let error = Error::new(ErrorCode::Unavailable, "the mapper died");
        self.outcomes
            .catalogues
            .insert(tag, CatalogueReply::Failed(error));
    }

    /// The mapper's process dies; the volume peer's lives.
    pub(crate) fn kill_mapper(&mut self) {
        self.mapper = None;
        self.peer.ports_mut().0.disconnect();
        self.sessions.forget();
        for tag in std::mem::take(&mut self.asked_names).into_values() {
            self.no_mapper(tag);
        }
    }

    /// Whether a mapper that died can be replaced.
    fn may_revive(&self) -> bool {
        self.mapper.is_none() && self.blocker.channel_idle(self.mapper_channel)
    }

    fn revive_mapper(&mut self) {
        let (map_client, map_server) = self.arenas.map_channel();
        let (mapper_client, mapper_server) = self.arenas.channel(MAPPER_ARENA_LEN);
        self.mapper_channel = self.blocker.add_channel(mapper_server, Rights::All);
        self.peer.ports_mut().0.reconnect(map_client);
        self.start_mapper(map_server, mapper_client);
    }

    // What the peers do.

    /// Lets each peer have its turn. Whether anything moved.
    pub(crate) fn turn(&mut self) -> bool {
        if self.may_revive() {
            self.revive_mapper();
        }
        let mut moved = self.peer.poll() == Progress::Busy;
        moved |= self.take_events();
        moved |= self.poll_mapper();
        moved |= self.blocker.poll() == Progress::Busy;
        moved || self.may_revive()
    }

    /// What the blocker asked of the backend since this was asked before.
    pub(crate) fn take_calls(&mut self) -> Vec<BackendCall> {
        self.storage.take_started()
    }

    /// What the mapper answered to the volume peer since this was asked before.
    pub(crate) fn take_answered(&mut self) -> Vec<Answered> {
        self.sessions.take_answered()
    }

    /// The backend's answer to a call.
    pub(crate) fn answer(&mut self, ticket: u64, reply: ObjectReply) {
        self.storage.reply(ticket, reply);
    }

    fn poll_mapper(&mut self) -> bool {
        let Some(mapper) = &mut self.mapper else {
            return false;
        };
        let moved = mapper.poll() == Progress::Busy;
        while let Some((tag, reply)) = mapper.next_reply() {
            if let Some(ticket) = self.asked_names.remove(&tag) {
                self.outcomes.catalogues.insert(ticket, reply);
            }
        }
        moved
    }

    fn take_events(&mut self) -> bool {
        let mut any = false;
        for handle in self.handles.clone() {
            while let Some(event) = self.peer.next_event(handle) {
                any = true;
                match event {
                    VolumeEvent::Done { cookie, result } => {
                        self.outcomes.results.insert(cookie, result);
                    }
                    VolumeEvent::Opened { result } => {
                        if result.is_err() {
                            self.handles.remove(&handle);
                        }
                        self.outcomes.opened.insert(handle, result);
                    }
                    VolumeEvent::Closed { result } => {
                        self.handles.remove(&handle);
                        self.outcomes.closed.insert(handle, result);
                    }
                    VolumeEvent::Resized { .. } => {}
                }
            }
        }
        while let Some(ControlEvent::SnapshotDone { token, result, .. }) =
            self.peer.next_control_event()
        {
            any = true;
            self.outcomes.snapshots.insert(token, result);
        }
        any
    }
}
