//! Logs: the rules of append and seal, and how a backend without attributes finds a log's end on its medium.
//!
//! Invariants
//! - An end is the position behind the last whole batch. The rest of a torn append is not part of the log.
//! - Between runs of a backend the end is found again from the sectors; the token is stored ([`encode_token`]).
//!
//! A token on the medium: 512 bytes, written in place, so that raising it needs no space.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 4 | magic `ALT1` |
//! | 4 | 4 | CRC32C of the lineage (high word, low word) and the token |
//! | 8 | 8 | token |
//! | 16 | 496 | zeros |
//!
//! Zeros in its place mean token 0, which a log has until it is sealed. All numbers are little-endian.

use std::ops::Range;

use archipelago_protocol::log_sector::{SECTOR_LEN, Sector, UNIT, is_whole};
use archipelago_protocol::{Generation, Lineage};

const MAGIC: [u8; 4] = *b"ALT1";

/// The state of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogState {
    /// The generation whose session may append; newer ones may, too.
    pub token: Generation,
    /// The position of the next append; 0: there was none, and plain writes make the log.
    pub end: u64,
}

/// The decision about an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// Its bytes are to be stored at this place; when they are durable, the end is behind them.
    At(u64),
    /// It may repeat the append that landed last: it does, and is done, if these bytes are stored at this place.
    IfRepeated(u64),
    /// It is refused: its token is too low, or it does not begin at the end of the log.
    Stale,
    /// It is not valid for any log.
    Invalid,
}

impl LogState {
    /// The decision about an append of `len` bytes at `position` by the session `token`, in a log of `log_len` bytes.
    #[must_use]
    pub fn append(&self, log_len: u64, position: u64, len: u32, token: Generation) -> Landing {
        let (unit, len) = (UNIT as u64, u64::from(len));
        let whole = [position, len, log_len];
        if len == 0 || log_len == 0 || whole.iter().any(|of| !of.is_multiple_of(unit)) {
            return Landing::Invalid;
        }
        let place = position % log_len;
        if place + len > log_len || position.checked_add(len).is_none() {
            return Landing::Invalid;
        }
        if token < self.token {
            return Landing::Stale;
        }
        if position == self.end {
            Landing::At(place)
        } else if position + len == self.end {
            Landing::IfRepeated(place)
        } else {
            Landing::Stale
        }
    }
}

/// The sector that holds `token` of a log of `lineage`.
#[must_use]
pub fn encode_token(lineage: Lineage, token: Generation) -> [u8; SECTOR_LEN] {
    let mut sector = [0; SECTOR_LEN];
    sector[..4].copy_from_slice(&MAGIC);
    sector[4..8].copy_from_slice(&checksum(lineage, token).to_le_bytes());
    sector[8..16].copy_from_slice(&token.0.to_le_bytes());
    sector
}

/// The token in a sector; `None` if it is damaged.
#[must_use]
pub fn decode_token(lineage: Lineage, sector: &[u8; SECTOR_LEN]) -> Option<Generation> {
    if sector.iter().all(|byte| *byte == 0) {
        return Some(Generation(0));
    }
    let token = Generation(u64::from_le_bytes(sector[8..16].try_into().ok()?));
    (*sector == encode_token(lineage, token)).then_some(token)
}

fn checksum(lineage: Lineage, token: Generation) -> u32 {
    let words = lineage.to_words().map(u64::to_le_bytes);
    let sum = crc32c::crc32c(words.as_flattened());
    crc32c::crc32c_append(sum, &token.0.to_le_bytes())
}

/// The end of a log of `log_len` bytes, which a client expects at `hint`. `read` returns the bytes of a range of places.
///
/// If the batch before `hint` is whole and none begins there, that is the end, and little is read. Otherwise the whole log is read.
///
/// # Errors
/// The error of `read`.
pub fn find_end<E>(
    lineage: Lineage,
    log_len: u64,
    hint: u64,
    read: &mut dyn FnMut(Range<u64>) -> Result<Vec<u8>, E>,
) -> Result<u64, E> {
    if log_len == 0 {
        return Ok(0);
    }
    let possible = log_len.is_multiple_of(UNIT as u64) && hint.is_multiple_of(UNIT as u64);
    if possible && ends_at(lineage, log_len, hint, read)? {
        return Ok(hint);
    }
    let log = read(0..log_len)?;
    Ok(end_of(lineage, &log))
}

