//! Batches: what one append writes. Layout: `docs/map-format.md`, "Log batches".
//!
//! Body behind the envelope: generation u64, position u64, payload length u32, carried blocks u32; the first 8 bytes
//! of each carried block; payload; zeros to 4096; the carried blocks, each with [`CARRIED_MARK`] for its first 8 bytes.
//!
//! What a guest wrote is never taken for a batch: batches begin at multiples of 4096 bytes. Carried blocks do too, but
//! with a mark that is not a batch's; their first bytes stand where no multiple is, and records are not a guest's.

use archipelago_protocol::{Generation, Lineage};

use crate::format::{ENVELOPE_LEN, Problem, Reader, Writer};

pub(super) const MAGIC: [u8; 8] = *b"ARCHBTCH";
/// Stands where a carried block begins.
const CARRIED_MARK: [u8; 8] = *b"ARCHCARR";
/// Batches are multiples of this, so that no append touches a durable one.
pub(crate) const UNIT: usize = 4096;
/// Positions end here, so that sums of positions and lengths cannot overflow: at 10 GB/s a log gets there in 14 years.
pub(crate) const POSITION_MAX: u64 = 1 << 62;
/// Bytes in front of the payload.
pub(super) const HEAD_LEN: usize = ENVELOPE_LEN + 24;

/// What a batch says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// Records.
    pub(crate) payload: Vec<u8>,
    /// Carried blocks, one behind the other.
    pub(crate) blocks: Vec<u8>,
}

impl Content {
    /// Only records.
    pub(crate) fn records(payload: Vec<u8>) -> Self {
        Content {
            payload,
            blocks: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.payload.is_empty() && self.blocks.is_empty()
    }

    /// Bytes of the batch.
    pub(crate) fn batch_len(&self) -> usize {
        batch_len(self.payload.len(), self.blocks.len() / UNIT)
    }
}

/// Bytes of a batch with `payload` bytes of records and `blocks` carried blocks.
pub(crate) fn batch_len(payload: usize, blocks: usize) -> usize {
    (HEAD_LEN + payload + 8 * blocks).next_multiple_of(UNIT) + blocks * UNIT
}

/// A batch of at least `len_min` bytes.
pub(crate) fn encode_batch(
    lineage: Lineage,
    generation: Generation,
    position: u64,
    content: &Content,
    len_min: usize,
) -> Vec<u8> {
    let Content { payload, blocks } = content;
    let count = blocks.len() / UNIT;
    let mut batch = Writer::sealed(MAGIC, lineage);
    batch.u64(generation.0);
    batch.u64(position);
    batch.u32(u32::try_from(payload.len()).expect("at most BATCH_MAX"));
    batch.u32(u32::try_from(count).expect("at most BATCH_MAX"));
    for block in blocks.chunks_exact(UNIT) {
        batch.bytes(&block[..8]);
    }
    batch.bytes(payload);
    batch.pad(UNIT);
    for block in blocks.chunks_exact(UNIT) {
        batch.bytes(&CARRIED_MARK);
        batch.bytes(&block[8..]);
    }
    let len = batch.len().max(len_min).next_multiple_of(UNIT);
    batch.pad_to(len);
    batch.seal()
}

/// What a replay found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// What the batches say, in order.
    pub(crate) contents: Vec<Content>,
    /// The position behind the last.
    pub(crate) end: u64,
}

pub(super) struct Batch {
    generation: u64,
    content: Content,
    len: u64,
}

