//! What a replay finds: the batches from the head's position on, and whether what stands behind the last is damage.
//!
//! Invariants
//! - What an append left torn was never acknowledged; what was acknowledged and is not whole is damage.
//! - Who knows how far a session had appended reads no further than the append that may have been in flight.

use std::ops::RangeInclusive;

use archipelago_protocol::log_sector::{SECTOR_LEN, Sector, UNIT, first_damaged};
use archipelago_protocol::{Generation, Lineage};

use super::batch::{Content, POSITION_MAX, decode, units_of};
use crate::format::{Problem, Unreadable};

/// Which batches a replay takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) lineage: Lineage,
    /// From this position on.
    pub(crate) start: u64,
    pub(crate) writers: Writers,
}

/// Who appends to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writers {
    /// One session after the other: generations only rise, from the `oldest` to the `newest`. Others are leftovers.
    Sessions {
        oldest: Generation,
        newest: Generation,
    },
    /// Several at a time, each with a generation of its own: whatever was appended belongs to the log.
    Nodes,
}

impl Writers {
    /// Generations that a batch may have behind one of generation `last`, or as the first.
    fn after(self, last: Option<u64>) -> RangeInclusive<u64> {
        match self {
            Writers::Sessions { oldest, newest } => last.unwrap_or(oldest.0)..=newest.0,
            Writers::Nodes => 0..=u64::MAX,
        }
    }
}

/// What a replay found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// What the batches say, in order.
    pub(crate) contents: Vec<Content>,
    /// The position behind the last.
    pub(crate) end: u64,
}

/// What a replay found that does not have the whole log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Found(Scan),
    /// It needs what lies before this position, too.
    ReadOn(u64),
}

/// Checks the end of the batches, at `place` of the whole `log`: whether an append may have been torn there, or none was.
///
/// An acknowledged batch had all of its sectors as they should be. If its first one is not whole, or another one of as
/// many as it says, that is damage; if it is what was there before, nothing was acknowledged.
fn judge_end(log: &[u8], lineage: Lineage, place: usize, end: u64) -> Result<(), usize> {
    let damaged = |len: usize| first_damaged(log, lineage, place..log.len().min(place + len));
    if let Some(at) = damaged(SECTOR_LEN) {
        return Err(at);
    }
    damaged(begun_len(log, lineage, place, end)).map_or(Ok(()), Err)
}

/// As many bytes as the batch at position `end`, at `place` of the `log`, says that it has; 0: none begins there.
fn begun_len(log: &[u8], lineage: Lineage, place: usize, end: u64) -> usize {
    let begun = Sector::open(&log[place..], lineage).filter(|first| first.is_of(end, 0));
    let units = begun.and_then(|first| units_of(&first).ok()).unwrap_or(0);
    units.saturating_mul(UNIT)
}

/// Finds the batches in the `bytes` of a whole log. What follows a torn or missing batch is its tail.
///
/// # Errors
/// What is damaged: a bad batch with a valid one behind it, a last one that no torn append leaves so, or one that this
/// program cannot read.
pub(crate) fn scan(bytes: &[u8], wanted: Wanted) -> Result<Scan, Unreadable> {
    let (found, end) = batches(bytes, wanted)?;
    let Some(why) = end else { return Ok(found) };
    let len = bytes.len() as u64;
    let generations = wanted.writers.after(None);
    let mut later = found.end + UNIT as u64;
    while later < wanted.start + len {
        let place = usize::try_from(later % len).expect("inside the bytes");
        let batch = decode(&bytes[place..], wanted.lineage, later);
        if batch.is_ok_and(|batch| generations.contains(&batch.generation)) {
            let bad = found.end;
            return Err(Unreadable::Damaged(format!(
                "the batch at position {bad} is bad ({why}), one at {later} follows it"
            )));
        }
        later += UNIT as u64;
    }
    checked(bytes, wanted, found)
}

/// The same in a log of which `bytes` holds what lies before position `read_to`, and zeros in place of the rest. Its batches
/// are known to go on to `known` at least.
///
/// # Errors
/// What is damaged: a bad batch before `known`, a last one that no torn append leaves so, or one that this program cannot read.
pub(crate) fn scan_known(
    bytes: &[u8],
    wanted: Wanted,
    known: u64,
    read_to: u64,
) -> Result<Step, Unreadable> {
    let (found, end) = batches(bytes, wanted)?;
    let Some(why) = end else {
        return Ok(Step::Found(found));
    };
    let len = bytes.len() as u64;
    let place = usize::try_from(found.end % len).expect("inside the bytes");
    let begun = begun_len(bytes, wanted.lineage, place, found.end).max(UNIT) as u64;
    let needed = found.end.saturating_add(begun).min(wanted.start + len);
    if needed > read_to {
        return Ok(Step::ReadOn(needed));
    }
    if found.end < known {
        return Err(Unreadable::Damaged(format!(
            "the batch at position {} is bad ({why}), and batches were appended up to {known}",
            found.end
        )));
    }
    checked(bytes, wanted, found).map(Step::Found)
}

/// What was found, if nothing is wrong with its end.
fn checked(bytes: &[u8], wanted: Wanted, found: Scan) -> Result<Scan, Unreadable> {
    let place = found.end % bytes.len() as u64;
    let place = usize::try_from(place).expect("inside the bytes");
    match judge_end(bytes, wanted.lineage, place, found.end) {
        Ok(()) => Ok(found),
        Err(at) => Err(Unreadable::Damaged(format!(
            "its last batch, at position {}, is no torn append: the sector at byte {at} is not what was ever written there",
            found.end
        ))),
    }
}

/// The batches from the start on, and why what follows the last is none; `None`: the circle is full.
fn batches(bytes: &[u8], wanted: Wanted) -> Result<(Scan, Option<Problem>), Unreadable> {
    let Wanted { lineage, start, .. } = wanted;
    let len = bytes.len() as u64;
    if len == 0 || !len.is_multiple_of(UNIT as u64) || !start.is_multiple_of(UNIT as u64) {
        return Err(Unreadable::Damaged(format!(
            "length {len} and start {start} are not multiples of {UNIT}"
        )));
    }
    if start > POSITION_MAX {
        return Err(Unreadable::Damaged(format!(
            "start {start} is beyond {POSITION_MAX}"
        )));
    }
    let at = |position: u64| {
        let offset = usize::try_from(position % len).expect("inside the bytes");
        decode(&bytes[offset..], lineage, position)
    };
    let mut found = Scan {
        contents: Vec::new(),
        end: start,
    };
    let mut last = None;
    let why = loop {
        match at(found.end) {
            Ok(batch) if !wanted.writers.after(last).contains(&batch.generation) => {
                break Problem::Field("generation");
            }
            Ok(batch) => {
                last = Some(batch.generation);
                found.end += batch.len;
                if found.end - start > len {
                    return Err(Unreadable::Damaged(format!(
                        "the batches from position {start} on overlap"
                    )));
                }
                if !batch.content.is_empty() {
                    found.contents.push(batch.content);
                }
            }
            Err(problem) => break problem,
        }
        if found.end - start == len {
            return Ok((found, None));
        }
    };
    if let unsupported @ Unreadable::Unsupported(_) = why.into() {
        return Err(unsupported);
    }
    Ok((found, Some(why)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::batch::{BLOCK_LEN, HEAD_LEN, UNIT_CONTENT, batch_len, encode_batch};
    use super::*;
    use archipelago_protocol::log_sector::blank;

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
        let of =
            |generation, record| encode_batch(US, Generation(generation), 0, &content(record), 0);
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
}
