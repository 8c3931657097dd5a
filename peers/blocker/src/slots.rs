//! Two-slot codec: the layout of a small compare-and-swap object in 8 KiB of a medium that writes sectors.
//!
//! Version `v` stands in slot `v odd: 0, v even: 1`, so a swap never touches the current version. Each sector has a
//! checksum of its own, seeded with version and place. So a torn write and a damaged medium can be distinguished:
//! - torn: every sector is whole, but they belong to different versions. The other slot is valid.
//! - damaged: a sector that belongs to no possible version. To use the other slot instead would silently
//!   undo a swap that was acknowledged, so this is an error instead.
//!
//! Invariants
//! - Sectors of 512 bytes are written whole or not at all; nothing is assumed of their order.
//! - A swap is acknowledged only after its slot is durable, and is compared only with durable content: after a failed write the backend
//!   makes the object durable, or refuses it, before it reads it again. Otherwise the next swap would overwrite the last durable version.
//! - Of two whole slots the versions differ by one.
//!
//! | offset in a slot | bytes | content |
//! |---|---|---|
//! | 0 | 4 | magic `AHS1` |
//! | 4 | 2 | format version: 1 |
//! | 6 | 2 | length of the content |
//! | 8 | 8 | version |
//! | 16 | 4 | CRC32C of the content |
//! | 20 | 4 | incompatible features: a program that does not know one of these bits cannot read the slot |
//! | 24 | 8 | zeros |
//! | 32 | | content, 476 bytes in the first sector, 508 in each other |
//! | 508 of each sector | 4 | CRC32C of version, sector number (u64 each) and the sector's first 508 bytes |
//!
//! All numbers are little-endian. A slot of another format version, or with an unknown feature, that is whole and newer than the
//! other slot is [`SlotsUnreadable::Unsupported`], never damage. The compatible features are part of the content.

use archipelago_protocol::object::SWAP_LEN_MAX;

/// Bytes of one slot.
pub const SLOT_LEN: usize = 4096;
/// Bytes of a small object on the medium: two slots.
pub const SLOTS_LEN: usize = 2 * SLOT_LEN;

const SECTOR: usize = 512;
const SECTORS: usize = SLOT_LEN / SECTOR;
/// Bytes of a sector that its checksum covers.
const BODY: usize = SECTOR - 4;
const HEADER: usize = 32;
const MAGIC: [u8; 4] = *b"AHS1";
const FORMAT: u16 = 1;
/// Limit of versions, so that the next one is always a number: one swap a nanosecond gets there in 146 years.
const VERSION_MAX: u64 = 1 << 62;
// 8 * 508 - 32 = 4032: exactly the length in the contract.
const _: () = assert!(SECTORS * BODY - HEADER == SWAP_LEN_MAX as usize);

/// The slots match no history of swaps and crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("slot {slot}, sector {sector} of a small object is damaged")]
pub struct SlotDamage {
    /// The impossible slot.
    pub slot: usize,
    /// The first impossible sector in it.
    pub sector: usize,
}

/// Why the slots cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotsUnreadable {
    /// They match no history of swaps and crashes.
    #[error(transparent)]
    Damaged(#[from] SlotDamage),
    /// Another version of the program wrote the newer slot.
    #[error(
        "a small object has slot format {format} and incompatible features {features:#x}, this program knows format \
         {FORMAT} without features"
    )]
    Unsupported {
        /// Its format version.
        format: u16,
        /// Its incompatible features.
        features: u32,
    },
}

/// The state of a small object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// Swaps so far, the creation included.
    pub version: u64,
    /// The content of the last swap.
    pub content: Vec<u8>,
}

/// How to carry out a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// Write `slot` durably at `offset`; the object has `version` then.
    Write {
        /// Offset in the 8 KiB.
        offset: u64,
        /// The bytes.
        slot: Box<[u8; SLOT_LEN]>,
        /// The new version.
        version: u64,
    },
    /// A repetition of the swap that succeeded: nothing to do.
    Done {
        /// The current version.
        version: u64,
    },
    /// The current version is another one.
    Stale {
        /// The current version; 0: none.
        version: u64,
    },
}

