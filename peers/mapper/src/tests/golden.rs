//! Every durable structure and the presence journal as bytes, written out by hand from the tables of `docs/map-format.md`: a
//! change of a layout is a change here too.

use std::cell::RefCell;
use std::rc::Rc;

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::{Epoch, Generation, Labels, Lineage, ObjectSize, OnFull};

use crate::catalogue::{Attributes, Change, End, Incarnation, Item};
use crate::format::Writer;
use crate::head::{CatalogueHead, VolumeHead};
use crate::journal::{Journal, JournalArea, JournalMemory, JournalRecord, load};
use crate::log::{Content, Record, RecordKind, UNIT, encode_batch};
use crate::tree::{Cache, Layer, PackPlace, PageRef, Range, Root, Tree};

const US: Lineage = Lineage(1 << 64 | 2);
const PARENT: Lineage = Lineage(3 << 64 | 4);
/// Of a head; of a journal the boot.
const OWNER: u128 = 7 << 64 | 8;

/// Whether `bytes` are those that stand in `golden`, in hexadecimal digits and spaces.
#[track_caller]
pub(crate) fn check(bytes: &[u8], golden: &str) {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digits, golden.replace([' ', '\n'], ""));
}

fn root() -> Root {
    Root {
        page: Some(PageRef {
            lineage: PARENT,
            pack: 5,
            offset: 64,
            len: 900,
            crc: 7,
        }),
        level: 2,
    }
}

#[test]
fn a_volume_head() {
    let head = VolumeHead {
        generation: Generation(6),
        owner: OWNER,
        takeovers: 0,
        clean: true,
        object_size: ObjectSize::MIN,
        epoch: Epoch(9),
        frozen: Epoch(4),
        root: root(),
        log_number: 1,
        log_len: 1 << 20,
        log_start: 8192,
        compatible: 9,
    };
    let bytes = head.encode(US);
    check(
        &bytes,
        "4152434848454144 03000000 b0000000 2c6dab18 00000000 09000000 00000000 0100000000000000 0200000000000000
         0600000000000000 0700000000000000 0800000000000000 01 10 000000000000
         0900000000000000 0400000000000000 0100000000000000 0000100000000000 0020000000000000
         02 01 000000000000 84030000 07000000 00000000 0300000000000000 0400000000000000
         0500000000000000 4000000000000000 00000000",
    );
    assert_eq!(VolumeHead::decode(US, &bytes), Ok(head));
    let taken = VolumeHead {
        clean: false,
        takeovers: 5,
        ..head
    };
    let bytes = taken.encode(US);
    check(&bytes[72..80], "00 10 0000 05000000");
    assert_eq!(VolumeHead::decode(US, &bytes), Ok(taken));
}

#[test]
fn a_catalogue_head() {
    let head = CatalogueHead {
        generation: Generation(6),
        owner: OWNER,
        log_number: 1,
        log_len: 1 << 20,
        log_start: 8192,
        pack: 1 << 32 | 1,
        pack_len: 12288,
        pack_capacity: 8192,
        entries: 10,
        compatible: 9,
    };
    let bytes = head.encode();
    check(
        &bytes,
        "415243484341544c 03000000 80000000 92982a80 00000000 09000000 00000000 0000000000000000 0000000000000000
         0600000000000000 0700000000000000 0800000000000000
         0100000000000000 0000100000000000 0020000000000000
         0100000001000000 0030000000000000 0020000000000000 0a00000000000000",
    );
    assert_eq!(CatalogueHead::decode(&bytes), Ok(head));
}

#[test]
fn map_pages() {
    // A leaf of objects of 16 blocks, below a root that has no other child.
    let mut tree = Tree::new(Root::default(), ObjectSize::MIN);
    let cache = Cache::new(0);
    let layer = |lineage, epoch| {
        Some(Layer {
            lineage,
            epoch: Epoch(epoch),
        })
    };
    for (start, end, layer) in [
        (16 + 2, 16 + 5, layer(US, 9)),
        (16 + 5, 16 + 6, layer(PARENT, 8)),
        (511 * 16, 512 * 16, layer(PARENT, 8)),
        (512 * 16, 512 * 16 + 1, layer(US, 9)),
        (512 * 16, 512 * 16 + 1, None),
    ] {
        tree.set(&cache, Range { start, end }, layer);
    }
    let place = PackPlace {
        number: 5,
        offset: 4096,
        len_max: 1 << 20,
    };
    let (written, root, end) = tree.pages(US, place);
    assert_eq!(end.offset, 4096 + 192 + 128);
    let (leaf, inner) = written.pieces[0].bytes.split_at(192);
    check(
        leaf,
        "4152434850414745 03000000 b0000000 e8b05847 00000000 00000000 00000000 0100000000000000 0200000000000000
         00 10 0000 02000000 02000000 00000000
         0100000000000000 0200000000000000 0900000000000000 0000000000000000 01000000 00000000
         0300000000000000 0400000000000000 0800000000000000 0000000000000000 01000000 00000000
         0100 0200 0200 0300 00000000 0500 0100 01000000
         ff01 0100 0000 1000 01000000
         0000000000000000 0000000000000000",
    );
    check(
        inner,
        "4152434850414745 03000000 70000000 c7d5577e 00000000 00000000 00000000 0100000000000000 0200000000000000
         01 10 0000 01000000 00000000 00000000
         0000 0000 b0000000 e8b05847 00000000 0100000000000000 0200000000000000
         0500000000000000 0010000000000000
         0000000000000000 0000000000000000",
    );
    let expected = PageRef {
        lineage: US,
        pack: 5,
        offset: 4096 + 192,
        len: 112,
        crc: u32::from_le_bytes([0xc7, 0xd5, 0x57, 0x7e]),
    };
    assert_eq!((root.page, root.level), (Some(expected), 1));
}