/// Whether a log certainly ends at `hint`.
fn ends_at<E>(
    lineage: Lineage,
    log_len: u64,
    hint: u64,
    read: &mut dyn FnMut(Range<u64>) -> Result<Vec<u8>, E>,
) -> Result<bool, E> {
    let sector = SECTOR_LEN as u64;
    let place = hint % log_len;
    let next = read(place..place + sector)?;
    let next = Sector::open(&next, lineage);
    if hint == 0 {
        // A log whose first sector is blank has no batch: the first one will begin there.
        return Ok(next.is_some_and(|next| next.is_blank()));
    }
    if next.is_none_or(|next| next.is_of(hint, 0) || next.position > hint) {
        return Ok(false);
    }
    let before = (hint - sector) % log_len;
    let last = read(before..before + sector)?;
    let last = Sector::open(&last, lineage).and_then(|last| last.batch());
    let Some(batch) = last.filter(|batch| batch.end == hint && fits(batch, log_len)) else {
        return Ok(false);
    };
    let place = batch.start % log_len;
    let bytes = read(place..place + (batch.end - batch.start))?;
    Ok(is_whole(&bytes, lineage, batch.start))
}

/// Whether a batch stands in a log without a wrap.
fn fits(batch: &Range<u64>, log_len: u64) -> bool {
    let len = batch.end - batch.start;
    len <= log_len && batch.start % log_len <= log_len - len
}

