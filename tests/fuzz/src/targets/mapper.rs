//! A mapper whose clients ask for anything, and whose pool is changed under it.

use archipelago_blocker::Backend;
use archipelago_doubles::{MemoryBackend, MemoryJournals};
use archipelago_mapper::{ClientId, Effect, Mapper, MapperConfig};
use archipelago_protocol::catalogue::{CatalogueRequest, Kind};
use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::map::{FLAG_WRITE, MapOp, MapReply, MapRequest, Placement};
use archipelago_protocol::object::{
    OBJECT_ID_LEN, ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest,
};
use archipelago_protocol::{
    BLOCK_SIZE, Epoch, ErrorCode, Label, LabelChanges, Labels, Lineage, Name, ObjectSize, OnFull,
};
use xseg::Region;

use crate::input::Input;
use crate::sealed::{reseal, structure_at};

/// A mapper and its pool.
struct Rig {
    mapper: Mapper,
    journals: MemoryJournals,
    pool: MemoryBackend,
    arena: Region,
    handles: Vec<u32>,
    replies: Vec<MapReply>,
    tags: u64,
}

const IO_LEN_MAX: usize = 16 << 10;

fn config() -> MapperConfig {
    MapperConfig {
        log_len: 64 << 10,
        catalogue_log_len: 64 << 10,
        io_len_max: IO_LEN_MAX,
        pending_max: 64,
        pack_len_max: 8192,
        ..MapperConfig::default()
    }
}

fn name(number: u8) -> Name {
    format!("v{}", number & 7).parse().expect("a legal name")
}

/// A label of eight, set or removed.
fn label_changes(number: u8) -> LabelChanges {
    let key = format!("k{}", number & 7).parse().expect("a legal key");
    let mut changes = LabelChanges::default();
    let changed = match number & 0x80 {
        0 => changes.unset(key),
        _ => changes.set(Label {
            key,
            value: "v".repeat(usize::from(number)).parse().expect("legal"),
        }),
    };
    changed.expect("the only one");
    changes
}

fn lineage(number: u8) -> Lineage {
    Lineage(u128::from(number & 15) + 1)
}

impl Rig {
    fn new() -> Rig {
        let journals = MemoryJournals::new(64);
        let mut rig = Rig {
            mapper: Mapper::new(config(), Box::new(journals.clone())),
            journals,
            pool: MemoryBackend::new(),
            arena: Region::anonymous(1 << 20).expect("memory"),
            handles: Vec::new(),
            replies: Vec::new(),
            tags: 0,
        };
        rig.mapper.start();
        rig.settle();
        rig
    }

    /// The mapper's process dies and comes back.
    fn restart(&mut self) {
        self.mapper = Mapper::new(config(), Box::new(self.journals.clone()));
        self.handles.clear();
        self.mapper.start();
        self.settle();
    }

    fn object(&mut self, mut request: ObjectRequest, data: &[u8]) -> (ObjectReply, Vec<u8>) {
        self.arena.write(0, data).expect("requests are smaller");
        // Whoever asks for more than a channel can carry is refused by the port.
        if request.len > 1 << 20 {
            return (ObjectReply::failed(ErrorCode::Invalid), Vec::new());
        }
        request.memory.region = 0;
        let span = self
            .arena
            .span(0, u64::from(request.len))
            .expect("checked above");
        self.pool.start(1, &request, &[span]);
        let (_, reply) = self
            .pool
            .poll()
            .expect("a backend in memory answers at once");
        let mut read = Vec::new();
        let reads = [ObjectOp::Read, ObjectOp::ReadSwapped, ObjectOp::List];
        if reads.contains(&request.op)
            && let Ok(len) = reply.result
        {
            read.resize(len as usize, 0);
            self.arena
                .read(0, &mut read)
                .expect("not more than was asked for");
        }
        (reply, read)
    }

