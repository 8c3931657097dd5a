//! Logs as appends, torn appends and damage leave them, and what is found there.

use archipelago_protocol::log_sector::blank;
use proptest::prelude::*;

use super::super::batch::{BLOCK_LEN, HEAD_LEN, UNIT_CONTENT, batch_len, encode_batch};
use super::*;

const US: Lineage = Lineage(5);
const LOG_LEN: usize = 16 * UNIT;

/// Appends batches of these payload lengths from `start` on; their positions, and the end.
fn append(bytes: &mut [u8], start: u64, payloads: &[usize]) -> Vec<u64> {
    let mut position = start;
    let mut positions = Vec::new();
    for (index, len) in payloads.iter().enumerate() {
        let payload = vec![u8::try_from(index).unwrap() + 1; *len];
        let content = Content::records(payload);
        let mut batch = encode_batch(US, Generation(3), position, &content, 0);
        let mut at = usize::try_from(position).unwrap() % LOG_LEN;
        if at + batch.len() > LOG_LEN {
            let nothing = Content::default();
            let pad = encode_batch(US, Generation(3), position, &nothing, LOG_LEN - at);
            bytes[at..].copy_from_slice(&pad);
            position += pad.len() as u64;
            batch = encode_batch(US, Generation(3), position, &content, 0);
            at = 0;
        }
        bytes[at..at + batch.len()].copy_from_slice(&batch);
        positions.push(position);
        position += batch.len() as u64;
    }
    positions.push(position);
    positions
}

/// A new log.
fn unused() -> Vec<u8> {
    blank(US, 0..LOG_LEN as u64)
}

/// A log that begins at `start` with batches of these payload lengths; their positions.
fn filled(start: u64, payloads: &[usize]) -> (Vec<u8>, Vec<u64>) {
    let mut bytes = unused();
    let positions = append(&mut bytes, start, payloads);
    (bytes, positions)
}

fn found(bytes: &[u8], start: u64) -> Result<Vec<u8>, String> {
    let found = scan(bytes, wanted(start, 0, 3));
    found
        .map(|scan| firsts(&scan))
        .map_err(|why| why.to_string())
}

fn wanted(start: u64, oldest: u64, newest: u64) -> Wanted {
    Wanted {
        lineage: US,
        start,
        writers: Writers::Sessions {
            oldest: Generation(oldest),
            newest: Generation(newest),
        },
    }
}

/// The first byte of each payload.
fn firsts(scan: &Scan) -> Vec<u8> {
    let firsts = scan.contents.iter().map(|content| content.payload[0]);
    firsts.collect()
}

/// What is found by who knows that batches go on to `known`, and reads piece by piece; up to where it has read.
fn found_known(log: &[u8], start: u64, known: u64) -> (Result<Vec<u8>, String>, u64) {
    let mut bytes = vec![0; LOG_LEN];
    let (mut read, mut to) = (start, known + UNIT as u64);
    loop {
        to = to.min(start + LOG_LEN as u64);
        for position in (read..to).step_by(UNIT) {
            let at = usize::try_from(position).unwrap() % LOG_LEN;
            bytes[at..at + UNIT].copy_from_slice(&log[at..at + UNIT]);
        }
        match scan_known(&bytes, wanted(start, 0, 3), known, to) {
            Ok(Step::ReadOn(further)) => {
                assert!(further > to, "it comes to an end");
                (read, to) = (to, further);
            }
            Ok(Step::Found(scan)) => return (Ok(firsts(&scan)), to),
            Err(why) => return (Err(why.to_string()), to),
        }
    }
}

#[test]
fn batches_are_found_again_also_around_the_end() {
    let (bytes, positions) = filled(0, &[10, 5000, 1]);
    assert_eq!(found(&bytes, 0), Ok(vec![1, 2, 3]));
    assert_eq!(found(&bytes, positions[1]), Ok(vec![2, 3]));
    let start = LOG_LEN as u64 * 7 - 2 * UNIT as u64;
    let (bytes, _) = filled(start, &[10, 9000, 1]);
    assert_eq!(found(&bytes, start), Ok(vec![1, 2, 3]));
}

#[test]
fn who_knows_how_far_batches_go_reads_no_further() {
    for start in [0, LOG_LEN as u64 * 7 - 2 * UNIT as u64] {
        let (bytes, positions) = filled(start, &[10, 9000, 1]);
        let unit = UNIT as u64;
        let end = positions[3];
        let all = Ok(vec![1, 2, 3]);
        assert_eq!(found_known(&bytes, start, end), (all.clone(), end + unit));
        // What was in flight at the end.
        let before = positions[1];
        assert_eq!(found_known(&bytes, start, before), (all, end + unit));
    }
    let (full, positions) = filled(0, &[3800; 16]);
    let known = positions[15];
    let (found, read) = found_known(&full, 0, known);
    assert_eq!((found.unwrap().len(), read), (16, LOG_LEN as u64));
}

