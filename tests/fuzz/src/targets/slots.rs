//! Small compare-and-swap objects on a medium of sectors.

use archipelago_blocker::slots::{SLOT_LEN, SLOTS_LEN, Swap, decode, encode, slot_offset, swap};

use crate::input::Input;

const SECTOR: usize = 512;

/// Slots written whole or in part, and sectors changed with and without a checksum that fits.
pub(crate) fn slots(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut medium = [0; SLOTS_LEN];
    while !input.is_empty() {
        let kind = input.u8();
        if kind & 1 == 0 {
            let version = if kind & 2 == 0 {
                u64::from(input.u8())
            } else {
                input.u64()
            };
            let mask = input.u8();
            let len = usize::from(input.u8());
            let slot = encode(version, input.take(len));
            let start = usize::try_from(slot_offset(version)).expect("two slots");
            // Bit 2: into the wrong slot.
            let start = if kind & 4 == 0 {
                start
            } else {
                SLOT_LEN - start
            };
            for at in (0..8)
                .filter(|sector| mask >> sector & 1 == 1)
                .map(|sector| sector * SECTOR)
            {
                medium[start + at..][..SECTOR].copy_from_slice(&slot[at..][..SECTOR]);
            }
        } else {
            let at = input.below(SLOTS_LEN);
            medium[at] ^= input.u8();
            if kind & 2 != 0 {
                repair(&mut medium, at / SLOT_LEN);
            }
        }
    }
    // Whatever was accepted can be swapped, and the new content holds.
    let Ok(current) = decode(&medium) else { return };
    let version = current.as_ref().map_or(0, |current| current.version);
    if version == 1 << 62 {
        // The last one.
        return;
    }
    let Swap::Write {
        offset,
        slot,
        version: next,
    } = swap(current.as_ref(), version, b"next")
    else {
        panic!("the version that is there was expected");
    };
    let start = usize::try_from(offset).expect("two slots");
    medium[start..][..SLOT_LEN].copy_from_slice(&*slot);
    let found = decode(&medium)
        .expect("a slot of ours")
        .expect("it was written");
    assert_eq!(
        (found.version, found.content.as_slice()),
        (next, &b"next"[..])
    );
}

/// Makes the checksums of a slot fit what it says.
fn repair(medium: &mut [u8; SLOTS_LEN], slot: usize) {
    let slot = &mut medium[slot * SLOT_LEN..][..SLOT_LEN];
    let len = usize::from(u16::from_le_bytes([slot[6], slot[7]]));
    let body = slot
        .chunks_exact(SECTOR)
        .flat_map(|sector| &sector[..SECTOR - 4]);
    let content: Vec<u8> = body.skip(32).take(len).copied().collect();
    let sum = crc32c::crc32c(&content);
    slot[16..20].copy_from_slice(&sum.to_le_bytes());
    let mut version = [0; 8];
    version.copy_from_slice(&slot[8..16]);
    for (index, sector) in slot.chunks_exact_mut(SECTOR).enumerate() {
        let (body, place) = sector.split_at_mut(SECTOR - 4);
        let seed = crc32c::crc32c_append(crc32c::crc32c(&version), &(index as u64).to_le_bytes());
        place.copy_from_slice(&crc32c::crc32c_append(seed, body).to_le_bytes());
    }
}