#[test]
fn records_of_a_volume_s_log() {
    let record = |kind, blocks, start, epoch, sequence| Record {
        kind,
        blocks,
        start,
        epoch: Epoch(epoch),
        sequence,
    };
    let records = vec![
        record(RecordKind::Present, 3, 4, 5, 6),
        record(RecordKind::Zero, 6, 7, 8, 9),
        record(RecordKind::Freeze, 0, 0, 10, 0),
        record(RecordKind::Journaled, 1, 11, 12, 13),
        record(RecordKind::WrittenBack, 0, 0, 0, 0),
    ];
    let mut bytes = Writer::bare();
    records.iter().for_each(|record| record.encode(&mut bytes));
    let bytes = bytes.into_bytes();
    check(
        &bytes,
        "01 00 2000 03000000 0400000000000000 0500000000000000 0600000000000000
         02 00 2000 06000000 0700000000000000 0800000000000000 0900000000000000
         03 00 2000 00000000 0000000000000000 0a00000000000000 0000000000000000
         04 00 2000 01000000 0b00000000000000 0c00000000000000 0d00000000000000
         05 00 2000 00000000 0000000000000000 0000000000000000 0000000000000000",
    );
    assert_eq!(Record::decode_all(&bytes), Ok(records));
}

#[test]
fn catalogue_records() {
    let snapshot = Item {
        name: Some("vm@1".parse().unwrap()),
        kind: Kind::Snapshot,
        lineage: US,
        sources: vec![PARENT],
        size: 1 << 20,
        object_size: ObjectSize::MIN,
        created: 1234,
        epoch: Epoch(9),
        removed: 0,
        root: root(),
        attributes: Attributes::default(),
    };
    let hidden = Item {
        name: None,
        kind: Kind::Volume,
        sources: Vec::new(),
        epoch: Epoch(0),
        root: Root::default(),
        ..snapshot.clone()
    };
    let reporting = Item {
        attributes: Attributes::new(OnFull::Report, Labels::default()),
        ..snapshot.clone()
    };
    let labels = ["ganeti.disk=0", "ganeti.instance=web"].map(|label| label.parse().unwrap());
    let labels = Labels::from_list(labels.to_vec()).unwrap();
    let labelled = Item {
        attributes: Attributes::new(OnFull::default(), labels),
        ..snapshot.clone()
    };
    let spliced = Item {
        kind: Kind::Image,
        sources: vec![PARENT, US],
        removed: 5678,
        ..reporting.clone()
    };
    let import = Item {
        kind: Kind::Importing,
        sources: Vec::new(),
        attributes: Attributes::default().with_importer(OWNER),
        ..hidden.clone()
    };
    let changes = vec![
        Change::Put(snapshot),
        Change::Put(hidden),
        Change::Put(reporting),
        Change::Put(labelled),
        Change::Put(spliced),
        Change::Put(import),
        Change::Delete {
            lineage: US,
            by: OWNER,
        },
        Change::Forget(US),
        Change::Begin(Incarnation {
            id: OWNER,
            node: "node".to_owned(),
            addresses: "a b".to_owned(),
        }),
        Change::End {
            incarnation: OWNER,
            how: End::Gone,
        },
        Change::End {
            incarnation: OWNER,
            how: End::Fenced,
        },
    ];
    let mut bytes = Writer::bare();
    changes.iter().for_each(|change| change.encode(&mut bytes));
    let bytes = bytes.into_bytes();
    check(
        &bytes,
        "01 00 8800 02 10 0400 0100000000000000 0200000000000000 0000100000000000 d204000000000000
         0900000000000000 0000000000000000
         02 01 000000000000 84030000 07000000 00000000 0300000000000000 0400000000000000
         0500000000000000 4000000000000000
         0100 0000 766d4031 00000000
         0300000000000000 0400000000000000
         01 00 7000 01 10 0000 0100000000000000 0200000000000000 0000100000000000 d204000000000000
         0000000000000000 0000000000000000
         00 00 000000000000 00000000 00000000 00000000 0000000000000000 0000000000000000
         0000000000000000 0000000000000000
         0000 0000
         01 00 9000 02 10 0400 0100000000000000 0200000000000000 0000100000000000 d204000000000000
         0900000000000000 0000000000000000
         02 01 000000000000 84030000 07000000 00000000 0300000000000000 0400000000000000
         0500000000000000 4000000000000000
         0100 0000 766d4031 00000000
         0300000000000000 0400000000000000
         0100 0400 00000000
         01 00 b000 02 10 0400 0100000000000000 0200000000000000 0000100000000000 d204000000000000
         0900000000000000 0000000000000000
         02 01 000000000000 84030000 07000000 00000000 0300000000000000 0400000000000000
         0500000000000000 4000000000000000
         0100 0000 766d4031 00000000
         0300000000000000 0400000000000000
         0200 2200 0b01 67616e6574692e6469736b 30 0f03 67616e6574692e696e7374616e6365 776562 0000
         01 00 a000 03 10 0400 0100000000000000 0200000000000000 0000100000000000 d204000000000000
         0900000000000000 2e16000000000000
         02 01 000000000000 84030000 07000000 00000000 0300000000000000 0400000000000000
         0500000000000000 4000000000000000
         0200 0000 766d4031 00000000
         0300000000000000 0400000000000000
         0100000000000000 0200000000000000
         0100 0400 00000000
         01 00 8800 04 10 0000 0100000000000000 0200000000000000 0000100000000000 d204000000000000
         0000000000000000 0000000000000000
         00 00 000000000000 00000000 00000000 00000000 0000000000000000 0000000000000000
         0000000000000000 0000000000000000
         0000 0000
         0300 1000 0700000000000000 0800000000000000 00000000
         02 00 2800 00000000 0100000000000000 0200000000000000 0700000000000000 0800000000000000
         03 00 1800 00000000 0100000000000000 0200000000000000
         04 00 2800 00000000 0700000000000000 0800000000000000
         0400 0300 00000000 6e6f6465 612062 00
         05 00 1800 01 00 0000 0700000000000000 0800000000000000
         05 00 1800 02 00 0000 0700000000000000 0800000000000000",
    );
    assert_eq!(Change::decode_all(&bytes), Ok(changes));
}

