//! Self-describing sectors: magic, volume, sector, write, and a checksum; a misplaced or mixed sector is recognised.

use anyhow::{Result, bail};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
const MAGIC: u64 = 0x5345_4354_4f52_2121;

/// Fills `sector` as write number `write` of `volume` makes it at place `place`. Write 0 stands for zeros.
pub fn fill(sector: &mut [u8], volume: u64, place: u64, write: u64) {
    if write == 0 {
        sector.fill(0);
        return;
    }
    for (index, word) in sector.chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => MAGIC,
            1 => volume,
            2 => place,
            3 => write,
            _ => (write ^ place.rotate_left(17)).wrapping_mul(index as u64 | 1),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    let end = SECTOR - 4;
    let sum = crc32c::crc32c(&sector[..end]);
    sector[end..].copy_from_slice(&sum.to_le_bytes());
}

/// The write that made `sector`, if it is whole and belongs to `volume` at `place`; 0 for zeros.
///
/// # Errors
/// If it is torn, or another volume's or place's.
pub fn identify(sector: &[u8], volumes: &[u64], place: u64) -> Result<u64> {
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(sector.chunks_exact(8)) {
        *word = bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
    }
    let end = SECTOR - 4;
    let sum = crc32c::crc32c(&sector[..end]).to_le_bytes();
    if words[0] != MAGIC || sector[end..] != sum {
        bail!("sector {place} is torn or foreign: {:02x?}", &sector[..32]);
    }
    if !volumes.contains(&words[1]) || words[2] != place {
        bail!(
            "sector {place} holds sector {} of volume {} (write {})",
            words[2],
            words[1],
            words[3]
        );
    }
    Ok(words[3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_know_themselves_and_strangers() {
        let mut sector = [0; SECTOR];
        fill(&mut sector, 1, 2, 3);
        assert_eq!(identify(&sector, &[1], 2).unwrap(), 3);
        assert!(identify(&sector, &[2], 2).is_err());
        assert!(identify(&sector, &[1], 3).is_err());
        sector[200] ^= 1;
        assert!(identify(&sector, &[1], 2).is_err());
        fill(&mut sector, 1, 2, 0);
        assert_eq!(identify(&sector, &[1], 2).unwrap(), 0);
    }
}
