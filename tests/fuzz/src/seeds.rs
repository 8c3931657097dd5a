//! Inputs of each target from real encodings: where mutation begins.

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Entry, Kind, Page};
use archipelago_protocol::control::{ControlReply, ControlRequest, ProcessStatus};
use archipelago_protocol::handle::{HandleAccess, HandleRequest, OpenObject};
use archipelago_protocol::map::{MapOp, MapReply, MapRequest, Placement};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectRequest};
use archipelago_protocol::{
    AttachmentId, EndpointSpec, Epoch, Error, ErrorCode, Labels, Lineage, ObjectSize, OnFull,
    ServedVolume,
};
use serde::Serialize;

use crate::targets::{chain, device, mapper};

/// The seeds of the target `name`.
#[must_use]
pub fn of(name: &str) -> Vec<Vec<u8>> {
    match name {
        "chain" => chains(),
        "device" => devices(),
        "front-end" => front_ends(),
        "nbd-handshake" | "nbd-connection" => nbd_clients(),
        "channel-message" => messages(),
        "server-port" => vec![
            // A request taken and answered, a hello with lies in it, a cursor too far.
            [&[0][..], &[0x40; 70], &[0x80, 0xf0, 0xb0, 0, 0, 0xf0, 0xd0, 0xe0]].concat(),
            vec![3, 1, 0, 9, 2, 0, 9, 3, 0, 9, 4, 0, 9, 1, 0, 9, 2, 0, 9, 3, 0, 9, 4, 0, 9],
            vec![0, 0x00, 200, 0x80, 0x70, 4, 0, 0, 0xe0, 0x75, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0xe0],
        ],
        "client-port" => vec![
            [&[0, 0][..], &[0x70, 0x30, 0, 1], &[0; 24], &[0xa0, 0xf0, 0xe0, 0xd0, 1, 0xd1, 1]].concat(),
            vec![8, 1, 16, 0, 5, 0, 0x70, 0xa0],
            vec![0, 0, 0x71, 0x01, 200, 0xa0, 0xf0, 0, 0x60, 5, 1, 2, 3, 4, 0xf0],
        ],
        "volume-head" => structures(b"ARCHHEAD", 0),
        "catalogue-head" => structures(b"ARCHCATL", 0),
        "log-records" => payloads(|payload| payload.len() % 32 == 0 && payload[2] == 32),
        "log-scan" => vec![
            [&[0, 0, 3, 2][..], &[5, 3, 1, 2, 3], &[5, 2, 8, 9], &[9, 1, 7]].concat(),
            [&[9, 0, 1, 1][..], &[1, 1, 5], &[0x45, 255, 31, 1, 6]].concat(),
            [&[6, 0, 7, 3][..], &[0x21, 1, 1, 5], &[0, 64, 0, 1], &[1, 1, 9]].concat(),
        ],
        "map-page" => structures(b"ARCHPAGE", 6),
        "catalogue-records" => {
            let mut records = payloads(|payload| !(payload.len() % 32 == 0 && payload[2] == 32));
            records.push(spliced_record());
            records
        }
        "catalogue-page" => structures(b"ARCHCPAG", 0),
        "journal" => vec![journal(0), journal(5), journal(9)],
        "slots" => vec![
            vec![0, 1, 0xff, 5, 1, 2, 3, 4, 5],
            vec![0, 1, 0xff, 2, 1, 2, 0, 2, 0xff, 3, 1, 2, 3, 0, 3, 0x0f, 1, 9],
            vec![0, 1, 0xff, 2, 1, 2, 3, 8, 0, 1],
        ],
        "config" => vec![
            b"placement = \"fused\"\n[data]\npoll_us = 50\nsubmission_chunk = 8\nchannel_requests = 1024\nchannel_memory_mib = 64\n[pool.default]\nkind = \"file\"\ndirectory = \"/srv/pool\"\n".to_vec(),
            b"placement = \"split\"\n[pool.a]\nkind = \"file\"\ndirectory = \"/\"\n".to_vec(),
            b"pool = { b = { kind = 'file', directory = '''/x''' } }\ndata = {}\n".to_vec(),
        ],
        "map-entry" => map_entries(),
        "status-page" => vec![
            words([1 << 20, 4096 | 1, 1 << 50, 512 | 1, 0, 7]),
            words([4096, 512, 512]),
        ],
        "object-entry" => object_entries(),
        "control-json" => json(),
        "blocker" => vec![
            [&[0, 0, 0, 16][..], &[7; 16], &requests(&[16, 2, 1, 3, 9, 12, 13])].concat(),
            requests(&[17, 5, 6, 5, 7, 8, 10, 11]),
        ],
        "mapper" => lives(),
        _ => Vec::new(),
    }
}

