//! The presence journal: a mapped file that an unclean end left behind.

use archipelago_doubles::JournalBytes;
use archipelago_mapper::journal::{
    HEAD_LEN, Journal, JournalArea, MARK_LEN, SLOT_LEN, SLOTS_AT, load,
};
use archipelago_protocol::{Generation, Lineage};

use crate::sealed::sealed;

const US: Lineage = Lineage(3);
const BOOT: u128 = 7;

pub(crate) fn journal(bytes: &[u8]) {
    check(bytes.to_vec());
    check(repaired(bytes));
}

/// The bytes with a head that fits them and slots whose checksums do.
fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(SLOTS_AT + SLOT_LEN), 0);
    let slots = ((bytes.len() - SLOTS_AT) / SLOT_LEN) as u64;
    let mut head = bytes[..HEAD_LEN].to_vec();
    head[32..64].fill(0);
    head[40] = 3;
    head[56] = 7;
    head[72..80].copy_from_slice(&slots.to_le_bytes());
    head[80..].fill(0);
    bytes[..HEAD_LEN].copy_from_slice(&sealed(*b"ARCHJRNL", &head));
    let (front, slots) = bytes.split_at_mut(SLOTS_AT);
    let marks = front[HEAD_LEN..].chunks_exact_mut(MARK_LEN);
    for part in marks.chain(slots.chunks_exact_mut(SLOT_LEN)) {
        let sum = crc32c::crc32c(&part[4..]);
        part[..4].copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

fn check(bytes: Vec<u8>) {
    let len = bytes.len();
    let memory = JournalBytes::new(bytes);
    let Ok(Some(found)) = load(&memory, BOOT, US) else {
        return;
    };
    let in_order = found.records.windows(2);
    assert!(
        in_order
            .map(|pair| (pair[0].sequence, pair[1].sequence))
            .all(|(a, b)| a + 1 == b)
    );
    assert_eq!(
        load(&memory, BOOT, US),
        Ok(Some(found.clone())),
        "a load changes nothing"
    );
    // What was found, numbered from 1, is found again by whoever comes next. A new journal is a new file.
    let memory = JournalBytes::new(vec![0; len]);
    let next = Generation(found.generation.0.wrapping_add(1));
    let mut journal = JournalArea::create(memory.clone(), BOOT, US, next);
    let mut records = found.records;
    for (record, sequence) in records.iter_mut().zip(1..) {
        record.sequence = sequence;
        journal.append(*record).expect("they were all there before");
    }
    if let Some(position) = found.logged {
        journal.mark(position);
    }
    let again = load(&memory, BOOT, US).expect("of this version");
    let again = again.expect("a journal of ours");
    let read = (again.generation, again.logged, again.records);
    assert_eq!(read, (next, found.logged, records));
}