    /// Does what the mapper asks for until it asks no more.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            match self.mapper.next_effect() {
                Some(Effect::Object { id, request, data }) => {
                    let (reply, read) = self.object(request, &data);
                    self.mapper.object_done(id, reply, read);
                }
                Some(Effect::MapReply { reply, .. }) => self.replies.push(reply),
                Some(Effect::CatalogueReply { .. }) => {}
                None => return,
            }
        }
        panic!("the mapper never comes to rest");
    }

    fn ask(&mut self, request: MapRequest) -> Option<MapReply> {
        self.tags += 1;
        self.replies.clear();
        self.mapper
            .map_request(ClientId(1), self.tags, request, JournaledData::default());
        self.settle();
        if let (MapOp::Open, Some(reply)) = (request.op, self.replies.last())
            && let Ok(handle) = reply.result
        {
            self.handles.push(handle);
        }
        self.replies.last().copied()
    }

    fn handle(&self, input: &mut Input<'_>) -> u32 {
        let number = usize::from(input.u8());
        match self.handles.len() {
            0 => u32::from(input.u8()),
            count => self.handles[number % count],
        }
    }

    /// Writes blocks as a volume peer does.
    fn write(&mut self, handle: u32, block: u64, blocks: u64) {
        let mut locate = MapRequest::new(MapOp::Locate, handle);
        locate.flags = FLAG_WRITE;
        (locate.offset, locate.len) = (block * BLOCK_SIZE, blocks * BLOCK_SIZE);
        let Some(reply) = self.ask(locate) else {
            return;
        };
        if let (Ok(len), Some(Placement::First)) = (reply.result, reply.placement()) {
            let mut written = MapRequest::new(MapOp::Written, handle);
            (written.offset, written.len) = (locate.offset, u64::from(len));
            written.operand = [reply.values[0], 0];
            self.ask(written);
        }
    }

    fn flush(&mut self, handle: u32) {
        let cut = self.ask(MapRequest::new(MapOp::FlushBegin, handle));
        if let Some(cut) = cut {
            let mut commit = MapRequest::new(MapOp::FlushCommit, handle);
            commit.operand = [cut.values[0], 0];
            self.ask(commit);
        }
    }

    fn catalogue(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let (first, second, id) = (name(input.u8()), name(input.u8()), lineage(input.u8()));
        let size = (u64::from(input.u16()) + 1) * 512;
        let request = match kind % 9 {
            0 => CatalogueRequest::Create {
                name: first,
                lineage: id,
                kind: if kind & 0x80 == 0 {
                    Kind::Volume
                } else {
                    Kind::Importing
                },
                size,
                object_size: ObjectSize::MIN,
                created: 1,
                on_full: OnFull::default(),
                labels: Labels::default(),
            },
            1 => CatalogueRequest::Clone {
                source: first,
                name: second,
                lineage: id,
                size: (kind & 0x80 != 0).then_some(size),
                created: 1,
                on_full: None,
                labels: Labels::default(),
            },
            2 => CatalogueRequest::Snapshot {
                volume: first,
                name: second,
                lineage: id,
                created: 1,
                labels: Labels::default(),
            },
            3 => CatalogueRequest::PrepareSnapshot {
                volume: first,
                name: second,
                lineage: id,
                created: 1,
                labels: Labels::default(),
            },
            4 => CatalogueRequest::Publish { name: first },
            5 if kind & 0x40 != 0 => CatalogueRequest::Set {
                name: first,
                on_full: (kind & 0x20 != 0)
                    .then(|| OnFull::from_seconds(Some(u32::from(kind & 0x80)))),
                labels: label_changes(input.u8()),
            },
            5 => CatalogueRequest::Resize {
                name: first,
                size,
                force: kind & 0x80 != 0,
            },
            6 => CatalogueRequest::Rename {
                from: first,
                to: second,
            },
            7 => CatalogueRequest::Remove { name: first },
            _ => CatalogueRequest::List {
                prefix: String::new(),
                after: Some(first),
                limit: usize::from(kind),
                label: (kind & 0x10 != 0).then(|| "k1".parse().expect("a legal key")),
            },
        };
        self.tags += 1;
        self.mapper.catalogue_request(self.tags, request);
        self.settle();
    }

    /// Any object request of the pool, as nobody but the disk would do it.
    fn raw(
        &mut self,
        op: ObjectOp,
        id: ObjectId,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> (ObjectReply, Vec<u8>) {
        let request = ObjectRequest {
            offset,
            len,
            ..ObjectRequest::new(op, id)
        };
        self.object(request, data)
    }

    fn objects(&mut self) -> Vec<ObjectId> {
        let lowest = ObjectId::data(Lineage(0), Epoch(0));
        let (_, bytes) = self.raw(ObjectOp::List, lowest, 0, 1 << 16, &[]);
        bytes
            .chunks_exact(OBJECT_ID_LEN)
            .filter_map(|id| ObjectId::from_bytes(id.try_into().ok()?))
            .filter(|id| id.kind != ObjectKind::Data)
            .collect()
    }

    /// Changes bytes of a structure in the pool, with a checksum that fits or without.
    fn damage(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let objects = self.objects();
        if objects.is_empty() {
            return;
        }
        let id = objects[input.below(objects.len())];
        let (step, at) = (usize::from(input.u8()), input.below(512));
        let len = usize::from(input.u8() & 15);
        let patch = input.take(len);
        let head = id.kind == ObjectKind::Head;
        let (read, write, len) = if head {
            (ObjectOp::ReadSwapped, ObjectOp::CompareAndSwap, 4032)
        } else {
            (ObjectOp::Read, ObjectOp::Write, 64 << 10)
        };
        let (reply, mut bytes) = self.raw(read, id, 0, len, &[]);
        let unit = if id.kind == ObjectKind::Pack {
            64
        } else {
            4096
        };
        let at_most = bytes.len() / unit;
        let start = if head {
            0
        } else {
            unit * (step % at_most.max(1))
        };
        let Some(structure) = structure_at(&mut bytes, start) else {
            return;
        };
        let at = at % structure.len();
        for (place, byte) in structure[at..].iter_mut().zip(patch) {
            *place ^= byte;
        }
        if kind & 1 == 0 {
            reseal(structure);
        }
        let len = u32::try_from(bytes.len()).expect("as many as were read");
        let offset = if head { reply.values[0] } else { 0 };
        let (reply, _) = self.raw(write, id, offset, len, &bytes);
        assert!(reply.result.is_ok(), "{reply:?}");
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() {
            0..=63 => self.catalogue(input),
            kind @ 64..=95 => {
                let for_writing = kind & 1 == 0;
                self.ask(MapRequest::open(lineage(input.u8()), for_writing));
            }
            96..=143 => {
                let handle = self.handle(input);
                let (block, blocks) = (u64::from(input.u16()), u64::from(input.u8() & 31) + 1);
                self.write(handle, block % 8192, blocks);
            }
            144..=159 => {
                let handle = self.handle(input);
                self.flush(handle);
            }
            160..=175 => {
                let close = MapRequest::new(MapOp::Close, self.handle(input));
                self.ask(close);
            }
            176..=191 => self.restart(),
            192..=223 => self.damage(input),
            kind @ 224..=247 => {
                // Nothing of it is right but by accident.
                let mut entry = MapRequest::new(MapOp::Open, self.handle(input)).encode();
                (entry.op, entry.flags) = (input.u8() % 14, input.u8() & 1);
                let mut number = || match kind & 3 {
                    0 => input.u64(),
                    1 => u64::from(input.u16()) * BLOCK_SIZE,
                    _ => u64::from(input.u8()),
                };
                entry.offset = number();
                entry.args = [number(), number(), number()];
                if let Ok(request) = MapRequest::decode(&entry) {
                    self.ask(request);
                }
            }
            _ => {
                self.mapper.client_gone(ClientId(1));
                self.handles.clear();
                self.settle();
            }
        }
    }
}

