//! Batches: what one append writes. Layout: `docs/map-format.md`, "Log batches".
//!
//! Body behind the envelope: generation u64, position u64, payload length u32, 0 u32; payload; zeros to 4096.

use archipelago_protocol::{Generation, Lineage};

use crate::format::{ENVELOPE_LEN, Problem, Reader, Writer};

const MAGIC: [u8; 8] = *b"ARCHBTCH";
/// Batches are multiples of this, so that no append touches a durable one.
pub(crate) const UNIT: usize = 4096;
/// Bytes in front of the payload.
pub(super) const HEAD_LEN: usize = ENVELOPE_LEN + 24;

/// A batch of at least `len_min` bytes.
pub(crate) fn encode_batch(
    lineage: Lineage,
    generation: Generation,
    position: u64,
    payload: &[u8],
    len_min: usize,
) -> Vec<u8> {
    let mut batch = Writer::sealed(MAGIC, lineage);
    batch.u64(generation.0);
    batch.u64(position);
    batch.u32(u32::try_from(payload.len()).expect("at most BATCH_MAX"));
    batch.u32(0);
    batch.bytes(payload);
    let len = batch.len().max(len_min).next_multiple_of(UNIT);
    batch.pad_to(len);
    batch.seal()
}

/// What a replay found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The payloads in order.
    pub(crate) payloads: Vec<Vec<u8>>,
    /// The position behind the last.
    pub(crate) end: u64,
}

struct Batch<'a> {
    generation: u64,
    payload: &'a [u8],
    len: u64,
}

fn decode(bytes: &[u8], lineage: Lineage, position: u64) -> Result<Batch<'_>, Problem> {
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
    fields.u32().ok_or_else(short)?;
    if len % UNIT != 0 {
        return Err(Problem::Field("batch length"));
    }
    let payload = fields.take(payload_len as usize).ok_or_else(short)?;
    Ok(Batch {
        generation,
        payload,
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
    let at = |position: u64| {
        let offset = usize::try_from(position % len).expect("inside the bytes");
        decode(&bytes[offset..], lineage, position)
    };
    let mut found = Scan {
        payloads: Vec::new(),
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
                if !batch.payload.is_empty() {
                    found.payloads.push(batch.payload.to_vec());
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
            let mut batch = encode_batch(US, Generation(3), position, &payload, 0);
            let mut at = usize::try_from(position).unwrap() % LOG_LEN;
            if at + batch.len() > LOG_LEN {
                let pad = encode_batch(US, Generation(3), position, &[], LOG_LEN - at);
                bytes[at..].copy_from_slice(&pad);
                position += pad.len() as u64;
                batch = encode_batch(US, Generation(3), position, &payload, 0);
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
        Ok(scan.payloads.iter().map(|payload| payload[0]).collect())
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
        assert_eq!((scan.payloads.len(), scan.end), (0, 0));
        assert_eq!(positions[1], UNIT as u64);
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
            prop_assert!(scan(&log, US, start * UNIT as u64, Generation(0), Generation(1)).unwrap().payloads.is_empty());
        }
    }
}
