//! Sectors, of which a log consists: they distinguish a torn append from damage, and let a backend find the end of a log. Layout:
//! `docs/map-format.md`, "Logs".
//!
//! Invariants
//! - Every sector of a log is whole from the beginning: blank ones are written when the log is made. In a pool whose completed writes
//!   are durable, its reader accepts zeros as blank ones.
//! - A torn append leaves each of its sectors in its old or its new state: whole either way. So a sector that is not whole is damage,
//!   wherever it stands and whatever its content was.
//! - Guest data stands behind a sector's header, which a guest cannot choose.
//! - A batch is whole if all of its sectors are there, of one generation. Each of them contains their number.

use std::ops::Range;

use crate::ids::{Generation, Lineage};

/// The unit that a medium writes whole or not at all (`docs/assumptions.md`).
pub const SECTOR_LEN: usize = 512;
/// Batches are multiples of this, so that no append touches a durable one.
pub const UNIT: usize = 4096;
const _: () = assert!(UNIT.is_multiple_of(SECTOR_LEN));
/// Position u64, generation u64, index u16, count u16, checksum u32.
const HEADER_LEN: usize = 24;
const CRC_AT: usize = 20;
/// Bytes of a batch in one sector.
pub const CONTENT_LEN: usize = SECTOR_LEN - HEADER_LEN;
/// In place of index and count: nothing was ever appended here.
const BLANK: u16 = u16::MAX;

/// A whole sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sector<'a> {
    /// Its position in the log; for a blank one its place.
    pub position: u64,
    /// The generation of its batch. If an append tears over the rest of another torn one, sectors of both are mixed, and are not taken for
    /// one batch.
    pub generation: u64,
    /// Its index in its batch, from 0.
    index: u16,
    /// Number of sectors of its batch.
    count: u16,
    /// Its part of the batch.
    pub content: &'a [u8],
}

impl<'a> Sector<'a> {
    /// The sector at the beginning of `bytes`; `None`: it is not a sector of a log of `lineage`.
    #[must_use]
    pub fn open(bytes: &'a [u8], lineage: Lineage) -> Option<Self> {
        let bytes = bytes.get(..SECTOR_LEN)?;
        let crc = u32::from_le_bytes(bytes[CRC_AT..HEADER_LEN].try_into().ok()?);
        (crc == checksum(bytes, lineage)).then_some(())?;
        Some(Sector {
            position: position_of(bytes)?,
            generation: u64::from_le_bytes(bytes[8..16].try_into().ok()?),
            index: u16::from_le_bytes(bytes[16..18].try_into().ok()?),
            count: u16::from_le_bytes(bytes[18..CRC_AT].try_into().ok()?),
            content: &bytes[HEADER_LEN..],
        })
    }

    /// Whether it is the sector with this index of the batch at `position`.
    #[must_use]
    pub fn is_of(&self, position: u64, index: usize) -> bool {
        let expected = position.checked_add((index * SECTOR_LEN) as u64);
        expected == Some(self.position) && usize::from(self.index) == index && !self.is_blank()
    }

    /// Whether nothing was ever appended here.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        (self.index, self.count) == (BLANK, BLANK)
    }

    /// The range of its batch; `None`: it is blank, or no batch can have such a sector.
    #[must_use]
    pub fn batch(&self) -> Option<Range<u64>> {
        let start = u64::from(self.index) * SECTOR_LEN as u64;
        let start = self.position.checked_sub(start)?;
        let len = u64::from(self.count) * SECTOR_LEN as u64;
        let possible =
            !self.is_blank() && self.index < self.count && len.is_multiple_of(UNIT as u64);
        possible.then_some(start..start.checked_add(len)?)
    }
}

/// The position in the sector at the beginning of `bytes`, whole or not.
#[must_use]
pub fn position_of(bytes: &[u8]) -> Option<u64> {
    let position = bytes.get(..8)?.try_into().ok()?;
    Some(u64::from_le_bytes(position))
}