#[test]
fn who_knows_how_far_batches_go_misses_lost_ones() {
    let (bytes, positions) = filled(0, &[10, 5000, 1]);
    let place = |index: usize| usize::try_from(positions[index]).unwrap();
    let mut lost = bytes;
    lost[place(1)..place(3)].copy_from_slice(&unused()[place(1)..place(3)]);
    // Nothing whole follows, so that only who knows better can tell.
    assert_eq!(found(&lost, 0), Ok(vec![1]));
    let why = found_known(&lost, 0, positions[3]).0.unwrap_err();
    assert!(why.contains("batches were appended up to"), "{why}");
    assert_eq!(found_known(&lost, 0, positions[1]).0, Ok(vec![1]));
}

#[test]
fn a_torn_tail_ends_the_log_and_a_hole_is_damage() {
    let (good, positions) = filled(0, &[10, 5000, 1]);
    let at = |index: usize| usize::try_from(positions[index]).unwrap();
    let mut torn = good.clone();
    torn[at(2)..at(2) + 512].copy_from_slice(&unused()[at(2)..at(2) + 512]);
    assert_eq!(found(&torn, 0), Ok(vec![1, 2]));
    let mut hole = good;
    hole[at(1) + 100] ^= 1;
    assert!(found(&hole, 0).unwrap_err().contains("follows it"));
}