pub(super) fn decode(bytes: &[u8], lineage: Lineage, position: u64) -> Result<Batch, Problem> {
    // The position first: a leftover of the last round is the common case, and not worth a checksum.
    let mut fields = Reader::new(bytes.get(ENVELOPE_LEN..).ok_or(Problem::Foreign)?);
    let short = || Problem::Field("batch end");
    fields.u64().ok_or_else(short)?;
    if fields.u64() != Some(position) {
        return Err(Problem::Foreign);
    }
    let (mut fields, len) = Reader::open(MAGIC, Some(lineage), bytes)?;
    let generation = fields.u64().ok_or_else(short)?;
    fields.u64().ok_or_else(short)?;
    let payload_len = fields.u32().ok_or_else(short)?;
    let count = fields.u32().ok_or_else(short)? as usize;
    if len % UNIT != 0 || count > len / UNIT {
        return Err(Problem::Field("batch length"));
    }
    let firsts = fields.take(8 * count).ok_or_else(short)?;
    let payload = fields.take(payload_len as usize).ok_or_else(short)?;
    let at = batch_len(payload.len(), count) - count * UNIT;
    let stored = bytes.get(at..at + count * UNIT).ok_or_else(short)?;
    let mut blocks = stored.to_vec();
    for (block, first) in blocks.chunks_exact_mut(UNIT).zip(firsts.chunks_exact(8)) {
        if block[..8] != CARRIED_MARK {
            return Err(Problem::Field("carried block"));
        }
        block[..8].copy_from_slice(first);
    }
    Ok(Batch {
        generation,
        content: Content {
            payload: payload.to_vec(),
            blocks,
        },
        len: len as u64,
    })
}

