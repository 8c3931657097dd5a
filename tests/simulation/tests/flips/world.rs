//! A small pool, and a mapper over it that is asked one thing after another.

use std::collections::BTreeMap;

use archipelago_blocker::Backend;
use archipelago_doubles::SimulatedBackend;
use archipelago_mapper::{ClientId, Effect, Mapper};
use archipelago_protocol::Labels;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Kind};
use archipelago_protocol::check::Report;
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{BLOCK_SIZE, Epoch, Lineage, ObjectSize};
use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::map::{FLAG_WRITE, MapOp, MapReply, MapRequest, Placement};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectRequest};
use archipelago_protocol::on_full::OnFull;
use archipelago_simulation::journal;
use xseg::Region;

pub(crate) const DISK: Lineage = Lineage(1);
pub(crate) const MONDAY: Lineage = Lineage(2);
pub(crate) const CLONE: Lineage = Lineage(3);
pub(crate) const IMAGE: Lineage = Lineage(4);
pub(crate) const RENAMED: Lineage = Lineage(5);

/// Two leaves and an inner page: a leaf maps 32 MiB of such objects.
const SIZE: u64 = 48 << 20;
/// Where the pool's blocks are: one part in each leaf.
const WRITTEN: [std::ops::Range<u64>; 2] = [0..2 << 20, 35 << 20..36 << 20];
const OBJECT_SIZE: ObjectSize = ObjectSize::MIN;
/// The node that serves it.
const OWNER: u128 = 1;
const CLIENT: ClientId = ClientId(1);

/// A mapper and its pool.
pub(crate) struct World {
    mapper: Mapper,
    pub(crate) backend: SimulatedBackend,
    region: Region,
    /// From the first such request on the mapper is not answered any more.
    pub(crate) stop_at: Option<ObjectOp>,
    /// Of what [`World::serve`] opened.
    pub(crate) handles: BTreeMap<Lineage, u32>,
    tag: u64,
    maps: BTreeMap<u64, MapReply>,
    catalogue: BTreeMap<u64, CatalogueReply>,
}

/// A run of a map: length, placement, and where it is.
pub(crate) type Run = (u64, Placement, u64, Option<Lineage>);
/// What is served: the catalogue, and the map of each thing in it; or why not.
pub(crate) type Served = BTreeMap<Lineage, Result<Vec<Run>, (ErrorCode, String)>>;

impl World {
    pub(crate) fn on(backend: SimulatedBackend, region: Region) -> World {
        World {
            mapper: journal::unstarted(OWNER, &journal::journals()),
            backend,
            region,
            stop_at: None,
            handles: BTreeMap::new(),
            tag: 0,
            maps: BTreeMap::new(),
            catalogue: BTreeMap::new(),
        }
    }

    pub(crate) fn started(backend: SimulatedBackend, region: Region) -> World {
        let mut world = World::on(backend, region);
        world.mapper.start();
        world.run();
        world
    }

    fn run(&mut self) {
        while let Some(effect) = self.mapper.next_effect() {
            match effect {
                Effect::MapReply { tag, reply, .. } => drop(self.maps.insert(tag, reply)),
                Effect::CatalogueReply { tag, reply } => drop(self.catalogue.insert(tag, reply)),
                Effect::Object { request, .. } if self.stop_at == Some(request.op) => {}
                Effect::Object { id, request, data } => {
                    self.region.write(0, &data).unwrap();
                    let span = self.region.span(0, u64::from(request.len)).unwrap();
                    let moves = matches!(
                        request.op,
                        ObjectOp::Read
                            | ObjectOp::Write
                            | ObjectOp::Append
                            | ObjectOp::CompareAndSwap
                            | ObjectOp::ReadSwapped
                            | ObjectOp::List
                    );
                    let spans = if moves {
                        std::slice::from_ref(&span)
                    } else {
                        &[]
                    };
                    self.backend.start(0, &request, spans);
                    let (_, reply) = self.backend.complete(0);
                    let mut read = Vec::new();
                    if let (ObjectOp::Read | ObjectOp::ReadSwapped | ObjectOp::List, Ok(len)) =
                        (request.op, reply.result)
                    {
                        read.resize(len as usize, 0);
                        self.region.read(0, &mut read).unwrap();
                    }
                    self.mapper.object_done(id, reply, read);
                }
            }
        }
    }

    pub(crate) fn map(&mut self, request: MapRequest) -> MapReply {
        self.tag += 1;
        self.mapper
            .map_request(CLIENT, self.tag, request, JournaledData::default());
        self.run();
        self.maps.remove(&self.tag).unwrap()
    }