#[test]
fn a_batch() {
    let content = Content {
        payload: (0..32).collect(),
        blocks: vec![0xab; UNIT],
    };
    let batch = encode_batch(Lineage(5), Generation(3), 1 << 20, &content, 0);
    assert_eq!(
        (batch.len(), crc32c::crc32c(&batch)),
        (2 * UNIT, 0x7ef5_8b06)
    );
    // Header of the sector, envelope, body.
    check(
        &batch[..100],
        "0000100000000000 0300000000000000 00001000 42c131e1
         4152434842544348 03000000 801e0000 55dbbb18 00000000 00000000 00000000 00000000000000000500000000000000
         0300000000000000 0000100000000000 20000000 01000000 00010203",
    );
}

/// Memory of a journal that can be looked at.
#[derive(Debug, Clone)]
struct Area(Rc<RefCell<Vec<u8>>>);

impl JournalMemory for Area {
    fn size(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        let at = usize::try_from(offset).unwrap();
        into.copy_from_slice(&self.0.borrow()[at..at + into.len()]);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        self.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[test]
fn a_presence_journal() {
    let area = |len| Area(Rc::new(RefCell::new(vec![0; len])));
    // Room for two marks and four records, and a bit that is not enough for another one.
    let memory = area(128 + 2 * 24 + 4 * 48 + 47);
    let mut journal = JournalArea::create(memory.clone(), OWNER, US, Generation(6));
    let record = |sequence, blocks, start, zero| JournalRecord {
        sequence,
        start,
        blocks,
        epoch: Epoch(9),
        zero,
    };
    let records = vec![record(1, 2, 3, false), record(2, 5, 4, true)];
    for record in &records {
        journal.append(*record).unwrap();
    }
    journal.mark(0x1000);
    let bytes = memory.0.borrow().clone();
    check(
        &bytes[..88],
        "415243484a524e4c 03000000 80000000 a43ca0d7 00000000 00000000 00000000 0100000000000000 0200000000000000
         0700000000000000 0800000000000000 0600000000000000 0400000000000000 0000000000000000",
    );
    assert!(bytes[88..128].iter().all(|byte| *byte == 0));
    check(
        &bytes[128..128 + 24],
        "7e6d6e07 00000000 0600000000000000 0010000000000000",
    );
    // The second mark, and the slot of record 4.
    assert!(bytes[128 + 24..176 + 48].iter().all(|byte| *byte == 0));
    check(
        &bytes[176 + 48..176 + 3 * 48],
        "3698db00 01000000 02000000 00000000 0100000000000000 0600000000000000
         0300000000000000 0900000000000000
         01cfa729 02000000 05000000 00000000 0200000000000000 0600000000000000
         0400000000000000 0900000000000000",
    );
    assert_eq!(load(&memory, OWNER, US).unwrap().unwrap().records, records);
    // Nothing is written where not even a head has room.
    let none = area(100);
    JournalArea::create(none.clone(), OWNER, US, Generation(6)).mark(0x1000);
    assert!(none.0.borrow().iter().all(|byte| *byte == 0));
}