/// Compares and swaps: the result of replacing `current` by `content` for a client that expects `expected`.
///
/// A [`Swap::Done`] may be the answer to a repetition after a crash between write and sync: the backend syncs before it answers.
///
/// # Panics
/// If `content` is longer than [`SWAP_LEN_MAX`]: the caller must refuse that before.
#[must_use]
pub fn swap(current: Option<&Current>, expected: u64, content: &[u8]) -> Swap {
    let version = current.map_or(0, |current| current.version);
    match current {
        _ if version == expected => {
            let version = version + 1;
            Swap::Write {
                offset: slot_offset(version),
                slot: encode(version, content),
                version,
            }
        }
        Some(current) if version - 1 == expected && current.content == content => {
            Swap::Done { version }
        }
        _ => Swap::Stale { version },
    }
}

/// Offset in the 8 KiB of the slot of `version`.
#[must_use]
pub fn slot_offset(version: u64) -> u64 {
    if version.is_multiple_of(2) {
        SLOT_LEN as u64
    } else {
        0
    }
}

/// The slot that holds `content` as `version`.
///
/// # Panics
/// If `content` is longer than [`SWAP_LEN_MAX`].
#[must_use]
pub fn encode(version: u64, content: &[u8]) -> Box<[u8; SLOT_LEN]> {
    assert!(
        content.len() <= SWAP_LEN_MAX as usize,
        "{} bytes are too many for a slot",
        content.len()
    );
    let len = u16::try_from(content.len()).expect("at most SWAP_LEN_MAX");
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&FORMAT.to_le_bytes());
    header[6..8].copy_from_slice(&len.to_le_bytes());
    header[8..16].copy_from_slice(&version.to_le_bytes());
    header[16..20].copy_from_slice(&crc32c::crc32c(content).to_le_bytes());
    let mut slot = Box::new([0; SLOT_LEN]);
    let mut bytes = header.iter().chain(content);
    for (index, sector) in slot.chunks_exact_mut(SECTOR).enumerate() {
        for (to, from) in sector[..BODY].iter_mut().zip(&mut bytes) {
            *to = *from;
        }
        let sum = checksum(version, index, &sector[..BODY]);
        sector[BODY..].copy_from_slice(&sum.to_le_bytes());
    }
    slot
}

/// The state in the 8 KiB of `bytes`; `None`: nothing was ever completely written. A shorter medium is padded with zeros.
///
/// # Errors
/// [`SlotsUnreadable::Damaged`]: the content cannot come from an interrupted swap. [`SlotsUnreadable::Unsupported`].
pub fn decode(bytes: &[u8; SLOTS_LEN]) -> Result<Option<Current>, SlotsUnreadable> {
    let (first, second) = bytes.split_at(SLOT_LEN);
    let found = decode_known(first, second);
    let current = match &found {
        Ok(Some(current)) => current.version,
        Ok(None) | Err(_) => 0,
    };
    let foreign = [(first, 0), (second, 1)].into_iter();
    let mut foreign = foreign.filter_map(|(slot, place)| unsupported(slot, place));
    if let Some((_, why)) = foreign.find(|(version, _)| *version > current) {
        return Err(why);
    }
    Ok(found?)
}

/// The version of `slot`, and the error, if the slot is whole and was written by another version of the program.
fn unsupported(slot: &[u8], place: usize) -> Option<(u64, SlotsUnreadable)> {
    let version = whole_version(slot, place)?;
    let (format, features) = format_of(slot);
    let unsupported = slot[..4] == MAGIC && (format, features) != (FORMAT, 0);
    unsupported.then_some((version, SlotsUnreadable::Unsupported { format, features }))
}

/// Format version and incompatible features.
fn format_of(slot: &[u8]) -> (u16, u32) {
    let format = u16::from_le_bytes([slot[4], slot[5]]);
    let features = u32::from_le_bytes(slot[20..24].try_into().expect("four bytes"));
    (format, features)
}