    pub(crate) fn control(&mut self, request: CatalogueRequest) -> CatalogueReply {
        self.tag += 1;
        self.mapper.catalogue_request(self.tag, request);
        self.run();
        self.catalogue.remove(&self.tag).unwrap()
    }

    pub(crate) fn checked(&mut self, repair: bool) -> Report {
        match self.control(CatalogueRequest::Check { repair }) {
            CatalogueReply::Report(report) => report,
            other => panic!("{other:?}"),
        }
    }

    fn done(&mut self, request: CatalogueRequest) {
        let reply = self.control(request);
        assert!(!matches!(reply, CatalogueReply::Failed(_)), "{reply:?}");
    }

    fn create(&mut self, name: &str, lineage: Lineage, kind: Kind) {
        let name = name.parse().unwrap();
        self.done(CatalogueRequest::Create {
            name,
            lineage,
            kind,
            size: SIZE,
            object_size: OBJECT_SIZE,
            created: 1,
            on_full: OnFull::default(),
            labels: Labels::default(),
        });
    }

    pub(crate) fn open(&mut self, lineage: Lineage) -> u32 {
        self.map(MapRequest::open(lineage, true)).result.unwrap()
    }

    fn close(&mut self, handle: u32) {
        let reply = self.map(MapRequest::new(MapOp::Close, handle));
        reply.result.unwrap();
    }

    /// Writes a block as a volume peer does.
    pub(crate) fn write(&mut self, own: Lineage, handle: u32, block: u64) {
        let (offset, len) = (block * BLOCK_SIZE, BLOCK_SIZE);
        let place = self.map(MapRequest {
            flags: FLAG_WRITE,
            offset,
            len,
            ..MapRequest::new(MapOp::Locate, handle)
        });
        let epoch = Epoch(place.values[0]);
        self.region.write(0, &[7; 4096]).unwrap();
        let request = ObjectRequest {
            offset,
            len: 4096,
            ..ObjectRequest::new(ObjectOp::Write, ObjectId::data(own, epoch))
        };
        let span = self.region.span(0, 4096).unwrap();
        self.backend.start(0, &request, std::slice::from_ref(&span));
        self.backend.complete(0).1.result.unwrap();
        if place.placement() == Some(Placement::First) {
            let written = self.map(MapRequest {
                offset,
                len,
                operand: [epoch.0, 0],
                ..MapRequest::new(MapOp::Written, handle)
            });
            written.result.unwrap();
        }
    }

    fn sync(&mut self) {
        let request = ObjectRequest::new(ObjectOp::SyncPool, ObjectId::head(Lineage::CATALOGUE));
        self.backend.start(0, &request, &[]);
        self.backend.complete(0).1.result.unwrap();
    }

    pub(crate) fn open_and_close(&mut self, lineage: Lineage) {
        let handle = self.open(lineage);
        self.close(handle);
    }

    /// Writes something to an object, past the mapper.
    pub(crate) fn put(&mut self, id: ObjectId) {
        self.region.write(0, &[7; 4096]).unwrap();
        let request = ObjectRequest {
            len: 4096,
            ..ObjectRequest::new(ObjectOp::Write, id)
        };
        let span = self.region.span(0, 4096).unwrap();
        self.backend.start(0, &request, std::slice::from_ref(&span));
        self.backend.complete(0).1.result.unwrap();
        self.sync();
    }

    /// Deletes an object, past the mapper.
    pub(crate) fn delete(&mut self, id: ObjectId) {
        let request = ObjectRequest::new(ObjectOp::Delete, id);
        self.backend.start(0, &request, &[]);
        self.backend.complete(0).1.result.unwrap();
        self.sync();
    }

    pub(crate) fn flush(&mut self, handle: u32) {
        let begun = self.map(MapRequest::new(MapOp::FlushBegin, handle));
        self.sync();
        if begun.result == Ok(0) {
            return;
        }
        let committed = self.map(MapRequest {
            operand: [begun.values[0], 0],
            ..MapRequest::new(MapOp::FlushCommit, handle)
        });
        committed.result.unwrap();
    }

    /// Blocks here and there, flushed.
    fn fill(&mut self, own: Lineage, handle: u32, blocks: &[u64]) {
        for block in blocks {
            self.write(own, handle, *block);
        }
        self.flush(handle);
    }

