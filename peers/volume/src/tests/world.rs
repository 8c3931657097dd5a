//! A volume peer between a test's guest, the fake mapper and the fake blocker; what the guest reads is checked against its
//! [`History`].

use archipelago_protocol::journaled::{AREA_LEN, JournaledBlockId, JournaledData};
use archipelago_protocol::map::{MapOp, MapReply, MapRequest};
use archipelago_protocol::object::{ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::status::{BlockState, STATUS_PAGE_MAX, StatusPage, StatusRun};
use archipelago_protocol::volume::{
    OpenMode, Segment, VolumeEvent, VolumeHandle, VolumeOp, VolumeRequest, Volumes,
};
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode};
use archipelago_runtime::Peer;
use xseg::{Region, RegionId};

use super::fakes::{Block, FakeBlocker, FakeMapper, OWN, PARENT};
use super::history::History;
use super::wire::TestPort;
use crate::{ControlEvent, VolumePeer};

pub(crate) const SECTOR: u64 = 512;
/// Bytes of guest memory for each request.
pub(crate) const AREA: u64 = 256 << 10;
/// Requests that a test has in flight.
pub(crate) const AREAS: u64 = 16;
/// Two and a half objects, and a block that is not whole.
pub(crate) const SIZE: u64 = (160 << 10) + 3 * SECTOR;

/// A request in flight.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    op: VolumeOp,
    offset: u64,
    len: u64,
    submitted: u64,
    segments: Vec<Segment>,
}

pub(crate) struct World {
    pub(crate) peer: VolumePeer<TestPort, TestPort>,
    pub(crate) map_port: TestPort,
    pub(crate) object_port: TestPort,
    pub(crate) mapper: FakeMapper,
    pub(crate) blocker: FakeBlocker,
    pub(crate) handle: VolumeHandle,
    guest: Region,
    history: History,
    pub(crate) now: u64,
    pub(crate) pending: Vec<Option<Pending>>,
    pub(crate) results: Vec<(u64, Result<(), ErrorCode>)>,
    pub(crate) events: Vec<VolumeEvent>,
    /// Submission of the last flush that was answered well.
    flushed: u64,
    snapshot_asked: Vec<(u64, u64)>,
    snapshot_begun: Vec<(u64, u64)>,
    frozen: Vec<(Vec<Block>, Vec<u8>)>,
    pub(crate) control: Vec<ControlEvent>,
    /// What status requests were answered.
    pub(crate) statuses: Vec<Vec<StatusRun>>,
    pub(crate) map_log: Vec<MapRequest>,
    pub(crate) object_log: Vec<ObjectRequest>,
    /// Whether opening after a death syncs the pool, as a real mapper does.
    pub(crate) recovery_syncs: bool,
}

impl World {
    /// A world whose volume is a clone: every third block is in the parent, and which are zero is known.
    pub(crate) fn new(credits: usize, arena_len: usize) -> Self {
        Self::with_areas(credits, arena_len, 0)
    }