/// The version of a slot whose sectors all belong to it, if that is the slot of this version.
fn whole_version(slot: &[u8], place: usize) -> Option<u64> {
    let version = u64::from_le_bytes(slot[8..16].try_into().expect("eight bytes"));
    let possible = (1..=VERSION_MAX).contains(&version);
    let in_place = possible && slot_offset(version) == (place * SLOT_LEN) as u64;
    let mut sectors = slot.chunks_exact(SECTOR).enumerate();
    let whole = in_place && sectors.all(|(index, sector)| is_of(version, index, sector));
    whole.then_some(version)
}

fn decode_known(first: &[u8], second: &[u8]) -> Result<Option<Current>, SlotDamage> {
    match (decode_whole(first, 0), decode_whole(second, 1)) {
        (Some(odd), Some(even)) if odd.version.abs_diff(even.version) == 1 => {
            Ok([odd, even].into_iter().max_by_key(|slot| slot.version))
        }
        // No swap leaves these two versions side by side: the older one is out of place.
        (Some(odd), Some(even)) => Err(SlotDamage {
            slot: usize::from(even.version < odd.version),
            sector: 0,
        }),
        (Some(holds), None) => check_torn(second, 1, holds.version).map(|()| Some(holds)),
        (None, Some(holds)) => check_torn(first, 0, holds.version).map(|()| Some(holds)),
        (None, None) => {
            check_torn(first, 0, 0)?;
            // Version 2 is written only when version 1 is durable.
            match second.iter().position(|byte| *byte != 0) {
                None => Ok(None),
                Some(at) => Err(SlotDamage {
                    slot: 1,
                    sector: at / SECTOR,
                }),
            }
        }
    }
}

/// The content of `slot`, if it is whole and in the slot of its version.
fn decode_whole(slot: &[u8], place: usize) -> Option<Current> {
    let len = usize::from(u16::from_le_bytes([slot[6], slot[7]]));
    let known = slot[..4] == MAGIC && format_of(slot) == (FORMAT, 0) && slot[24..HEADER] == [0; 8];
    if !known || len > SWAP_LEN_MAX as usize {
        return None;
    }
    let version = whole_version(slot, place)?;
    let body = slot.chunks_exact(SECTOR).flat_map(|sector| &sector[..BODY]);
    let content: Vec<u8> = body.skip(HEADER).take(len).copied().collect();
    let sum = u32::from_le_bytes(slot[16..20].try_into().expect("four bytes"));
    (crc32c::crc32c(&content) == sum).then_some(Current { version, content })
}

/// Checks that the other slot can be the result of an interrupted swap from version `holds`: sectors of the version before and of the one
/// after, zeros if there was none before.
fn check_torn(slot: &[u8], place: usize, holds: u64) -> Result<(), SlotDamage> {
    for (index, sector) in slot.chunks_exact(SECTOR).enumerate() {
        let before = match holds.checked_sub(1) {
            None | Some(0) => sector.iter().all(|byte| *byte == 0),
            Some(before) => is_of(before, index, sector),
        };
        if !before && !is_of(holds + 1, index, sector) {
            return Err(SlotDamage {
                slot: place,
                sector: index,
            });
        }
    }
    Ok(())
}

fn is_of(version: u64, index: usize, sector: &[u8]) -> bool {
    let sum = u32::from_le_bytes(sector[BODY..].try_into().expect("four bytes"));
    checksum(version, index, &sector[..BODY]) == sum
}