/// What QEMU sends, in short; a client of the old kind; one that asks for everything.
fn nbd_clients() -> Vec<Vec<u8>> {
    let option = |number: u32, data: &[u8]| {
        let len = u32::try_from(data.len()).unwrap_or(0).to_be_bytes();
        [b"IHAVEOPT", &number.to_be_bytes()[..], &len, data].concat()
    };
    let request = |command: u16, flags: u16, offset: u64, len: u32| {
        let header = archipelago_nbd_protocol::request::Header {
            flags,
            command,
            cookie: 7,
            offset,
            len,
        };
        header.encode().to_vec()
    };
    let flags = vec![0, 0, 0, 3];
    let context = b"\0\0\0\x03vm1\0\0\0\x01\0\0\0\x0fbase:allocation";
    let go_option = option(7, b"\0\0\0\x03vm1\0\x01\0\x03");
    let qemu = [
        flags.clone(),
        option(8, &[]),
        option(10, context),
        go_option,
        request(7, 8, 0, 1 << 20),
        request(1, 1, 512, 1024),
        vec![5; 1024],
        request(0, 0, 0, 8192),
        request(6, 2, 4096, 4096),
        request(3, 0, 0, 0),
        request(2, 0, 0, 0),
    ];
    let old = [
        flags.clone(),
        option(1, b"vm1"),
        request(0, 0, 0, 512),
        request(1, 0, 0, 512),
        vec![1; 512],
    ];
    let curious = [
        flags,
        option(3, &[]),
        option(9, context),
        option(6, b"\0\0\0\0\0\x03\0\x01\0\x02\0\x03"),
        option(5, &[]),
        option(2, &[]),
    ];
    vec![qemu.concat(), old.concat(), curious.concat()]
}

/// Real structures of a kind, behind `before` bytes of the target's own.
fn structures(magic: &[u8; 8], before: usize) -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = mapper::real_structures()
        .into_iter()
        .filter(|structure| {
            structure.starts_with(magic) && structure.len() + before <= crate::INPUT_LEN_MAX
        })
        .map(|structure| [vec![0; before], structure].concat())
        .collect();
    // Those that differ most.
    found.sort_by_key(Vec::len);
    found.dedup_by_key(|structure| structure.len());
    found
}

/// Payloads of log batches.
fn payloads(wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = mapper::real_structures()
        .into_iter()
        .filter(|structure| structure.starts_with(b"ARCHBTCH"))
        .filter_map(|batch| {
            let word =
                |at: usize| u32::from_le_bytes(batch[at..at + 4].try_into().expect("4 bytes"));
            batch.get(72..72 + word(64) as usize).map(<[u8]>::to_vec)
        })
        .filter(|payload| !payload.is_empty() && wanted(payload))
        .collect();
    found.sort();
    found.dedup();
    found.truncate(6);
    found
}

/// A hidden image of two sources that was removed: what no program writes yet.
fn spliced_record() -> Vec<u8> {
    let mut record = vec![0; 112 + 2 * 16];
    record[..8].copy_from_slice(&[1, 0, 144, 0, 3, 22, 0, 0]);
    // Size, time, epoch, time of removal, number of sources, the sources.
    for (at, value) in [
        (25, 16),
        (32, 1),
        (44, 2),
        (48, 9),
        (108, 2),
        (120, 5),
        (136, 6),
    ] {
        record[at] = value;
    }
    record[16] = 4;
    record
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    [address.to_le_bytes(), rest.to_le_bytes()].concat()
}