    /// The same, with room for the journaled data of so many flushes.
    pub(crate) fn with_areas(credits: usize, arena_len: usize, areas: usize) -> Self {
        let area_len = usize::try_from(AREA_LEN).unwrap();
        let map_port = TestPort::new(credits, 4096 + areas * area_len);
        let object_port = TestPort::new(credits, arena_len);
        let mut peer = VolumePeer::new(map_port.clone(), object_port.clone()).unwrap();
        let blocks = usize::try_from(SIZE.div_ceil(BLOCK_SIZE)).unwrap();
        let sectors = usize::try_from(SIZE / SECTOR).unwrap();
        let mut blocker = FakeBlocker {
            capacity: blocks * 4096,
            ..FakeBlocker::default()
        };
        let live: Vec<Block> = (0..blocks)
            .map(|block| (block % 3 == 0).then_some((PARENT, Epoch(3))))
            .collect();
        let mut values = vec![0; sectors];
        let parent = blocker.container(PARENT, Epoch(3));
        for (sector, first) in (0u64..).zip(&mut values) {
            let at = usize::try_from(sector * SECTOR).unwrap();
            // What stands in the parent where the map does not point is never seen.
            let value = 1_000_000 + sector;
            parent.live[at..at + 512].copy_from_slice(&value.to_le_bytes().repeat(64));
            if live[at / 4096].is_some() {
                *first = value;
            }
        }
        blocker.sync_all();
        let guest = Region::anonymous(usize::try_from(AREA * AREAS).unwrap()).unwrap();
        let region = peer.fresh_region();
        assert_eq!(region, RegionId(1));
        peer.add_region(region, guest.clone()).unwrap();
        let handle = peer.open(OWN, OpenMode::Exclusive);
        World {
            peer,
            map_port,
            object_port,
            mapper: FakeMapper::new(SIZE, live),
            blocker,
            handle,
            guest,
            history: History::new(values.into_iter()),
            now: 1,
            pending: vec![None; usize::try_from(AREAS).unwrap()],
            results: Vec::new(),
            events: Vec::new(),
            flushed: 0,
            snapshot_asked: Vec::new(),
            snapshot_begun: Vec::new(),
            frozen: Vec::new(),
            control: Vec::new(),
            statuses: Vec::new(),
            map_log: Vec::new(),
            object_log: Vec::new(),
            recovery_syncs: true,
        }
    }

    /// The same, opened.
    pub(crate) fn opened() -> Self {
        let mut world = World::new(64, 1 << 20);
        world.settle();
        assert!(matches!(
            world.events.pop(),
            Some(VolumeEvent::Opened { result: Ok(_) })
        ));
        world.map_log.clear();
        world
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Submits a request; `cuts` are places where its memory is cut into segments. `None`: no room.
    pub(crate) fn submit(
        &mut self,
        op: VolumeOp,
        offset: u64,
        len: u64,
        cuts: &[u64],
    ) -> Option<u64> {
        let area = self.pending.iter().position(Option::is_none)? as u64;
        let value = self.tick();
        // A status has its page in memory, of as many runs as it has sectors, within what a page may have.
        let memory = match op {
            VolumeOp::BlockStatus => (len / SECTOR * 8).min(STATUS_PAGE_MAX.into()),
            _ => len,
        };
        let mut bounds: Vec<u64> = cuts
            .iter()
            .copied()
            .filter(|cut| *cut < memory)
            .chain([0, memory])
            .collect();
        bounds.sort_unstable();
        bounds.dedup();
        // Segments lie apart, in reverse order, so that a confusion of their offsets shows.
        let mut at = AREA;
        let mut segments = Vec::new();
        for pair in bounds.windows(2) {
            let len = pair[1] - pair[0];
            at -= len + 1;
            let offset = area * AREA + at;
            segments.push(Segment {
                region: 1,
                len: u32::try_from(len).unwrap(),
                offset,
            });
        }
        if matches!(
            op,
            VolumeOp::Flush | VolumeOp::Discard | VolumeOp::WriteZeroes { .. }
        ) {
            segments.clear();
        }
        let fill = if matches!(op, VolumeOp::Read | VolumeOp::BlockStatus) {
            u64::MAX
        } else {
            value
        };
        let bytes = fill
            .to_le_bytes()
            .repeat(usize::try_from(memory / 8).unwrap());
        let mut from = bytes.as_slice();
        for segment in &segments {
            let (now, rest) = from.split_at(segment.len as usize);
            self.guest.write(segment.offset, now).unwrap();
            from = rest;
        }
        let request = VolumeRequest {
            op,
            offset,
            len,
            segments: &segments,
        };
        match self.peer.submit(self.handle, area, request) {
            Ok(()) => {}
            Err(ErrorCode::Unavailable) => return None,
            Err(code) => panic!("{code:?}"),
        }
        let value = if matches!(op, VolumeOp::Write { .. }) {
            value
        } else {
            0
        };
        let pending = Pending {
            op,
            offset,
            len,
            submitted: self.now,
            segments,
        };
        if !matches!(op, VolumeOp::Read | VolumeOp::Flush | VolumeOp::BlockStatus) {
            for sector in offset / SECTOR..(offset + len) / SECTOR {
                self.history.submitted(sector, value, self.now);
            }
        }
        self.pending[usize::try_from(area).unwrap()] = Some(pending);
        Some(area)
    }

    /// The memory that requests name as region 1.
    pub(crate) fn guest_memory(&self) -> &Region {
        &self.guest
    }

    fn memory_of(&self, pending: &Pending) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in &pending.segments {
            let mut part = vec![0; segment.len as usize];
            self.guest.read(segment.offset, &mut part).unwrap();
            bytes.extend(part);
        }
        bytes
    }