/// The end of the log whose bytes these are: behind the whole batch with the highest position.
fn end_of(lineage: Lineage, log: &[u8]) -> u64 {
    let log_len = log.len() as u64;
    let begun = (0..log.len()).step_by(UNIT).filter_map(|place| {
        let first = Sector::open(&log[place..], lineage)?;
        let batch = first.batch()?;
        let stands = first.position == batch.start
            && batch.start % log_len == place as u64
            && fits(&batch, log_len);
        let bytes = stands.then(|| {
            let len = usize::try_from(batch.end - batch.start).expect("fits into the bytes");
            &log[place..place + len]
        })?;
        is_whole(bytes, lineage, batch.start).then_some(batch.end)
    });
    begun.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use archipelago_protocol::log_sector::{CONTENT_LEN, blank, sectors};

    use super::*;

    const US: Lineage = Lineage(5);
    const LEN: usize = 16 * UNIT;

    fn batch(position: u64, units: usize, generation: u64) -> Vec<u8> {
        let content = vec![1; units * UNIT / SECTOR_LEN * CONTENT_LEN];
        sectors(&content, US, position, Generation(generation))
    }

    fn put(log: &mut [u8], position: u64, bytes: &[u8]) {
        let place = usize::try_from(position).unwrap() % log.len();
        log[place..place + bytes.len()].copy_from_slice(bytes);
    }

    /// The end that is found with `hint`, and the bytes read for it.
    fn found(log: &[u8], hint: u64) -> (u64, u64) {
        let mut count = 0;
        let mut read = |places: Range<u64>| {
            count += places.end - places.start;
            let [start, end] = [places.start, places.end].map(|at| usize::try_from(at).unwrap());
            Ok::<_, Infallible>(log[start..end].to_vec())
        };
        let Ok(end) = find_end(US, log.len() as u64, hint, &mut read);
        (end, count)
    }

    #[test]
    fn whoever_knows_the_end_has_little_read_and_others_find_it() {
        let unit = UNIT as u64;
        let mut log = blank(US, 0..LEN as u64);
        assert_eq!(found(&log, 0), (0, 512));
        assert_eq!(found(&log, unit).0, 0);
        let mut end = 0;
        // Twice around, in batches of 1 to 4 units that fill the circle.
        for units in [1, 2, 4, 4, 3, 2].into_iter().cycle().take(12) {
            put(&mut log, end, &batch(end, units, 2));
            let before = end;
            end += (units * UNIT) as u64;
            assert_eq!(found(&log, end), (end, 2 * 512 + (units * UNIT) as u64));
            for hint in [before, 0, end + unit, end - 512, u64::MAX - 4095] {
                assert_eq!(found(&log, hint).0, end, "hint {hint}");
            }
        }
    }

    #[test]
    fn what_an_append_left_torn_is_no_part_of_the_log() {
        let unit = UNIT as u64;
        let whole = batch(unit, 3, 2);
        for lost in 0..whole.len() / SECTOR_LEN {
            let mut log = blank(US, 0..LEN as u64);
            put(&mut log, 0, &batch(0, 1, 2));
            let old = log.clone();
            put(&mut log, unit, &whole);
            let place = UNIT + lost * SECTOR_LEN;
            log[place..place + SECTOR_LEN].copy_from_slice(&old[place..place + SECTOR_LEN]);
            for hint in [0, unit, 4 * unit] {
                assert_eq!(found(&log, hint).0, unit, "without sector {lost}");
            }
            // Over its beginning stands a shorter batch of the next session; its rest is behind that one.
            put(&mut log, unit, &batch(unit, 1, 3));
            for hint in [0, unit, 2 * unit, 4 * unit] {
                assert_eq!(found(&log, hint).0, 2 * unit, "without sector {lost}");
            }
        }
        // The last sector alone is no batch, although whole.
        let mut log = blank(US, 0..LEN as u64);
        put(&mut log, unit * 4 - 512, &whole[whole.len() - 512..]);
        assert_eq!(found(&log, 4 * unit).0, 0);
    }

    #[test]
    fn appends_land_at_the_end_and_are_repeated_there() {
        let unit = UNIT as u64;
        let state = LogState {
            token: Generation(3),
            end: 15 * unit,
        };
        let len = LEN as u64;
        let at = |position, units: u32, token| {
            state.append(len, position, units * 4096, Generation(token))
        };
        assert_eq!(at(15 * unit, 1, 3), Landing::At(15 * unit));
        assert_eq!(at(15 * unit, 1, 4), Landing::At(15 * unit));
        assert_eq!(at(15 * unit, 1, 2), Landing::Stale);
        assert_eq!(at(15 * unit, 2, 3), Landing::Invalid, "beyond the circle");
        assert_eq!(at(13 * unit, 2, 3), Landing::IfRepeated(13 * unit));
        assert_eq!(at(13 * unit, 2, 2), Landing::Stale);
        for position in [0, 12 * unit, 14 * unit + unit * 16, 16 * unit] {
            assert_eq!(at(position, 2, 3), Landing::Stale);
        }
        for (position, len) in [(512, 4096), (0, 512), (0, 0)] {
            let landing = state.append(LEN as u64, position, len, Generation(3));
            assert_eq!(landing, Landing::Invalid);
        }
        assert_eq!(state.append(0, 0, 4096, Generation(3)), Landing::Invalid);
    }

    #[test]
    fn a_token_is_its_sector_and_nothing_else_is() {
        for token in [1, 7, u64::MAX] {
            let sector = encode_token(US, Generation(token));
            assert_eq!(decode_token(US, &sector), Some(Generation(token)));
            assert_eq!(decode_token(Lineage(6), &sector), None);
            for bit in 0..SECTOR_LEN * 8 {
                let mut flipped = sector;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode_token(US, &flipped), None, "bit {bit}");
            }
        }
        assert_eq!(decode_token(US, &[0; SECTOR_LEN]), Some(Generation(0)));
        let sector = encode_token(Lineage(1 << 64 | 2), Generation(3));
        assert_eq!(sector[..4], *b"ALT1");
        assert_eq!(sector[8..17], [3, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