/// Finds the batches from `start` on in the `bytes` of a whole log. What follows a torn or missing batch is its tail.
///
/// # Errors
/// What is damaged: a bad batch with a valid one behind it, or one that this program cannot read.
pub(crate) fn scan(
    bytes: &[u8],
    lineage: Lineage,
    start: u64,
    oldest: Generation,
    newest: Generation,
) -> Result<Scan, String> {
    let len = bytes.len() as u64;
    if len == 0 || !len.is_multiple_of(UNIT as u64) || !start.is_multiple_of(UNIT as u64) {
        return Err(format!(
            "length {len} and start {start} are not multiples of {UNIT}"
        ));
    }
    if start > POSITION_MAX {
        return Err(format!("start {start} is beyond {POSITION_MAX}"));
    }
    let at = |position: u64| {
        let offset = usize::try_from(position % len).expect("inside the bytes");
        decode(&bytes[offset..], lineage, position)
    };
    let mut found = Scan {
        contents: Vec::new(),
        end: start,
    };
    let mut generation = oldest.0;
    let why = loop {
        match at(found.end) {
            Ok(batch) if batch.generation < generation || batch.generation > newest.0 => {
                break Problem::Field("generation");
            }
            Ok(batch) => {
                generation = batch.generation;
                found.end += batch.len;
                if found.end - start > len {
                    return Err(format!("the batches from position {start} on overlap"));
                }
                if !batch.content.is_empty() {
                    found.contents.push(batch.content);
                }
            }
            Err(problem) => break problem,
        }
        if found.end - start == len {
            return Ok(found);
        }
    };
    if let Problem::Version(_) = why {
        return Err(format!(
            "the batch at position {} cannot be read: {why}",
            found.end
        ));
    }
    let mut later = found.end + UNIT as u64;
    while later < start + len {
        if at(later).is_ok_and(|batch| (oldest.0..=newest.0).contains(&batch.generation)) {
            let bad = found.end;
            return Err(format!(
                "the batch at position {bad} is bad ({why}), one at {later} follows it"
            ));
        }
        later += UNIT as u64;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const US: Lineage = Lineage(5);
    const LOG_LEN: usize = 16 * UNIT;

    /// A log that begins at `start` with batches of these payload lengths; their positions.
    fn filled(start: u64, payloads: &[usize]) -> (Vec<u8>, Vec<u64>) {
        let mut bytes = vec![0; LOG_LEN];
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
        (bytes, positions)
    }

    fn found(bytes: &[u8], start: u64) -> Result<Vec<u8>, String> {
        let scan = scan(bytes, US, start, Generation(0), Generation(3))?;
        Ok(scan
            .contents
            .iter()
            .map(|content| content.payload[0])
            .collect())
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
    fn a_torn_tail_ends_the_log_and_a_hole_is_damage() {
        let (good, positions) = filled(0, &[10, 5000, 1]);
        let mut torn = good.clone();
        torn[usize::try_from(positions[2]).unwrap() + 100] ^= 1;
        assert_eq!(found(&torn, 0), Ok(vec![1, 2]));
        let mut hole = good;
        hole[usize::try_from(positions[1]).unwrap() + 100] ^= 1;
        assert!(found(&hole, 0).unwrap_err().contains("follows it"));
    }

    #[test]
    fn leftovers_of_the_last_round_and_of_newer_generations_are_not_there() {
        let (bytes, positions) = filled(0, &[10, 10]);
        assert_eq!(found(&bytes, LOG_LEN as u64), Ok(vec![]));
        let scan = scan(&bytes, US, 0, Generation(0), Generation(2)).unwrap();
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
        let mut log = vec![0; LOG_LEN];
        log[..UNIT].copy_from_slice(&batch(3, 0));
        log[UNIT..2 * UNIT].copy_from_slice(&batch(2, unit));
        let end = |start, oldest| {
            let scan = scan(&log, US, start, Generation(oldest), Generation(3));
            scan.unwrap().end
        };
        assert_eq!(end(0, 0), unit, "older than the batch before it");
        assert_eq!(end(unit, 3), unit, "older than the head's");
        assert_eq!(end(unit, 2), 2 * unit, "the last before a head was swapped");
    }

    #[test]
    fn carried_blocks_come_back_and_are_never_taken_for_a_batch() {
        // A guest that knows all and writes whole batches into its blocks: as if it followed at the positions behind.
        let forged = |position: u64| {
            let content = Content::records(vec![9; 32]);
            encode_batch(US, Generation(3), position, &content, 0)
        };
        for records in [0, 32, 4000, 4032, 4096] {
            let first = batch_len(records, 2) - 2 * UNIT;
            let blocks = [forged(first as u64), forged((first + UNIT) as u64)].concat();
            let content = Content {
                payload: vec![1; records],
                blocks,
            };
            let batch = encode_batch(US, Generation(3), 0, &content, 0);
            assert_eq!(batch.len(), content.batch_len());
            let mut log = vec![0; LOG_LEN];
            log[..batch.len()].copy_from_slice(&batch);
            let scan = |log: &[u8]| super::scan(log, US, 0, Generation(0), Generation(3));
            assert_eq!(scan(&log).unwrap().contents, [content]);
            // Torn: what lies behind its beginning is its own rest, nobody's batch.
            log[100] ^= 1;
            assert_eq!(scan(&log).unwrap().contents, []);
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
        let (bytes, _) = filled(0, &[3 * UNIT; 4]);
        assert_eq!(found(&bytes, 0), Ok(vec![1, 2, 3, 4]));
    }

    proptest! {
        #[test]
        fn any_prefix_of_the_last_write_survives_as_nothing_or_all(
            lens in prop::collection::vec(1usize..9000, 1..4),
            cut in 0usize..12000,
        ) {
            let (mut bytes, positions) = filled(0, &lens);
            let last = usize::try_from(positions[lens.len() - 1]).unwrap();
            let end = usize::try_from(positions[lens.len()]).unwrap();
            let cut = last + cut.min(end - last);
            // Whole sectors reach the medium.
            let cut = cut / 512 * 512;
            bytes[cut..end].fill(0);
            let payload_end = last + HEAD_LEN + lens[lens.len() - 1];
            let whole = cut >= payload_end;
            let expected = if whole { lens.len() } else { lens.len() - 1 };
            prop_assert_eq!(found(&bytes, 0).unwrap().len(), expected);
        }

        #[test]
        fn random_logs_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2), start in 0u64..100) {
            let mut log = vec![0; UNIT * 4];
            log[..bytes.len()].copy_from_slice(&bytes);
            prop_assert!(scan(&log, US, start * UNIT as u64, Generation(0), Generation(1)).unwrap().contents.is_empty());
        }
    }
}