    /// No sector is called a hole that cannot have been zeros, and neighbours differ.
    fn check_status(&mut self, pending: &Pending, now: u64) {
        let bytes = self.memory_of(pending);
        let page = StatusPage::decode(&bytes, pending.len).unwrap();
        let runs: Vec<StatusRun> = page.runs().collect();
        assert!(runs.windows(2).all(|pair| pair[0].state != pair[1].state));
        let mut at = pending.offset;
        for run in &runs {
            let end = at + run.len;
            if run.state == BlockState::Hole {
                for sector in at / SECTOR..end / SECTOR {
                    self.history
                        .check("hole", sector, &[0; 512], pending.submitted, now);
                }
            }
            at = end;
        }
        self.statuses.push(runs);
    }

    fn done(&mut self, area: u64, result: Result<(), ErrorCode>) {
        let pending = self.pending[usize::try_from(area).unwrap()]
            .take()
            .expect("answered once");
        let now = self.tick();
        self.results.push((area, result));
        let sectors = pending.offset / SECTOR..(pending.offset + pending.len) / SECTOR;
        match pending.op {
            VolumeOp::Read if result.is_ok() => {
                let bytes = self.memory_of(&pending);
                for (sector, bytes) in sectors.zip(bytes.chunks(512)) {
                    self.history
                        .check("read", sector, bytes, pending.submitted, now);
                }
            }
            VolumeOp::BlockStatus if result.is_ok() => self.check_status(&pending, now),
            VolumeOp::Read | VolumeOp::BlockStatus => {}
            VolumeOp::Flush => {
                if result.is_ok() {
                    self.flushed = self.flushed.max(pending.submitted);
                    self.check_durable(pending.submitted);
                }
            }
            _ => {
                for sector in sectors {
                    self.history
                        .answered(sector, pending.submitted, now, result.is_ok());
                }
                let durable = matches!(
                    pending.op,
                    VolumeOp::Write { durable: true } | VolumeOp::WriteZeroes { durable: true, .. }
                );
                if durable && result.is_ok() {
                    self.check_durable(pending.submitted);
                    self.check_range_durable(&pending, now);
                }
            }
        }
    }

    fn image(&self, map: &[Block], durable: bool) -> Vec<u8> {
        let mut image = vec![0; map.len() * 4096];
        for (block, place) in map.iter().enumerate() {
            let Some(container) = place.and_then(|place| self.blocker.containers.get(&place))
            else {
                continue;
            };
            let from = if durable {
                &container.durable
            } else {
                &container.live
            };
            let mut from = &from[block * 4096..][..4096];
            // As a recovery would find it.
            if let Some((OWN, epoch)) = place
                && durable
            {
                let of = JournaledBlockId {
                    epoch: *epoch,
                    block: block as u64,
                };
                from = self.mapper.journaled.get(&of).map_or(from, Vec::as_slice);
            }
            image[block * 4096..][..4096].copy_from_slice(from);
        }
        image
    }