fn checksum(version: u64, index: usize, body: &[u8]) -> u32 {
    let seed = crc32c::crc32c(&version.to_le_bytes());
    let seed = crc32c::crc32c_append(seed, &(index as u64).to_le_bytes());
    crc32c::crc32c_append(seed, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Medium = [u8; SLOTS_LEN];

    fn content(version: u64) -> Vec<u8> {
        (0..u64::from(SWAP_LEN_MAX))
            .map(|index| (version * 31 + index * 7).to_le_bytes()[0])
            .collect()
    }

    /// The medium after `version` swaps.
    fn history(version: u64) -> Medium {
        let mut medium = [0; SLOTS_LEN];
        for version in version.saturating_sub(1).max(1)..=version {
            put(&mut medium, version, &content(version), 0xff);
        }
        medium
    }

    /// Writes the sectors in `mask` of the slot of `version`.
    fn put(medium: &mut Medium, version: u64, content: &[u8], mask: u8) {
        let slot = encode(version, content);
        let start = usize::try_from(slot_offset(version)).unwrap();
        for sector in (0..SECTORS).filter(|sector| mask >> sector & 1 == 1) {
            let at = sector * SECTOR;
            medium[start + at..][..SECTOR].copy_from_slice(&slot[at..][..SECTOR]);
        }
    }

    fn holds(version: u64) -> Option<Current> {
        (version > 0).then(|| Current {
            version,
            content: content(version),
        })
    }

    #[test]
    fn every_history_reads_back() {
        for version in 0..6 {
            assert_eq!(decode(&history(version)), Ok(holds(version)));
        }
    }

    #[test]
    fn a_swap_interrupted_anywhere_leaves_old_or_new() {
        for version in 0..5 {
            for mask in 0..=0xff {
                let mut medium = history(version);
                put(&mut medium, version + 1, &content(version + 1), mask);
                let expected = if mask == 0xff {
                    holds(version + 1)
                } else {
                    holds(version)
                };
                assert_eq!(
                    decode(&medium),
                    Ok(expected),
                    "version {version}, sectors {mask:08b}"
                );
            }
        }
    }

    #[test]
    fn a_swap_interrupted_twice_leaves_old_or_the_second() {
        for first in 0..=0xff_u8 {
            for second in [1_u8, 0x0f, 0x80, 0x7f, 0xfe, !first, first] {
                let mut medium = history(3);
                put(&mut medium, 4, &content(77), first);
                put(&mut medium, 4, &content(4), second);
                let expected = match (first, second) {
                    (_, 0xff) => holds(4),
                    (0xff, 0) => Some(Current {
                        version: 4,
                        content: content(77),
                    }),
                    _ => holds(3),
                };
                assert_eq!(
                    decode(&medium),
                    Ok(expected),
                    "sectors {first:08b} then {second:08b}"
                );
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let medium = history(5);
        for at in 0..SLOTS_LEN {
            let mut flipped = medium;
            flipped[at] ^= 1 << (at % 8);
            let SlotsUnreadable::Damaged(damage) = decode(&flipped).expect_err("a flipped bit")
            else {
                panic!("a flipped bit at {at} is damage");
            };
            assert_eq!(
                damage.slot * SLOT_LEN + damage.sector * SECTOR,
                at / SECTOR * SECTOR
            );
        }
    }

    #[test]
    fn lost_and_foreign_sectors_are_found() {
        for sector in 0..2 * SECTORS {
            let mut zeroed = history(5);
            zeroed[sector * SECTOR..][..SECTOR].fill(0);
            assert!(decode(&zeroed).is_err(), "sector {sector} lost");
        }
        let mut swapped = history(5);
        swapped.rotate_left(SLOT_LEN);
        assert!(decode(&swapped).is_err(), "slots exchanged");
        let mut old = history(5);
        put(&mut old, 2, &content(2), 0xff);
        assert!(decode(&old).is_err(), "a version of long ago");
        assert!(decode(&[0x5a; SLOTS_LEN]).is_err(), "something else");
        let mut last = [0; SLOTS_LEN];
        put(&mut last, u64::MAX, b"whole", 0xff);
        assert!(decode(&last).is_err(), "a version that none can follow");
    }

    #[test]
    fn swaps_go_by_version_and_content() {
        let three = holds(3);
        let check = |expected, content: &[u8]| swap(three.as_ref(), expected, content);
        assert!(matches!(
            check(3, b"new"),
            Swap::Write {
                offset: 4096,
                version: 4,
                ..
            }
        ));
        assert_eq!(check(2, &content(3)), Swap::Done { version: 3 });
        assert_eq!(check(2, b"other"), Swap::Stale { version: 3 });
        assert_eq!(check(4, &content(3)), Swap::Stale { version: 3 });
        assert_eq!(swap(None, 1, b"none"), Swap::Stale { version: 0 });
        assert!(matches!(
            swap(None, 0, b"first"),
            Swap::Write {
                offset: 0,
                version: 1,
                ..
            }
        ));
    }

    #[test]
    fn fields_stand_where_the_format_has_them() {
        let slot = encode(1, b"abc");
        // Magic, format, length, version, checksum of the content.
        let header = b"AHS1\x01\0\x03\0\x01\0\0\0\0\0\0\0";
        assert_eq!(slot[..16], *header);
        assert_eq!(slot[16..20], 0x364b_3fb7_u32.to_le_bytes());
        assert_eq!(slot[20..32], [0; 12]);
        assert_eq!(slot[32..36], *b"abc\0");
        assert_eq!(slot[508..512], 0xc607_5575_u32.to_le_bytes());
        assert_eq!(slot[1020..1024], 0x523d_a4c1_u32.to_le_bytes());
    }

    /// The slot of `version` with a header that is not ours, and checksums that are.
    fn forged(version: u64, at: usize, value: u8) -> Box<[u8; SLOT_LEN]> {
        let mut slot = encode(version, b"abc");
        slot[at] = value;
        let sum = checksum(version, 0, &slot[..BODY]);
        slot[BODY..SECTOR].copy_from_slice(&sum.to_le_bytes());
        slot
    }

    #[test]
    fn a_slot_is_read_only_if_all_of_its_header_is_ours() {
        assert!(decode_whole(forged(1, 0, b'A').as_slice(), 0).is_some());
        for (what, at, value) in [
            ("magic", 0, b'B'),
            ("format", 4, 2),
            ("length", 7, 16),
            ("length", 6, 4),
            ("checksum", 16, 0),
            ("features", 21, 1),
            ("reserved", 31, 1),
        ] {
            assert_eq!(
                decode_whole(forged(1, at, value).as_slice(), 0),
                None,
                "{what}"
            );
        }
        assert_eq!(decode_whole(encode(1, b"abc").as_slice(), 1), None, "place");
        let longest = encode(1, &[7; SWAP_LEN_MAX as usize]);
        assert!(decode_whole(longest.as_slice(), 0).is_some());
    }

    #[test]
    fn a_newer_slot_of_another_format_is_unsupported_and_an_older_one_is_ignored() {
        for (at, value, format, features) in [(4, 2, 2, 0), (20, 8, 1, 8)] {
            let decoded = |foreign: u64, ours: u64| {
                let mut medium = [0; SLOTS_LEN];
                for (version, slot) in [
                    (foreign, forged(foreign, at, value)),
                    (ours, encode(ours, b"abc")),
                ] {
                    let start = usize::try_from(slot_offset(version)).unwrap();
                    medium[start..][..SLOT_LEN].copy_from_slice(slot.as_slice());
                }
                decode(&medium)
            };
            let unsupported = SlotsUnreadable::Unsupported { format, features };
            assert_eq!(decoded(6, 5), Err(unsupported));
            let current = decoded(4, 5).unwrap().unwrap();
            assert_eq!(current.version, 5);
            let mut alone = [0; SLOTS_LEN];
            alone[..SLOT_LEN].copy_from_slice(forged(1, at, value).as_slice());
            assert_eq!(decode(&alone), Err(unsupported));
        }
    }

    #[test]
    fn damage_is_named_by_its_place() {
        let both = |odd, even| {
            let mut medium = [0; SLOTS_LEN];
            put(&mut medium, odd, &content(odd), 0xff);
            put(&mut medium, even, &content(even), 0xff);
            decode(&medium)
        };
        let damage = |slot, sector| Err(SlotDamage { slot, sector }.into());
        assert_eq!(both(5, 2), damage(1, 0));
        assert_eq!(both(1, 4), damage(0, 0));
        for at in [0, 511, 512, 1500, SLOT_LEN - 1] {
            let mut medium = [0; SLOTS_LEN];
            medium[SLOT_LEN + at] = 1;
            assert_eq!(decode(&medium), damage(1, at / 512));
        }
    }
}