fn checksum(sector: &[u8], lineage: Lineage) -> u32 {
    let words = lineage.to_words().map(u64::to_le_bytes);
    let parts = [
        words.as_flattened(),
        &sector[..CRC_AT],
        &sector[HEADER_LEN..],
    ];
    parts.into_iter().fold(0, crc32c::crc32c_append)
}

fn write(
    to: &mut Vec<u8>,
    lineage: Lineage,
    position: u64,
    generation: Generation,
    [index, count]: [u16; 2],
    content: &[u8],
) {
    let at = to.len();
    to.extend_from_slice(&position.to_le_bytes());
    to.extend_from_slice(&generation.0.to_le_bytes());
    to.extend_from_slice(&index.to_le_bytes());
    to.extend_from_slice(&count.to_le_bytes());
    to.extend_from_slice(&[0; 4]);
    to.extend_from_slice(content);
    let crc = checksum(&to[at..], lineage);
    to[at + CRC_AT..at + HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
}

/// The sectors of a batch of `content`, a multiple of [`CONTENT_LEN`].
///
/// # Panics
/// If they are more than the 65,534 that a batch may have.
#[must_use]
pub fn sectors(content: &[u8], lineage: Lineage, position: u64, generation: Generation) -> Vec<u8> {
    let count = content.len() / CONTENT_LEN;
    let mut bytes = Vec::with_capacity(count * SECTOR_LEN);
    let count = u16::try_from(count).ok().filter(|count| *count < BLANK);
    let count = count.expect("batches are shorter than 32 MiB");
    for (content, index) in content.chunks_exact(CONTENT_LEN).zip(0..) {
        // A log that claims to be at the end of the numbers is refused when it is read, not here.
        let position = position.wrapping_add(bytes.len() as u64);
        let place = [index, count];
        write(&mut bytes, lineage, position, generation, place, content);
    }
    bytes
}

/// The content of a new log at these places.
#[must_use]
pub fn blank(lineage: Lineage, places: Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for place in places.step_by(SECTOR_LEN) {
        write(
            &mut bytes,
            lineage,
            place,
            Generation(0),
            [BLANK; 2],
            &[0; CONTENT_LEN],
        );
    }
    bytes
}

/// The first of the `places`, which are multiples of sectors, where a whole log is damaged.
#[must_use]
pub fn first_damaged(log: &[u8], lineage: Lineage, places: Range<usize>) -> Option<usize> {
    let len = log.len() as u64;
    places.step_by(SECTOR_LEN).find(|place| {
        let sector = Sector::open(&log[*place..], lineage);
        // A sector whose recorded position is another one was written to the wrong place, or copied there.
        sector.is_none_or(|sector| sector.position % len != *place as u64)
    })
}

/// Whether `bytes` are the sectors of one batch at `position`, of the session `token` or an earlier one: a session that has not begun
/// appends with the token of the one before. Only the first sector is checked: this is called for each append, and a bad sector behind it
/// harms only its own session.
#[must_use]
pub fn is_batch(
    bytes: &[u8],
    len: u32,
    lineage: Lineage,
    position: u64,
    token: Generation,
) -> bool {
    let first = Sector::open(bytes, lineage);
    let first = first.filter(|first| first.is_of(position, 0) && first.generation <= token.0);
    let batch = first.and_then(|first| first.batch());
    batch.is_some_and(|batch| batch.end - batch.start == u64::from(len))
}

/// Whether `bytes` are all sectors of the batch at `position`, and of no other batch.
#[must_use]
pub fn is_whole(bytes: &[u8], lineage: Lineage, position: u64) -> bool {
    let Some(end) = position.checked_add(bytes.len() as u64) else {
        return false;
    };
    let mut generation = None;
    let is_nth = |(index, bytes): (usize, &[u8])| {
        let sector = Sector::open(bytes, lineage).filter(|sector| sector.is_of(position, index));
        sector.is_some_and(|sector| {
            let of_batch = *generation.get_or_insert(sector.generation) == sector.generation;
            of_batch && sector.batch() == Some(position..end)
        })
    };
    !bytes.is_empty() && bytes.chunks(SECTOR_LEN).enumerate().all(is_nth)
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Lineage = Lineage(5);

    #[test]
    fn every_flipped_bit_another_place_and_another_log_are_noticed() {
        let content: Vec<u8> = (0..=250).cycle().take(CONTENT_LEN).collect();
        let written = sectors(&content, US, 512, Generation(1));
        let mut log = blank(US, 0..2048);
        assert_eq!(first_damaged(&log, US, 0..2048), None);
        log[512..1024].copy_from_slice(&written);
        assert_eq!(first_damaged(&log, US, 0..2048), None);
        for bit in 0..2048 * 8 {
            log[bit / 8] ^= 1 << (bit % 8);
            let place = bit / 8 / SECTOR_LEN * SECTOR_LEN;
            assert_eq!(first_damaged(&log, US, 0..2048), Some(place), "bit {bit}");
            log[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(first_damaged(&log, Lineage(6), 0..2048), Some(0));
        log.copy_within(512..1024, 1024);
        assert_eq!(first_damaged(&log, US, 0..2048), Some(1024));
        log[..512].fill(0);
        assert_eq!(first_damaged(&log, US, 0..2048), Some(0));
    }

    #[test]
    fn a_batch_is_whole_with_all_of_its_sectors() {
        let unit = UNIT as u64;
        let content = |fill| vec![fill; 2 * UNIT / SECTOR_LEN * CONTENT_LEN];
        let batch = |generation| sectors(&content(1), US, unit, Generation(generation));
        let (mut whole, other) = (batch(3), batch(4));
        assert!(is_whole(&whole, US, unit));
        assert!(!is_whole(&whole, US, 0) && !is_whole(&whole, Lineage(6), unit));
        assert!(!is_whole(&whole[..UNIT], US, unit) && !is_whole(&[], US, unit));
        let is_of = |bytes: &[u8], position, token| {
            is_batch(
                bytes,
                u32::try_from(bytes.len()).unwrap(),
                US,
                position,
                token,
            )
        };
        assert!(is_of(&whole, unit, Generation(3)));
        assert!(is_of(&whole, unit, Generation(4)) && !is_of(&whole, 0, Generation(3)));
        assert!(!is_of(&whole, unit, Generation(2)));
        assert!(!is_of(&whole[..UNIT], unit, Generation(3)));
        assert!(!is_of(&whole[SECTOR_LEN..], unit, Generation(3)));
        // One sector is of another append.
        whole[SECTOR_LEN..2 * SECTOR_LEN].copy_from_slice(&other[SECTOR_LEN..2 * SECTOR_LEN]);
        assert!(!is_whole(&whole, US, unit));
        assert!(!is_of(&blank(US, 0..unit), 0, Generation(0)));
        // A batch of a part of a unit.
        let odd = sectors(&[1; CONTENT_LEN], US, 0, Generation(3));
        assert!(!is_whole(&odd, US, 0));
    }

    #[test]
    fn a_sector_knows_its_batch() {
        let written = sectors(&[1; 2 * CONTENT_LEN], US, 4096, Generation(1));
        let second = Sector::open(&written[SECTOR_LEN..], US).unwrap();
        assert_eq!(second.content, [1; CONTENT_LEN]);
        assert!(second.is_of(4096, 1) && !second.is_blank());
        assert!(!second.is_of(4096 + 512, 0) && !second.is_of(8192, 1));
        let nothing = blank(US, 4096..4608);
        let nothing = Sector::open(&nothing, US).unwrap();
        assert!(nothing.is_blank() && !nothing.is_of(4096, 0));
    }
}