    /// A power cut now would leave everything that was answered before `begun`.
    fn check_durable(&self, begun: u64) {
        let image = self.image(&self.mapper.logged, true);
        self.history.check_image("durable", &image, begun, u64::MAX);
    }

    /// The write itself, as of now, is durable.
    fn check_range_durable(&self, pending: &Pending, now: u64) {
        let image = self.image(&self.mapper.logged, true);
        for sector in pending.offset / SECTOR..(pending.offset + pending.len) / SECTOR {
            self.history
                .check_reached(sector, &image, pending.submitted, now);
        }
    }

    /// Polls the peer once and takes its events.
    pub(crate) fn poll(&mut self) -> bool {
        let progress = self.peer.poll();
        while let Some(event) = self.peer.next_event(self.handle) {
            match event {
                VolumeEvent::Done { cookie, result } => self.done(cookie, result),
                other => self.events.push(other),
            }
        }
        while let Some(event) = self.peer.next_control_event() {
            self.control.push(event);
        }
        progress == archipelago_runtime::Progress::Busy
    }

    /// The mapper answers its request number `index`, with `fault` instead of doing it if there is one.
    pub(crate) fn map_step(&mut self, index: usize, fault: Option<ErrorCode>) {
        let wire = std::rc::Rc::clone(&self.map_port.wire);
        let entry = wire.borrow().queue[index].1;
        let request = MapRequest::decode(&entry).unwrap();
        self.map_log.push(request);
        let reply = match fault {
            Some(code) => MapReply::failed(code),
            None => {
                if request.op == MapOp::Open && self.mapper.live != self.mapper.logged {
                    self.mapper.logged = self.mapper.live.clone();
                    if self.recovery_syncs {
                        self.blocker.sync_all();
                    }
                }
                if request.op == MapOp::Open && !self.mapper.journaled.is_empty() {
                    self.mapper.journaled.clear();
                    self.blocker.sync_all();
                }
                self.mapper.serve(&request, &self.journaled(&request))
            }
        };
        let now = self.tick();
        match (request.op, fault) {
            (MapOp::SnapshotBegin, None) => self.snapshot_begun.push((request.operand[0], now)),
            (MapOp::SnapshotCommit, None) => self.check_snapshot(request.operand[0]),
            (MapOp::Abandon, None) => {
                self.blocker.lose();
                let journaled = std::mem::take(&mut self.mapper.journaled);
                self.blocker.bring_home(journaled);
                self.history.lose(self.flushed);
            }
            _ => {}
        }
        wire.borrow_mut().answer(index, reply.encode(entry.tag));
    }

    /// The mapper answers its first request with `reply`, whatever it asks.
    pub(crate) fn map_answer(&mut self, reply: &MapReply) {
        let wire = std::rc::Rc::clone(&self.map_port.wire);
        let tag = wire.borrow().queue[0].1.tag;
        wire.borrow_mut().answer(0, reply.encode(tag));
    }

    /// The journaled data of a request to the mapper.
    fn journaled(&self, request: &MapRequest) -> JournaledData {
        if request.op != MapOp::FlushCommit {
            return JournaledData::default();
        }
        let wire = self.map_port.wire.borrow();
        let mut area = vec![0; usize::try_from(request.len).unwrap()];
        let arena = wire.regions.get(RegionId::ARENA).unwrap();
        arena.read(request.offset, &mut area).unwrap();
        JournaledData::new(area).unwrap()
    }

    /// The blocker answers its request number `index`.
    pub(crate) fn object_step(&mut self, index: usize, fault: Option<ErrorCode>) {
        let wire = std::rc::Rc::clone(&self.object_port.wire);
        let entry = wire.borrow().queue[index].1;
        let request = wire.borrow().object_request(&entry);
        self.object_log.push(request);
        let reply = match fault {
            Some(code) => ObjectReply::failed(code),
            None => self.blocker.serve(&request, &wire.borrow().regions),
        };
        wire.borrow_mut().answer(index, reply.encode(entry.tag));
    }