    /// Everything that the pool serves: each volume is opened for writing, so that it is recovered.
    pub(crate) fn serve(&mut self) -> Served {
        let mut served = Served::new();
        let list = CatalogueRequest::List {
            prefix: String::new(),
            after: None,
            limit: 100,
            label: None,
        };
        let entries = match self.control(list) {
            CatalogueReply::Page(page) => page.entries,
            CatalogueReply::Failed(error) => {
                served.insert(Lineage::CATALOGUE, Err((error.code, error.message)));
                return served;
            }
            other => panic!("{other:?}"),
        };
        for entry in entries {
            let frozen = matches!(entry.kind, Kind::Snapshot | Kind::Image);
            let map = self.serve_one(entry.lineage, !frozen, entry.size);
            let map = map.map_err(|code| {
                let why = self
                    .mapper
                    .damage(entry.lineage)
                    .map_or_else(String::new, |error| error.message);
                (code, why)
            });
            // The catalogue's part of it, as a run.
            let letters = entry.name.as_str().bytes();
            let name = letters.fold(0, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte));
            let root: Run = (entry.size, Placement::Zero, name, None);
            served.insert(entry.lineage, map.map(|runs| [vec![root], runs].concat()));
        }
        served
    }

    fn serve_one(
        &mut self,
        lineage: Lineage,
        write: bool,
        size: u64,
    ) -> Result<Vec<Run>, ErrorCode> {
        let handle = self.map(MapRequest::open(lineage, write)).result?;
        self.handles.insert(lineage, handle);
        let mut runs = Vec::new();
        let mut offset = 0;
        while offset < size {
            // Between the parts that are written there is nothing but another thousand zeros to ask for.
            if offset == WRITTEN[0].end {
                offset = WRITTEN[1].start;
            }
            if offset == WRITTEN[1].end {
                break;
            }
            let place = self.map(MapRequest {
                offset,
                len: OBJECT_SIZE.bytes().min(size - offset),
                ..MapRequest::new(MapOp::Locate, handle)
            });
            let len = u64::from(place.result?);
            let placement = place.placement().unwrap();
            let (mut epoch, mut whose) = (0, None);
            if placement == Placement::Stored {
                epoch = place.values[0];
                let named = self.map(MapRequest {
                    operand: [place.values[1], 0],
                    ..MapRequest::new(MapOp::Lineage, handle)
                });
                whose = Some(Lineage::from_words(named.values[0], named.values[1]));
            }
            runs.push((len, placement, epoch, whose));
            offset += len;
        }
        Ok(runs)
    }
}

/// A pool after a power cut. It has a closed volume, a snapshot of it, an unclean clone with pages and a log of its own,
/// an image, a catalogue with a checkpoint and a log in its second round.
pub(crate) fn small_pool() -> SimulatedBackend {
    let region = Region::anonymous(256 << 10).unwrap();
    let mut world = World::started(SimulatedBackend::new(1), region);
    world.create("disk", DISK, Kind::Volume);
    let disk = world.open(DISK);
    world.fill(DISK, disk, &[0, 1, 2, 40, 9000]);
    let snapshot = CatalogueRequest::PrepareSnapshot {
        volume: "disk".parse().unwrap(),
        name: "monday".parse().unwrap(),
        lineage: MONDAY,
        created: 1,
        labels: Labels::default(),
    };
    let CatalogueReply::Token { token } = world.control(snapshot) else {
        panic!("no token");
    };
    let operand = [token, 0];
    for op in [MapOp::SnapshotBegin, MapOp::SnapshotCommit] {
        let reply = world.map(MapRequest {
            operand,
            ..MapRequest::new(op, disk)
        });
        reply.result.unwrap();
        world.sync();
    }
    world.fill(DISK, disk, &[1, 41]);
    world.close(disk);
    world.done(CatalogueRequest::Clone {
        source: "monday".parse().unwrap(),
        name: "clone".parse().unwrap(),
        lineage: CLONE,
        size: None,
        created: 1,
        on_full: None,
        labels: Labels::default(),
    });
    let clone = world.open(CLONE);
    world.fill(CLONE, clone, &[2, 100]);
    world.close(clone);
    world.create("image", IMAGE, Kind::Importing);
    let image = world.open(IMAGE);
    world.fill(IMAGE, image, &[5, 6, 7]);
    world.close(image);
    world.done(CatalogueRequest::Publish {
        name: "image".parse().unwrap(),
    });
    world.create("empty", RENAMED, Kind::Volume);
    let mut renames = ["empty", "void"].into_iter().cycle();
    let mut from = renames.next().unwrap();
    for _ in 0..14 {
        let to = renames.next().unwrap();
        world.done(CatalogueRequest::Rename {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
        });
        from = to;
    }
    let clone = world.open(CLONE);
    for blocks in [[2_u64, 200], [300, 9001], [400, 401]] {
        world.fill(CLONE, clone, &blocks);
    }
    world.sync();
    world.backend.power_cut(&mut |_options: usize| 0)
}