pub(crate) fn mapper(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut rig = Rig::new();
    while !input.is_empty() {
        rig.step(&mut input);
    }
    rig.restart();
    for number in 0..4 {
        rig.ask(MapRequest::open(lineage(number), true));
    }
    rig.mapper.client_gone(ClientId(1));
    rig.settle();
}

/// Every structure that a mapper left in its pool after some life, for seeds.
pub(crate) fn real_structures() -> Vec<Vec<u8>> {
    let mut rig = Rig::new();
    let create = |rig: &mut Rig, number: u8, size: u64| {
        let request = CatalogueRequest::Create {
            name: name(number),
            lineage: lineage(number),
            kind: Kind::Volume,
            size,
            object_size: ObjectSize::MIN,
            created: 1,
            // The second has an attribute.
            on_full: OnFull::from_seconds((number == 2).then_some(7)),
            labels: Labels::default(),
        };
        rig.mapper.catalogue_request(0, request);
        rig.settle();
        let open = rig.ask(MapRequest::open(lineage(number), true));
        open.and_then(|reply| reply.result.ok())
            .expect("a fresh volume")
    };
    // One of a single leaf, one with inner pages.
    for (number, size) in [(1, 1 << 20), (2, 1 << 30)] {
        let handle = create(&mut rig, number, size);
        for block in 0..4 {
            rig.write(handle, block * (size / BLOCK_SIZE / 5), block + 1);
            rig.flush(handle);
        }
        rig.ask(MapRequest::new(MapOp::Close, handle));
        let (volume, snapshot) = (name(number), name(number + 2));
        let id = lineage(number + 2);
        rig.mapper.catalogue_request(
            0,
            CatalogueRequest::Snapshot {
                volume,
                name: snapshot,
                lineage: id,
                created: 1,
                labels: Labels::default(),
            },
        );
        rig.settle();
    }
    let handle = create(&mut rig, 5, 1 << 20);
    rig.write(handle, 1, 3);
    rig.flush(handle);
    // Renamed until the catalogue writes a checkpoint.
    for round in 0..20 {
        let (from, to) = if round % 2 == 0 { (5, 6) } else { (6, 5) };
        rig.mapper.catalogue_request(
            0,
            CatalogueRequest::Rename {
                from: name(from),
                to: name(to),
            },
        );
        rig.settle();
    }
    let mut found = Vec::new();
    for id in rig.objects() {
        let head = id.kind == ObjectKind::Head;
        let op = if head {
            ObjectOp::ReadSwapped
        } else {
            ObjectOp::Read
        };
        let len = if head { 4032 } else { 64 << 10 };
        let (_, mut bytes) = rig.raw(op, id, 0, len, &[]);
        if id.kind == ObjectKind::Log {
            // Batches lie in the contents of sectors.
            let contents = bytes.chunks(512).flat_map(|sector| &sector[24..]);
            bytes = contents.copied().collect();
        }
        let mut at = 0;
        while at < bytes.len() {
            let structure = structure_at(&mut bytes, at).map(|structure| structure.to_vec());
            at += structure.as_ref().map_or(64, Vec::len).next_multiple_of(64);
            found.extend(structure);
        }
    }
    found
}
