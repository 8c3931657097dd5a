//! What the mapper keeps in a pool: heads, logs, records, pages.
//!
//! Each input is judged twice: as it is, and with its checksum repaired.

use archipelago_mapper::fuzzing;
use archipelago_protocol::{Generation, Lineage, ObjectSize};

use crate::input::Input;
use crate::sealed::{ENVELOPE_LEN, lineage_of, sealed};

const UNIT: usize = 4096;

/// Checks that what `decode` makes of `bytes` is accepted, and encoded as the same again.
fn settles(bytes: &[u8], decode: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    if let Some(again) = decode(bytes) {
        assert_eq!(decode(&again).as_ref(), Some(&again), "what was accepted");
    }
}

pub(crate) fn volume_head(bytes: &[u8]) {
    for head in [bytes.to_vec(), sealed(*b"ARCHHEAD", bytes)] {
        let lineage = lineage_of(&head);
        settles(&head, |bytes| fuzzing::volume_head(lineage, bytes));
        assert_eq!(
            fuzzing::volume_head(Lineage(lineage.0 ^ 1), &head),
            None,
            "somebody else's head"
        );
    }
}

pub(crate) fn catalogue_head(bytes: &[u8]) {
    settles(bytes, fuzzing::catalogue_head);
    settles(&sealed(*b"ARCHCATL", bytes), fuzzing::catalogue_head);
}

/// Where a fuzzed log begins: small, or where positions come to their end.
fn log_start(input: &mut Input<'_>) -> u64 {
    let start = u64::from(input.u16());
    let start = if start & 1 == 1 {
        u64::MAX / UNIT as u64 - (start >> 1)
    } else {
        start >> 1
    };
    start * UNIT as u64
}

/// Batches at any position, some on top of others, and bytes that were changed behind the checksum's back.
pub(crate) fn log_scan(bytes: &[u8]) {
    const US: Lineage = Lineage(5);
    let mut input = Input::new(bytes);
    let start = log_start(&mut input);
    let len = UNIT as u64 * (1 + u64::from(input.u8() % 16));
    let mut log = fuzzing::blank_log(US, len);
    let newest = Generation(u64::from(input.u8() % 8));
    // As long as nobody interferes, what was appended is what is found.
    let mut expected = Some(Vec::new());
    let (mut next, mut last) = (start, Generation(0));
    while !input.is_empty() {
        let kind = input.u8();
        if kind & 3 == 0 {
            let at = input.below(log.len());
            log[at] ^= input.u8();
            expected = None;
            continue;
        }
        let generation = Generation(u64::from(kind >> 2 & 7));
        let position = if kind & 0x20 == 0 {
            next
        } else {
            expected = None;
            start.wrapping_add(u64::from(input.u8()) * UNIT as u64)
        };
        let len_min = if kind & 0x40 == 0 {
            0
        } else {
            input.below(3 * UNIT)
        };
        // JournaledData blocks look like batches as far as the input has its way.
        let blocks: Vec<u8> = (0..kind >> 3 & 1)
            .flat_map(|_| {
                let mut block = input.take(64).to_vec();
                block.resize(UNIT, 0);
                block
            })
            .collect();
        let payload_len = usize::from(input.u8());
        let payload = input.take(payload_len);
        let batch = fuzzing::encode_batch(US, generation, position, payload, &blocks, len_min);
        let at = usize::try_from(position % len).expect("inside the log");
        let room = log.len() - at;
        log[at..at + batch.len().min(room)].copy_from_slice(&batch[..batch.len().min(room)]);
        let end = position.checked_add(batch.len() as u64);
        let fits = batch.len() <= room && end.is_some_and(|end| end.wrapping_sub(start) <= len);
        if !fits || generation < last || generation > newest {
            expected = None;
        }
        if let Some(expected) = expected.as_mut()
            && !(payload.is_empty() && blocks.is_empty())
        {
            expected.push((payload.to_vec(), blocks));
        }
        last = generation;
        next = end.unwrap_or(start);
    }
    let found = fuzzing::scan_log(&log, US, start, Generation(0), newest);
    if let Some((contents, end)) = &found {
        assert!(end.wrapping_sub(start) <= len, "one round at most");
        assert!(contents.len() as u64 <= len / UNIT as u64);
    }
    if let Some(expected) = expected
        && start < 1 << 62
    {
        assert_eq!(found, Some((expected, next)), "a log that nobody damaged");
    }
}

pub(crate) fn log_records(bytes: &[u8]) {
    settles(bytes, fuzzing::log_records);
}

pub(crate) fn map_page(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let object = input.below(512);
    let (start, end) = (input.u16(), input.u16());
    let page = input.rest();
    for page in [page.to_vec(), sealed(*b"ARCHPAGE", page)] {
        let lineage = lineage_of(&page);
        let level = page.get(ENVELOPE_LEN).copied().unwrap_or(0);
        let log2 = page.get(ENVELOPE_LEN + 1).copied().unwrap_or(0);
        let size = ObjectSize::from_log2(log2).unwrap_or(ObjectSize::DEFAULT);
        let decode = |bytes: &[u8]| fuzzing::map_page(lineage, level, size, bytes, None);
        settles(&page, decode);
        if start < end && u64::from(end) <= size.blocks() {
            let edit = Some((object, start, end));
            if let Some(edited) = fuzzing::map_page(lineage, level, size, &page, edit) {
                assert_eq!(
                    decode(&edited).as_ref(),
                    Some(&edited),
                    "a page that was accepted stays one when it is changed"
                );
            }
        }
    }
}

pub(crate) fn catalogue_records(bytes: &[u8]) {
    let Some((again, dump)) = fuzzing::catalogue_records(bytes) else {
        return;
    };
    let second = fuzzing::catalogue_records(&again).expect("records that were accepted");
    assert_eq!(second, (again, dump.clone()));
    if let Some(dump) = dump {
        let (records, third) = fuzzing::catalogue_records(&dump).expect("a checkpoint of ours");
        assert_eq!((&records, third.as_ref()), (&dump, Some(&dump)));
    }
}

pub(crate) fn catalogue_page(bytes: &[u8]) {
    for page in [bytes.to_vec(), sealed(*b"ARCHCPAG", bytes)] {
        if let Some(len) = fuzzing::catalogue_page(&page) {
            assert!(len <= page.len() && len > 0);
        }
    }
}
