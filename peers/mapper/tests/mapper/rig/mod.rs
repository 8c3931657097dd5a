//! A mapper, a pool in memory, and a volume peer in a few lines.

#![expect(
    clippy::cast_possible_truncation,
    reason = "test support: small numbers"
)]

pub(crate) mod pool;
mod requests;

use std::collections::{BTreeMap, VecDeque};

use archipelago_doubles::MemoryJournals;
use archipelago_mapper::{ClientId, Effect, Mapper, MapperConfig, Sharing};
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Entry, Kind};
use archipelago_protocol::journaled::{JournaledBlockId, JournaledData, area_len};
use archipelago_protocol::map::{FLAG_WRITE, MapOp, MapReply, MapRequest, Placement};
use archipelago_protocol::object::{FLAG_DURABLE, ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::status::BlockState;
use archipelago_protocol::{Epoch, ErrorCode, Labels, Lineage, ObjectSize, OnFull};

use self::pool::{Pool, SECTOR};

pub(crate) use self::requests::{name, volume};

/// Everything that a test needs.
pub(crate) struct Rig {
    pub(crate) mapper: Mapper,
    pub(crate) pool: Pool,
    pub(crate) journals: MemoryJournals,
    pub(crate) config: MapperConfig,
    pub(crate) client: ClientId,
    next_tag: u64,
    next_lineage: u128,
    replies: BTreeMap<u64, MapReply>,
    catalogue: BTreeMap<u64, CatalogueReply>,
    /// Object requests that are not served while this is set.
    pub(crate) stalled: bool,
    waiting: VecDeque<Effect>,
}

pub(crate) fn small() -> MapperConfig {
    MapperConfig {
        owner: 7,
        node: "here".to_owned(),
        addresses: String::new(),
        sharing: Sharing::Alone,
        log_len: 64 << 10,
        catalogue_log_len: 64 << 10,
        cache_bytes: 1 << 20,
        pending_max: 64,
        pack_len_max: 128 << 20,
        io_len_max: 64 << 10,
    }
}

/// A block full of `stamp`.
pub(crate) fn stamped(stamp: u64) -> Vec<u8> {
    let bytes = stamp.to_le_bytes();
    bytes.iter().copied().cycle().take(4096).collect()
}

/// What a flush hands over: blocks of `epoch`, each full of its own number.
pub(crate) fn blocks_area(epoch: Epoch, blocks: &[u64]) -> JournaledData {
    let mut area =
        vec![0; usize::try_from(area_len(blocks.len()) - 4096 * blocks.len() as u64).unwrap()];
    for (index, block) in blocks.iter().enumerate() {
        let of = JournaledBlockId {
            epoch,
            block: *block,
        };
        area[index * JournaledBlockId::LEN..][..JournaledBlockId::LEN]
            .copy_from_slice(&of.encode());
        area.extend(stamped(*block));
    }
    JournaledData::new(area).unwrap()
}

impl Rig {
    pub(crate) fn new(config: MapperConfig) -> Self {
        let journals = MemoryJournals::new(config.pending_max);
        Self::on(config, Pool::default(), journals)
    }

    /// With a volume `v` of 1 GiB that is open to be written; its lineage and handle.
    pub(crate) fn opened() -> (Self, Lineage, u32) {
        let mut rig = Rig::new(small());
        let own = rig.create("v", 1 << 30, ObjectSize::DEFAULT);
        let handle = rig.open(own, true);
        (rig, own, handle)
    }

    /// With an open volume `v` of 1 MiB whose block 1 holds 1 and is flushed, and whose block 2 holds 2 and is not.
    pub(crate) fn unflushed() -> (Self, Lineage, u32) {
        let mut rig = Rig::new(small());
        let own = rig.create("v", 1 << 20, ObjectSize::MIN);
        let handle = rig.open(own, true);
        rig.write(own, handle, 1, 1);
        rig.flush(handle).unwrap();
        rig.write(own, handle, 2, 2);
        (rig, own, handle)
    }

    /// As [`Rig::opened`], on a pool whose completed writes are durable.
    pub(crate) fn durable() -> (Self, Lineage, u32) {
        let config = small();
        let journals = MemoryJournals::new(config.pending_max);
        let mut rig = Rig::on(config, Pool::durable(), journals);
        let own = rig.create("v", 1 << 30, ObjectSize::DEFAULT);
        let handle = rig.open(own, true);
        (rig, own, handle)
    }

    pub(crate) fn on(config: MapperConfig, pool: Pool, journals: MemoryJournals) -> Self {
        let mut mapper = Mapper::new(config.clone(), Box::new(journals.clone()));
        if pool.durable {
            mapper.set_capabilities(Capabilities::DURABLE);
        }
        mapper.start();
        let mut rig = Rig {
            mapper,
            pool,
            journals,
            config,
            client: ClientId(1),
            next_tag: 0,
            next_lineage: 100,
            replies: BTreeMap::new(),
            catalogue: BTreeMap::new(),
            stalled: false,
            waiting: VecDeque::new(),
        };
        rig.run();
        rig
    }

    /// The mapper's process dies and comes again, as another incarnation; what was written stays written.
    pub(crate) fn restart(&mut self) {
        let next = self.next_lineage;
        let mut config = self.config.clone();
        config.owner += 1;
        *self = Rig::on(
            config,
            std::mem::take(&mut self.pool),
            self.journals.clone(),
        );
        self.next_lineage = next;
    }

    /// The client's process dies, and another one comes.
    pub(crate) fn replace_client(&mut self) {
        self.mapper.client_gone(self.client);
        self.client = ClientId(self.client.0 + 1);
        self.run();
    }

    /// A check of the pool finds no damage.
    pub(crate) fn assert_clean(&mut self) {
        match self.control(CatalogueRequest::Check { repair: false }) {
            CatalogueReply::Report(report) => assert!(report.clean, "{report:?}"),
            other => panic!("{other:?}"),
        }
    }

    /// A flush whose log append fails: its sync comes first.
    pub(crate) fn fail_flush(&mut self, handle: u32) {
        self.pool.fail = Some((self.pool.log.len() + 2, ErrorCode::Io));
        assert_eq!(self.flush(handle), Err(ErrorCode::SyncFailed));
        self.pool.fail = None;
    }

    pub(crate) fn power_cut(&mut self, keep: impl FnMut() -> bool) {
        self.journals.power_cut();
        self.pool.power_cut(keep);
        self.restart();
    }

    pub(crate) fn run(&mut self) {
        // No request of these tests takes more than a few hundred steps: more is a circle.
        for _ in 0..20_000 {
            while let Some(effect) = self.mapper.next_effect() {
                match effect {
                    Effect::MapReply { tag, reply, .. } => {
                        assert!(self.replies.insert(tag, reply).is_none(), "answered twice");
                    }
                    Effect::CatalogueReply { tag, reply } => {
                        self.catalogue.insert(tag, reply);
                    }
                    object => self.waiting.push_back(object),
                }
            }
            if self.stalled {
                return;
            }
            let Some(Effect::Object { id, request, data }) = self.waiting.pop_front() else {
                return;
            };
            let (reply, data) = self.pool.serve(&request, &data);
            self.mapper.object_done(id, reply, data);
        }
        panic!(
            "the mapper goes round in circles: {:?}",
            &self.pool.log[self.pool.log.len() - 20..]
        );
    }

    /// Which of the requests that wait in a stalled rig is the first of `op`.
    pub(crate) fn waiting(&self, op: ObjectOp) -> Option<usize> {
        let wanted =
            |effect: &Effect| matches!(effect, Effect::Object { request, .. } if request.op == op);
        self.waiting.iter().position(wanted)
    }

    /// Answers the first request of `op` that waits in a stalled rig, with `fault` instead of doing it if there is one.
    pub(crate) fn step(&mut self, op: ObjectOp, fault: Option<ErrorCode>) {
        let index = self.waiting(op);
        let index = index.unwrap_or_else(|| panic!("{op:?} does not wait: {:?}", self.waiting));
        self.answer(index, fault);
    }

    /// Serves the requests that wait in a stalled rig, the longest waiting first, until one of `op` waits; that one is not served.
    pub(crate) fn serve_until(&mut self, op: ObjectOp) {
        while !self.waits_for(op) {
            self.answer(0, None);
        }
    }

    /// Serves the requests that wait in a stalled rig, and those that follow, but for those of `op`.
    pub(crate) fn serve_all_but(&mut self, op: ObjectOp) {
        let other =
            |effect: &Effect| matches!(effect, Effect::Object { request, .. } if request.op != op);
        while let Some(index) = self.waiting.iter().position(other) {
            self.answer(index, None);
        }
    }

    /// Answers the waiting request at `index`, with `fault` instead of doing it if there is one.
    fn answer(&mut self, index: usize, fault: Option<ErrorCode>) {
        let Some(Effect::Object { id, request, data }) = self.waiting.remove(index) else {
            panic!("no object request waits at {index}: {:?}", self.waiting);
        };
        let (reply, data) = match fault {
            Some(code) => (ObjectReply::failed(code), Vec::new()),
            None => self.pool.serve(&request, &data),
        };
        self.mapper.object_done(id, reply, data);
        self.run();
    }

    /// Fresh lineages are of their own for each node.
    pub(crate) fn number_lineages(&mut self, node: u128) {
        self.next_lineage = 1000 * node;
    }

    pub(crate) fn fresh(&mut self) -> Lineage {
        self.next_lineage += 1;
        Lineage(self.next_lineage)
    }

    pub(crate) fn send(&mut self, request: MapRequest) -> u64 {
        self.send_with_data(request, JournaledData::default())
    }

    pub(crate) fn send_with_data(&mut self, request: MapRequest, data: JournaledData) -> u64 {
        self.next_tag += 1;
        self.mapper
            .map_request(self.client, self.next_tag, request, data);
        self.run();
        self.next_tag
    }

    pub(crate) fn reply(&mut self, tag: u64) -> Option<MapReply> {
        self.replies.remove(&tag)
    }

    pub(crate) fn ask(&mut self, request: MapRequest) -> MapReply {
        let tag = self.send(request);
        self.reply(tag)
            .unwrap_or_else(|| panic!("{request:?} was not answered"))
    }

    pub(crate) fn control(&mut self, request: CatalogueRequest) -> CatalogueReply {
        let tag = self.send_control(request);
        self.control_reply(tag)
    }

    pub(crate) fn send_control(&mut self, request: CatalogueRequest) -> u64 {
        self.next_tag += 1;
        self.mapper.catalogue_request(self.next_tag, request);
        self.run();
        self.next_tag
    }

    pub(crate) fn control_reply(&mut self, tag: u64) -> CatalogueReply {
        self.catalogue.remove(&tag).expect("answered")
    }

    pub(crate) fn entry(&mut self, request: CatalogueRequest) -> Entry {
        match self.control(request) {
            CatalogueReply::Entry(entry) => entry,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn refused(&mut self, request: CatalogueRequest) -> ErrorCode {
        match self.control(request) {
            CatalogueReply::Failed(error) => error.code,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn create(&mut self, name: &str, size: u64, object_size: ObjectSize) -> Lineage {
        let lineage = self.fresh();
        self.entry(CatalogueRequest::Create {
            name: name.parse().unwrap(),
            lineage,
            kind: Kind::Volume,
            size,
            object_size,
            created: 1,
            on_full: OnFull::default(),
            labels: Labels::default(),
        });
        lineage
    }

    pub(crate) fn clone_of(&mut self, source: &str, name: &str, size: Option<u64>) -> Lineage {
        let lineage = self.fresh();
        let (source, name) = (source.parse().unwrap(), name.parse().unwrap());
        self.entry(CatalogueRequest::Clone {
            source,
            name,
            lineage,
            size,
            created: 2,
            on_full: None,
            labels: Labels::default(),
        });
        lineage
    }

    pub(crate) fn snapshot_closed(&mut self, volume: &str, name: &str) -> Lineage {
        let lineage = self.fresh();
        let (volume, name) = (volume.parse().unwrap(), name.parse().unwrap());
        self.entry(CatalogueRequest::Snapshot {
            volume,
            name,
            lineage,
            created: 3,
            labels: Labels::default(),
        });
        lineage
    }

    pub(crate) fn prepare(&mut self, volume: &str, name: &str) -> (u64, Lineage) {
        let lineage = self.fresh();
        let (volume, name) = (volume.parse().unwrap(), name.parse().unwrap());
        match self.control(CatalogueRequest::PrepareSnapshot {
            volume,
            name,
            lineage,
            created: 3,
            labels: Labels::default(),
        }) {
            CatalogueReply::Token { token } => (token, lineage),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn open(&mut self, lineage: Lineage, write: bool) -> u32 {
        self.ask(MapRequest::open(lineage, write)).result.unwrap()
    }

    /// Why a volume, which is damaged, is not opened for writing.
    pub(crate) fn damage_at_open(&mut self, lineage: Lineage) -> String {
        let opened = self.ask(MapRequest::open(lineage, true)).result;
        assert_eq!(opened, Err(ErrorCode::Damaged));
        let found = self.mapper.damage(lineage);
        found.expect("damage has its reason").message
    }

    pub(crate) fn op(&mut self, op: MapOp, handle: u32, operand: u64) -> MapReply {
        self.ask(MapRequest {
            operand: [operand, 0],
            ..MapRequest::new(op, handle)
        })
    }

    pub(crate) fn close(&mut self, handle: u32) {
        self.op(MapOp::Close, handle, 0).result.unwrap();
    }

    pub(crate) fn locate(&mut self, handle: u32, block: u64, blocks: u64, write: bool) -> MapReply {
        let flags = if write { FLAG_WRITE } else { 0 };
        let request = MapRequest {
            offset: block * 4096,
            len: blocks * 4096,
            flags,
            ..MapRequest::new(MapOp::Locate, handle)
        };
        self.ask(request)
    }

    /// Every answer to a status of `blocks` blocks, joined: blocks and their state.
    pub(crate) fn status(
        &mut self,
        handle: u32,
        block: u64,
        blocks: u64,
    ) -> Vec<(u64, BlockState)> {
        let mut joined: Vec<(u64, BlockState)> = Vec::new();
        let (mut at, end) = (block * 4096, (block + blocks) * 4096);
        while at < end {
            let reply = self.ask(MapRequest {
                offset: at,
                len: end - at,
                ..MapRequest::new(MapOp::Status, handle)
            });
            for run in reply.status_runs().unwrap().iter() {
                at += run.len;
                match joined.last_mut() {
                    Some((blocks, state)) if *state == run.state => *blocks += run.len / 4096,
                    _ => joined.push((run.len / 4096, run.state)),
                }
            }
        }
        assert_eq!(at, end, "not more than was asked for");
        joined
    }

    pub(crate) fn lineage(&mut self, handle: u32, index: u64) -> Lineage {
        let [high, low] = self.op(MapOp::Lineage, handle, index).values;
        Lineage::from_words(high, low)
    }

    /// Writes a block as a volume peer does; whether it was a first write.
    pub(crate) fn write(&mut self, own: Lineage, handle: u32, block: u64, stamp: u64) -> bool {
        let place = self.locate(handle, block, 1, true);
        let epoch = Epoch(place.values[0]);
        self.put(own, epoch, block, stamp);
        let first = place.placement() == Some(Placement::First);
        if first {
            self.written(handle, block, 1, epoch).result.unwrap();
        }
        first
    }

    pub(crate) fn put(&mut self, own: Lineage, epoch: Epoch, block: u64, stamp: u64) {
        let bytes = stamped(stamp);
        let flags = match self.pool.durable {
            true => FLAG_DURABLE,
            false => 0,
        };
        let request = ObjectRequest {
            flags,
            offset: block * 4096,
            len: 4096,
            ..ObjectRequest::new(ObjectOp::Write, ObjectId::data(own, epoch))
        };
        self.pool.serve(&request, &bytes);
    }

    pub(crate) fn written(
        &mut self,
        handle: u32,
        block: u64,
        blocks: u64,
        epoch: Epoch,
    ) -> MapReply {
        self.ask(MapRequest {
            offset: block * 4096,
            len: blocks * 4096,
            operand: [epoch.0, 0],
            ..MapRequest::new(MapOp::Written, handle)
        })
    }

    pub(crate) fn zero(&mut self, handle: u32, block: u64, blocks: u64) -> MapReply {
        self.ask(MapRequest {
            offset: block * 4096,
            len: blocks * 4096,
            ..MapRequest::new(MapOp::Zero, handle)
        })
    }

    /// What a guest reads of a block: the stamp, 0 for zeros.
    pub(crate) fn read(&mut self, handle: u32, block: u64) -> u64 {
        let sectors = self.sectors(handle, block);
        assert!(
            sectors.iter().all(|stamp| *stamp == sectors[0]),
            "torn block {block}: {sectors:?}"
        );
        sectors[0]
    }

    /// The stamp of each sector of a block.
    pub(crate) fn sectors(&mut self, handle: u32, block: u64) -> Vec<u64> {
        let place = self.locate(handle, block, 1, false);
        assert_eq!(place.result, Ok(4096));
        if place.placement() == Some(Placement::Zero) {
            return vec![0; 8];
        }
        let lineage = self.lineage(handle, place.values[1]);
        let id = ObjectId::data(lineage, Epoch(place.values[0]));
        let request = ObjectRequest {
            offset: block * 4096,
            len: 4096,
            ..ObjectRequest::new(ObjectOp::Read, id)
        };
        let (reply, data) = self.pool.serve(&request, &[]);
        reply.result.unwrap();
        let sector = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
        data.chunks(SECTOR).map(sector).collect()
    }

    /// A guest's flush.
    pub(crate) fn flush(&mut self, handle: u32) -> Result<u32, ErrorCode> {
        let begun = self.op(MapOp::FlushBegin, handle, 0);
        self.sync();
        match begun.result? {
            0 => Ok(0),
            _ => self.op(MapOp::FlushCommit, handle, begun.values[0]).result,
        }
    }

    /// A flush of what was written up to now, which is durable already or in `data`.
    pub(crate) fn flush_with_data(
        &mut self,
        handle: u32,
        flags: u8,
        data: JournaledData,
    ) -> Result<u32, ErrorCode> {
        let cut = self.op(MapOp::FlushBegin, handle, 0).values[0];
        let commit = MapRequest {
            flags,
            operand: [cut, 0],
            ..MapRequest::new(MapOp::FlushCommit, handle)
        };
        let tag = self.send_with_data(commit, data);
        self.reply(tag).unwrap().result
    }

    pub(crate) fn sync(&mut self) {
        if self.pool.durable {
            return;
        }
        let request = ObjectRequest::new(ObjectOp::SyncPool, ObjectId::head(Lineage::CATALOGUE));
        self.pool.serve(&request, &[]);
    }

    /// A snapshot of an open volume.
    pub(crate) fn snapshot(&mut self, handle: u32, volume: &str, name: &str) -> Lineage {
        let (token, lineage) = self.prepare(volume, name);
        self.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
        self.sync();
        self.op(MapOp::SnapshotCommit, handle, token)
            .result
            .unwrap();
        lineage
    }
}