/// A request's three descriptors, from `first` on, with its buffers at `guest`.
fn request(first: u16, guest: u64, len: u32, flags: u16) -> Vec<u8> {
    [
        descriptor(guest, 16, 1, first + 1),
        descriptor(guest + 16, len, 1 | flags, first + 2),
        descriptor(guest + 0x300, 1, 2, 0),
    ]
    .concat()
}

fn chains() -> Vec<Vec<u8>> {
    let guest = chain::GUEST;
    let header = |kind: u32| [kind.to_le_bytes(), [0; 4]].concat();
    let with = |flags: u8, table: Vec<u8>, at: usize, buffer: Vec<u8>| {
        let mut memory = table;
        memory.resize(at, 0);
        memory.extend(buffer);
        [vec![flags, 0, 0], memory].concat()
    };
    let simple = |kind: u32, len: u32, flags: u16| {
        with(
            3,
            request(0, guest + 0x100, len, flags),
            0x100,
            header(kind),
        )
    };
    let range = [
        header(11),
        vec![0; 8],
        vec![1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    vec![
        simple(0, 512, 2),
        simple(1, 512, 0),
        simple(8, 20, 2),
        with(3, request(0, guest + 0x100, 16, 0), 0x100, range),
        // An indirect table, and a piece that runs on into the next slot.
        with(
            0,
            descriptor(guest + 0x100, 48, 4, 0),
            0x100,
            request(0, guest + 0x8000 - 0x100, 512, 2),
        ),
        with(
            3,
            descriptor(u64::MAX - 0x100, 0x200, 3, 1),
            0x100,
            Vec::new(),
        ),
        with(3, descriptor(guest, 16, 1, 0), 0x100, Vec::new()),
    ]
}

fn devices() -> Vec<Vec<u8>> {
    let memory = |at: u16, bytes: &[u8]| {
        let len = u8::try_from(bytes.len()).expect("short");
        [&[32][..], &at.to_le_bytes(), &[len], bytes].concat()
    };
    let guest = device::GUEST;
    let table = memory(0, &request(0, guest + 0x3000, 512, 2));
    let read = memory(0x3000, &[0; 16]);
    let write = memory(0x3000, &[1, 0, 0, 0]);
    let zeroes = memory(0x3000, &[13, 0, 0, 0]);
    let inflight = [14, 0, 0, 0, 2, 8, 0];
    vec![
        [&[1][..], &table, &read, &[96, 0, 230, 230, 96, 0, 230]].concat(),
        [
            &[4][..],
            &table,
            &write,
            &[193, 96, 0, 230, 230, 8, 0, 160, 0, 0, 230],
        ]
        .concat(),
        [
            &[7][..],
            &table,
            &zeroes,
            &[193, 96, 0, 230, 16, 0, 230, 160, 0, 0, 230],
        ]
        .concat(),
        [
            &[2][..],
            &[8, 0, 8, 1],
            &inflight[..],
            &[9, 0],
            &table,
            &read,
            &[96, 0, 208, 230, 15, 0, 230],
        ]
        .concat(),
        [&[0][..], &[0, 0, 2, 0, 0, 15, 0, 0, 3, 0, 0, 15, 0, 0]].concat(),
    ]
}

fn front_ends() -> Vec<Vec<u8>> {
    let message = |request: u8, bits: u8, body: &[u64]| {
        let len = u8::try_from(8 * body.len()).expect("short");
        let mut bytes = vec![request, bits, len];
        body.iter()
            .for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes
    };
    let features: u64 = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 9;
    let (guest, user) = (0x10_0000, 0x7000_0000);
    let ring = request(0, guest + 0x3000, 512, 2);
    let ring_len = u16::try_from(ring.len()).expect("short").to_le_bytes();
    let start = [
        message(3, 0, &[]),
        message(1, 0, &[]),
        message(15, 0, &[]),
        message(
            16,
            0,
            &[0x1 | 0x2 | 0x8 | 0x20 | 0x200 | 0x1000 | 0x2000 | 0x8000],
        ),
        message(2, 2, &[features]),
        message(37, 3, &[0, guest, 0x1_0000, user, 0]),
        message(8, 2, &[8 << 32]),
        message(10, 2, &[0]),
        message(9, 2, &[0, user, user + 0x800, user + 0x400, 0]),
        message(12, 2, &[0]),
        message(13, 2, &[0]),
        message(14, 2, &[0]),
        message(18, 2, &[1 << 32]),
    ]
    .concat();
    let end = message(11, 0, &[0]);
    let inflight = message(31, 0, &[0, 0, 1 | 8 << 16]);
    vec![
        [&ring_len[..], &ring, &start, &end].concat(),
        [&[0, 0][..], &start, &message(34, 2, &[]), &start].concat(),
        [
            &[0, 0][..],
            &inflight,
            &message(24, 0, &[60 << 32]),
            &message(5, 1, &[1, guest, 0x1000, user, 0]),
        ]
        .concat(),
        [
            &[0, 0][..],
            &message(6, 1, &[0x1000, 0]),
            &message(38, 1, &[0, guest, 0x1000, user, 0]),
            &message(21, 2, &[]),
            &message(7, 2, &[]),
        ]
        .concat(),
    ]
}

fn messages() -> Vec<Vec<u8>> {
    (1..=8_u8)
        .map(|kind| {
            let mut bytes = b"XSEGMSG1\x01\0\0\0".to_vec();
            bytes.extend([kind, 7, 0, 0]);
            bytes.extend((0..48).map(|at| if at % 8 == 0 { kind } else { 0 }));
            bytes
        })
        .collect()
}

/// A journal with `count` records in three or more slots.
fn journal(count: u8) -> Vec<u8> {
    let slots = usize::from(count.max(3));
    let mut bytes = vec![0; 128 + 2 * 24 + 48 * slots];
    // The second mark: position 4096 of generation 0.
    bytes[128 + 24 + 17] = 0x10;
    for (slot, place) in bytes[128 + 2 * 24..]
        .chunks_exact_mut(48)
        .enumerate()
        .take(usize::from(count))
    {
        let sequence = if slot == 0 { slots } else { slot };
        place[4] = 1 + u8::from(slot % 3 == 0);
        place[8] = 2;
        place[16] = u8::try_from(sequence).expect("few");
        place[32] = 10;
        place[40] = 1;
    }
    bytes
}

fn words(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn map_entries() -> Vec<Vec<u8>> {
    let written = MapRequest {
        offset: 4096,
        len: 8192,
        operand: [5, 0],
        ..MapRequest::new(MapOp::Written, 3)
    };
    vec![
        words(
            MapRequest::open(Lineage(1 << 100 | 7), true)
                .encode()
                .to_words(),
        ),
        words(written.encode().to_words()),
        words(
            MapReply::run(4096, Placement::First, Epoch(9), 1)
                .encode(4)
                .to_words(),
        ),
        words([4, 2, 12 | 5 << 32, 8]),
        words(MapReply::failed(ErrorCode::Stale).encode(4).to_words()),
    ]
}

fn object_entries() -> Vec<Vec<u8>> {
    let id = ObjectId::data(Lineage(1 << 100 | 7), Epoch(2));
    let mut found: Vec<Vec<u8>> = [ObjectOp::Write, ObjectOp::CompareAndSwap, ObjectOp::List]
        .map(|op| {
            words(
                ObjectRequest {
                    offset: 512,
                    len: 4096,
                    ..ObjectRequest::new(op, id)
                }
                .encode(3)
                .to_words(),
            )
        })
        .into();
    let open = HandleRequest::Open {
        handle: 3,
        object: OpenObject::of(&ObjectRequest::new(ObjectOp::Read, id), HandleAccess::Write),
        again: true,
    };
    found.push(words(open.encode().to_words()));
    found.push(id.to_bytes().to_vec());
    found
}

/// Requests of the near kind to a blocker, one of each operation.
fn requests(operations: &[u8]) -> Vec<u8> {
    let one = |op: &u8| vec![5, 1, 1, *op, u8::from(*op == 5), 0, 0, 0, 16, 0, 0, 0, 0, 0];
    operations.iter().flat_map(one).collect()
}

fn json() -> Vec<Vec<u8>> {
    fn text(value: &impl Serialize) -> Vec<u8> {
        serde_json::to_vec(value).expect("string keys")
    }
    let name = || "vm-1".parse().expect("a legal name");
    let label = || "ganeti.instance=vm-1".parse().expect("a legal label");
    let labels = || Labels::from_list(vec![label()]).expect("one");
    let entry = Entry {
        labels: labels(),
        on_full: OnFull::default(),
        name: name(),
        kind: Kind::Image,
        lineage: Lineage(7),
        size: 512,
        object_size: ObjectSize::MIN,
        parent: Some(name()),
        created: 1,
    };
    let create = CatalogueRequest::Create {
        name: name(),
        lineage: Lineage(7),
        kind: Kind::Volume,
        size: 512,
        object_size: ObjectSize::MAX,
        created: 1,
        on_full: OnFull::default(),
        labels: labels(),
    };
    let list = CatalogueRequest::List {
        prefix: "v".to_owned(),
        after: Some(name()),
        limit: 10,
        label: "ganeti.instance=vm-1".parse().ok(),
    };
    let attach = ControlRequest::Attach {
        attachment: AttachmentId(1),
        volume: ServedVolume {
            lineage: Lineage(7),
            size: 512,
            object_size: ObjectSize::DEFAULT,
            read_only: true,
            serial: "s".to_owned(),
            on_full: OnFull::Report,
        },
        endpoint: EndpointSpec::VhostUser {
            socket: "/run/v".into(),
            queues: 2,
        },
    };
    vec![
        text(&create),
        text(&list),
        text(&CatalogueReply::Page(Page {
            entries: vec![entry],
            next: Some(name()),
        })),
        text(&CatalogueReply::Failed(
            Error::new(ErrorCode::Damaged, "what").with_hint("how"),
        )),
        text(&attach),
        text(&ControlRequest::Catalogue(CatalogueRequest::PoolInfo)),
        text(&ControlReply::Status(ProcessStatus {
            pid: 1,
            ..ProcessStatus::default()
        })),
    ]
}

/// Lives of a pool: volumes made, written, frozen, closed, found again, damaged.
fn lives() -> Vec<Vec<u8>> {
    let create = [0, 0, 1, 0, 1, 0xff, 0xff];
    let open = [64, 1];
    let write = [96, 0, 1, 0, 3];
    let flush = [144, 0];
    let close = [160, 0];
    let snapshot = [0, 2, 1, 2, 2, 0, 0];
    let clone = [0, 1, 2, 3, 3, 0, 0];
    let restart = [176];
    let damage = |object: u8, at: u8| [192, 0, object, 0, 0, at, 0, 1, 0xff];
    vec![
        [
            &create[..],
            &open,
            &write,
            &flush,
            &write,
            &close,
            &snapshot,
            &clone,
            &restart,
        ]
        .concat(),
        [
            &create[..],
            &open,
            &write,
            &flush,
            &write,
            &restart,
            &open,
            &flush,
            &close,
        ]
        .concat(),
        [
            &create[..],
            &open,
            &write,
            &flush,
            &close,
            &damage(1, 80),
            &restart,
            &open,
        ]
        .concat(),
        [
            &create[..],
            &open,
            &write,
            &flush,
            &close,
            &damage(2, 64),
            &damage(3, 50),
            &restart,
        ]
        .concat(),
        [
            &create[..],
            &open,
            &[224, 0, 3, 1],
            &[0; 40],
            &[225, 0, 5, 0],
            &[1; 8],
            &[0, 7, 1, 1, 1, 0, 0],
        ]
        .concat(),
    ]
}
