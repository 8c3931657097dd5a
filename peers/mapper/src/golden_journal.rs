//! The presence journal as bytes, written out by hand from the table of `docs/map-format.md`.

use std::cell::RefCell;
use std::rc::Rc;

use archipelago_protocol::{Epoch, Generation, Lineage};

use crate::journal::{Journal, JournalArea, JournalMemory, JournalRecord, load};

const US: Lineage = Lineage(1 << 64 | 2);
const BOOT: u128 = 7 << 64 | 8;

/// Whether `bytes` are those that stand in `golden`, in hexadecimal digits and spaces.
#[track_caller]
fn check(bytes: &[u8], golden: &str) {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digits, golden.replace([' ', '\n'], ""));
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
    let mut journal = JournalArea::create(memory.clone(), BOOT, US, Generation(6));
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
        &bytes[..80],
        "415243484a524e4c 02000000 80000000 95ebe269 00000000 0100000000000000 0200000000000000
         0700000000000000 0800000000000000 0600000000000000 0400000000000000 0000000000000000",
    );
    assert!(bytes[80..128].iter().all(|byte| *byte == 0));
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
    assert_eq!(load(&memory, BOOT, US).unwrap().records, records);
    // Nothing is written where not even a head has room.
    let none = area(100);
    JournalArea::create(none.clone(), BOOT, US, Generation(6)).mark(0x1000);
    assert!(none.0.borrow().iter().all(|byte| *byte == 0));
}
