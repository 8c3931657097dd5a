//! Sectors: what a log is made of, so that a torn append and damage can be told apart. Layout: `docs/map-format.md`, "Logs".
//!
//! Invariants
//! - Every sector of a log is whole from the beginning: blank ones are written when the log is made.
//! - A torn append leaves each of its sectors as it was or as it should be: whole either way. So a sector that is not
//!   whole is damage, wherever it stands and whatever it held.
//! - Whatever a guest wrote stands behind a sector's header, which it cannot choose.

use std::ops::Range;

use archipelago_protocol::{Generation, Lineage};

/// What a medium writes whole or not at all (`docs/assumptions.md`).
pub(super) const SECTOR_LEN: usize = 512;
/// Batches are multiples of this, so that no append touches a durable one.
pub(crate) const UNIT: usize = 4096;
const _: () = assert!(UNIT.is_multiple_of(SECTOR_LEN));
/// Position u64, generation u64, index u32, checksum u32.
const HEADER_LEN: usize = 24;
const CRC_AT: usize = 20;
/// What a sector holds of its batch.
pub(super) const CONTENT_LEN: usize = SECTOR_LEN - HEADER_LEN;
/// In place of the index: nothing was ever appended here.
const BLANK: u32 = u32::MAX;

/// A sector that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sector<'a> {
    /// In the log; of a blank one its place.
    pub(super) position: u64,
    /// Of its batch. An append that tears over what another left torn mixes sectors of both; no two of them pass for one.
    pub(super) generation: u64,
    /// In its batch, from 0.
    index: u32,
    pub(super) content: &'a [u8],
}

impl<'a> Sector<'a> {
    /// The sector at the beginning of `bytes`; `None`: it is not what a log of `lineage` ever held.
    pub(super) fn open(bytes: &'a [u8], lineage: Lineage) -> Option<Self> {
        let bytes = bytes.get(..SECTOR_LEN)?;
        let crc = u32::from_le_bytes(bytes[CRC_AT..HEADER_LEN].try_into().ok()?);
        (crc == checksum(bytes, lineage)).then_some(())?;
        Some(Sector {
            position: position_of(bytes)?,
            generation: u64::from_le_bytes(bytes[8..16].try_into().ok()?),
            index: u32::from_le_bytes(bytes[16..CRC_AT].try_into().ok()?),
            content: &bytes[HEADER_LEN..],
        })
    }

    /// Whether it is the sector with this index of the batch at `position`.
    pub(super) fn is_of(&self, position: u64, index: usize) -> bool {
        self.position == position + (index * SECTOR_LEN) as u64 && self.index as usize == index
    }

    pub(super) fn is_blank(&self) -> bool {
        self.index == BLANK
    }
}

/// The position that the sector at the beginning of `bytes` gives, whole or not.
pub(super) fn position_of(bytes: &[u8]) -> Option<u64> {
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
    index: u32,
    content: &[u8],
) {
    let at = to.len();
    to.extend_from_slice(&position.to_le_bytes());
    to.extend_from_slice(&generation.0.to_le_bytes());
    to.extend_from_slice(&index.to_le_bytes());
    to.extend_from_slice(&[0; 4]);
    to.extend_from_slice(content);
    let crc = checksum(&to[at..], lineage);
    to[at + CRC_AT..at + HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
}

/// The sectors of a batch of `content`, a multiple of [`CONTENT_LEN`].
pub(super) fn sectors(
    content: &[u8],
    lineage: Lineage,
    position: u64,
    generation: Generation,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(content.len() / CONTENT_LEN * SECTOR_LEN);
    for (content, index) in content.chunks_exact(CONTENT_LEN).zip(0..) {
        // A log that claims to be at the end of numbers is refused when it is read, not here.
        let position = position.wrapping_add(bytes.len() as u64);
        write(&mut bytes, lineage, position, generation, index, content);
    }
    bytes
}

/// What a new log holds at these places.
pub(crate) fn blank(lineage: Lineage, places: Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for place in places.step_by(SECTOR_LEN) {
        write(
            &mut bytes,
            lineage,
            place,
            Generation(0),
            BLANK,
            &[0; CONTENT_LEN],
        );
    }
    bytes
}

/// Where in a whole log a sector is damaged: the first such place of those given, which are multiples of sectors.
pub(super) fn first_damaged(log: &[u8], lineage: Lineage, places: Range<usize>) -> Option<usize> {
    let len = log.len() as u64;
    places.step_by(SECTOR_LEN).find(|place| {
        let sector = Sector::open(&log[*place..], lineage);
        // One that stands elsewhere than it says was written to the wrong place, or copied there.
        sector.is_none_or(|sector| sector.position % len != *place as u64)
    })
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