    pub(crate) fn map_waiting(&self) -> usize {
        self.map_port.wire.borrow().queue.len()
    }

    pub(crate) fn object_waiting(&self) -> usize {
        self.object_port.wire.borrow().queue.len()
    }

    /// The index of the first request of `op` that waits for the blocker.
    pub(crate) fn object_index(&self, op: ObjectOp) -> Option<usize> {
        let wire = self.object_port.wire.borrow();
        wire.queue
            .iter()
            .position(|(_, entry)| wire.object_request(entry).op == op)
    }

    /// The index of the first request of `op` that waits for the mapper.
    pub(crate) fn map_index(&self, op: MapOp) -> Option<usize> {
        let wire = self.map_port.wire.borrow();
        wire.queue
            .iter()
            .position(|(_, entry)| MapRequest::decode(entry).unwrap().op == op)
    }

    /// Everything is answered in order until nothing moves.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut moved = self.poll();
            if self.map_waiting() > 0 {
                self.map_step(0, None);
                moved = true;
            }
            if self.object_waiting() > 0 {
                self.object_step(0, None);
                moved = true;
            }
            if !moved {
                return;
            }
        }
        panic!("never settles");
    }

    /// Polls and answers the mapper until only the blocker can move anything.
    pub(crate) fn settle_map(&mut self) {
        while self.poll() || self.map_waiting() > 0 {
            if self.map_waiting() > 0 {
                self.map_step(0, None);
            }
        }
    }

    /// The mapper answers one locate and the peer goes on; the blocker answers nothing.
    pub(crate) fn settle_one_locate(&mut self) {
        while self.poll() {}
        let index = self.map_index(MapOp::Locate).unwrap();
        self.map_step(index, None);
        while self.poll() {}
    }

    /// Answers the mapper's oldest request; the offset that it named.
    pub(crate) fn map_step_offset(&mut self) -> u64 {
        self.map_step(0, None);
        self.map_log.last().unwrap().offset
    }

    pub(crate) fn kill_mapper(&mut self) {
        self.map_port.wire.borrow_mut().die();
        self.mapper.restart();
    }

    pub(crate) fn revive_mapper(&mut self) {
        self.map_port.wire.borrow_mut().connected = true;
    }

    pub(crate) fn snapshot(&mut self, token: u64) {
        let now = self.tick();
        self.snapshot_asked.push((token, now));
        self.peer.snapshot(OWN, token, token + 100);
    }

    /// What the snapshot holds is durable, and is what the volume was at some moment of its making.
    fn check_snapshot(&mut self, token: u64) {
        let at = |list: &[(u64, u64)]| list.iter().rev().find(|entry| entry.0 == token).unwrap().1;
        let (asked, begun) = (at(&self.snapshot_asked), at(&self.snapshot_begun));
        let tree = self.mapper.snapshots.last().unwrap().1.clone();
        let image = self.image(&tree, true);
        self.history.check_image("snapshot", &image, asked, begun);
        self.frozen.push((tree, image));
    }

    /// Snapshots are what they were when they were made.
    pub(crate) fn check_frozen(&self) {
        for (tree, image) in &self.frozen {
            assert!(self.image(tree, false) == *image, "a snapshot has changed");
        }
    }

    /// Reads all of the volume and checks it.
    pub(crate) fn read_all(&mut self) {
        let mut at = 0;
        while at < SIZE {
            let len = (SIZE - at).min(AREA / 2);
            self.submit(VolumeOp::Read, at, len, &[]).unwrap();
            self.settle();
            assert_eq!(self.results.pop().unwrap().1, Ok(()));
            at += len;
        }
        self.check_frozen();
    }

    /// One request, everything answered; its result.
    pub(crate) fn run(&mut self, op: VolumeOp, offset: u64, len: u64) -> Result<(), ErrorCode> {
        self.submit(op, offset, len, &[]).unwrap();
        self.settle();
        self.results.pop().unwrap().1
    }
}