#[test]
fn each_flipped_bit_of_the_last_batch_is_damage() {
    let (mut log, positions) = filled(0, &[10, 5000]);
    let bits = positions[1] * 8..positions[2] * 8;
    for bit in bits.map(|bit| usize::try_from(bit).unwrap()) {
        log[bit / 8] ^= 1 << (bit % 8);
        let why = found(&log, 0).unwrap_err();
        let place = format!("the sector at byte {} is not", bit / 8 / 512 * 512);
        assert!(why.contains(&place), "bit {bit}: {why}");
        log[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn damage_where_no_batch_can_have_been_is_left_to_the_check() {
    let (mut log, positions) = filled(0, &[10]);
    let end = usize::try_from(positions[1]).unwrap();
    log[end + 700] ^= 1;
    assert_eq!(found(&log, 0), Ok(vec![1]));
    log[end + 10] ^= 1;
    assert!(found(&log, 0).unwrap_err().contains("no torn append"));
}

#[test]
fn leftovers_of_the_last_round_and_of_newer_generations_are_not_there() {
    let (bytes, positions) = filled(0, &[10, 10]);
    assert_eq!(found(&bytes, LOG_LEN as u64), Ok(vec![]));
    let scan = scan(&bytes, wanted(0, 0, 2)).unwrap();
    assert_eq!((scan.contents.len(), scan.end), (0, 0));
    assert_eq!(positions[1], UNIT as u64);
}

#[test]
fn what_a_stale_writer_appends_is_not_there() {
    let batch = |generation, position| {
        let content = Content::records(vec![9; 10]);
        encode_batch(US, Generation(generation), position, &content, 0)
    };
    let unit = UNIT as u64;
    let mut log = unused();
    log[..UNIT].copy_from_slice(&batch(3, 0));
    log[UNIT..2 * UNIT].copy_from_slice(&batch(2, unit));
    let end = |start, oldest| {
        let scan = scan(&log, wanted(start, oldest, 3));
        scan.unwrap().end
    };
    assert_eq!(end(0, 0), unit, "older than the batch before it");
    assert_eq!(end(unit, 3), unit, "older than the head's");
    assert_eq!(end(unit, 2), 2 * unit, "the last before a head was swapped");
    // Several nodes append in turn.
    let wanted = Wanted {
        writers: Writers::Nodes,
        ..wanted(0, 0, 0)
    };
    assert_eq!(scan(&log, wanted).unwrap().end, 2 * unit);
}

#[test]
fn carried_blocks_come_back_and_are_never_taken_for_a_batch() {
    // A guest that knows all and has whole batches in its blocks, so that each unit of the carrying one's sectors
    // holds the content of a first sector: as if a batch began there.
    for records in [0, 32, UNIT_CONTENT - HEAD_LEN, UNIT_CONTENT] {
        let len = batch_len(records, 2);
        let mut blocks = vec![0; 2 * BLOCK_LEN];
        for unit in 1..len / UNIT {
            let content = Content::records(vec![9; 32]);
            let forged = encode_batch(US, Generation(3), (unit * UNIT) as u64, &content, 0);
            let first = Sector::open(&forged, US).unwrap().content;
            if let Some(at) = (unit * UNIT_CONTENT).checked_sub(HEAD_LEN + records)
                && let Some(place) = blocks.get_mut(at..at + first.len())
            {
                place.copy_from_slice(first);
            }
        }
        let payload = vec![1; records];
        let content = Content { payload, blocks };
        let batch = encode_batch(US, Generation(3), 0, &content, 0);
        assert_eq!(batch.len(), len);
        let mut log = unused();
        log[..batch.len()].copy_from_slice(&batch);
        let scan = |log: &[u8]| super::scan(log, wanted(0, 0, 3));
        assert_eq!(scan(&log).unwrap().contents, [content]);
        // Torn: what lies behind its beginning is its own rest, nobody's batch.
        log[..SECTOR_LEN].copy_from_slice(&unused()[..SECTOR_LEN]);
        assert_eq!(scan(&log).unwrap().contents, []);
        // The next session's batch stands over the first unit of it, and is the last.
        let next = encode_batch(US, Generation(3), 0, &Content::records(vec![2]), 0);
        log[..UNIT].copy_from_slice(&next);
        assert_eq!(scan(&log).unwrap().end, UNIT as u64);
    }
}

#[test]
fn a_position_at_the_end_of_numbers_is_refused() {
    let last = u64::MAX - u64::MAX % LOG_LEN as u64;
    for start in [last, last - LOG_LEN as u64, POSITION_MAX + UNIT as u64] {
        let (bytes, _) = filled(0, &[10]);
        assert!(found(&bytes, start).unwrap_err().contains("beyond"));
    }
    let (bytes, _) = filled(POSITION_MAX, &[10]);
    assert_eq!(found(&bytes, POSITION_MAX), Ok(vec![1]));
}

#[test]
fn a_full_circle_is_read_once() {
    for start in [0, 4 * UNIT as u64, 7 * LOG_LEN as u64 - 4 * UNIT as u64] {
        let (bytes, _) = filled(start, &[3 * UNIT; 4]);
        assert_eq!(found(&bytes, start), Ok(vec![1, 2, 3, 4]));
    }
}

#[test]
fn what_two_torn_appends_left_is_neither() {
    // A batch of a session that ended is torn, recovered as not there, and torn over by the next session's: alike but for
    // their generations and records, so that each sector of the one could stand in the other.
    let content = |record: u8| Content {
        payload: vec![record],
        blocks: vec![7; BLOCK_LEN],
    };
    let of = |generation, record| encode_batch(US, Generation(generation), 0, &content(record), 0);
    let (older, newer) = (of(1, 1), of(2, 2));
    let sectors = older.len() / SECTOR_LEN;
    for kept in 1..(1_u32 << sectors) - 1 {
        let mut log = unused();
        for sector in 0..sectors {
            let from = if kept & 1 << sector == 0 {
                &newer
            } else {
                &older
            };
            let place = sector * SECTOR_LEN..(sector + 1) * SECTOR_LEN;
            log[place.clone()].copy_from_slice(&from[place]);
        }
        let found = super::scan(&log, wanted(0, 0, 9)).unwrap();
        assert_eq!((found.contents, found.end), (Vec::new(), 0), "{kept:b}");
    }
}

proptest! {
    #[test]
    fn any_sectors_of_the_last_write_survive_as_nothing_or_all(
        before in prop::collection::vec(1usize..9000, 0..6),
        lens in prop::collection::vec(1usize..9000, 1..4),
        lost in prop::collection::vec(any::<bool>(), 24),
        damage in (any::<prop::sample::Index>(), 1u8..),
    ) {
        // The round before leaves its sectors, if there was one.
        let mut bytes = unused();
        append(&mut bytes, 0, &before);
        let start = if before.is_empty() { 0 } else { LOG_LEN as u64 };
        let (all, last) = lens.split_at(lens.len() - 1);
        let position = *append(&mut bytes, start, all).last().unwrap();
        let old = bytes.clone();
        append(&mut bytes, position, last);
        let at = usize::try_from(position).unwrap() % LOG_LEN;
        let len = batch_len(last[0], 0);
        let (mut torn, mut whole) = (bytes.clone(), true);
        for place in (at..at + len).step_by(SECTOR_LEN) {
            if lost[(place - at) / SECTOR_LEN] {
                torn[place..place + SECTOR_LEN].copy_from_slice(&old[place..place + SECTOR_LEN]);
                whole = false;
            }
        }
        let expected = if whole { lens.len() } else { all.len() };
        prop_assert_eq!(found(&torn, start).unwrap().len(), expected);
        // In flight when its session died.
        prop_assert_eq!(found_known(&torn, start, position).0, found(&torn, start));
        // Damaged after it was acknowledged: refused, whatever byte it is.
        let (index, mask) = damage;
        bytes[at + index.index(len)] ^= mask;
        prop_assert!(found(&bytes, start).is_err());
        for known in [position, position + len as u64] {
            prop_assert!(found_known(&bytes, start, known).0.is_err());
        }
    }

    #[test]
    fn random_logs_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2), start in 0u64..100) {
        let mut log = blank(US, 0..4 * UNIT as u64);
        log[..bytes.len()].copy_from_slice(&bytes);
        if let Ok(found) = scan(&log, wanted(start * UNIT as u64, 0, 1)) {
            prop_assert!(found.contents.is_empty());
        }
    }
}
