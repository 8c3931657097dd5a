//! Tells a damaged last batch from a torn one: a single flipped bit is what no interrupted append leaves.
//!
//! An interrupted append leaves old sectors among new ones; that this looks like one flipped bit has a chance of 2^-17 for
//! 4 KiB. So it is good enough for a report, and nothing is refused because of it.

use archipelago_protocol::Lineage;

use super::batch::{HEAD_LEN, MAGIC, decode};
use crate::format::{CRC_AT, ENVELOPE_LEN, Problem, checksum, sealed_crc};

/// CRC32C, reflected: what the last bit of a message adds to the checksum.
const LAST_BIT: u32 = 0x82f6_3b78;
const LENGTH_AT: usize = 12;
const POSITION_AT: usize = ENVELOPE_LEN + 8;

/// Whether a batch at `position` begins in `bytes` and is whole but for one bit.
pub(crate) fn is_one_bit_off(bytes: &[u8], lineage: Lineage, position: u64) -> bool {
    let Some(head) = bytes.get(..HEAD_LEN) else {
        return false;
    };
    let is_whole = |bytes: &[u8]| decode(bytes, lineage, position).is_ok();
    // These are judged before the checksum: a batch that differs there has to be mended first.
    let wrong = |at: usize, right: &[u8; 8]| -> u32 {
        let differ = |(found, right): (&u8, &u8)| (found ^ right).count_ones();
        head[at..at + 8].iter().zip(right).map(differ).sum()
    };
    let place = position.to_le_bytes();
    match wrong(0, &MAGIC) + wrong(POSITION_AT, &place) {
        0 => {}
        1 => {
            let mut mended = bytes.to_vec();
            mended[..8].copy_from_slice(&MAGIC);
            mended[POSITION_AT..POSITION_AT + 8].copy_from_slice(&place);
            return is_whole(&mended);
        }
        _ => return false,
    }
    if let Err(Problem::Checksum) = decode(bytes, lineage, position)
        && let Some(whole) = bytes.get(..length(head))
        && is_one_bit(sealed_crc(whole) ^ checksum(whole), whole.len())
    {
        return true;
    }
    let mut mended = bytes.to_vec();
    (0..32).any(|bit| {
        let (at, mask) = (LENGTH_AT + bit / 8, 1 << (bit % 8));
        mended[at] ^= mask;
        let found = is_whole(&mended);
        mended[at] ^= mask;
        found
    })
}

fn length(head: &[u8]) -> usize {
    let bytes = head[LENGTH_AT..CRC_AT].try_into().expect("four bytes");
    usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
}

/// Whether one flipped bit in `len` bytes makes this difference between the checksum found and the one computed.
fn is_one_bit(difference: u32, len: usize) -> bool {
    if difference.count_ones() == 1 {
        // In the checksum itself.
        return true;
    }
    let mut effect = LAST_BIT;
    (0..len * 8).any(|_| {
        let found = effect == difference;
        // One bit earlier: its effect goes through one more step of the register.
        effect = effect >> 1 ^ if effect & 1 == 1 { LAST_BIT } else { 0 };
        found
    })
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Generation;

    use super::super::batch::{Content, UNIT, encode_batch};
    use super::*;

    const US: Lineage = Lineage(5);

    #[test]
    fn each_single_bit_is_found_and_two_are_not() {
        let payload: Vec<u8> = (0..5000_u32).map(|number| (number % 251) as u8).collect();
        let content = Content::records(payload);
        let mut batch = encode_batch(US, Generation(3), 8192, &content, 0);
        batch.resize(4 * UNIT, 0);
        assert!(decode(&batch, US, 8192).is_ok());
        // Every bit of what is judged before the checksum, and samples of the rest.
        for bit in (0..HEAD_LEN * 8).chain((HEAD_LEN * 8..2 * UNIT * 8).step_by(331)) {
            batch[bit / 8] ^= 1 << (bit % 8);
            assert!(is_one_bit_off(&batch, US, 8192), "bit {bit}");
            let other = (bit + 4321) % (2 * UNIT * 8);
            batch[other / 8] ^= 1 << (other % 8);
            assert!(!is_one_bit_off(&batch, US, 8192), "bits {bit} and {other}");
            batch[other / 8] ^= 1 << (other % 8);
            batch[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn torn_batches_and_zeros_are_something_else() {
        let payload = vec![0x5a; 5000];
        let content = Content::records(payload);
        let batch = encode_batch(US, Generation(3), 0, &content, 0);
        for lost in 0..batch.len() / 512 {
            let mut torn = batch.clone();
            torn[lost * 512..(lost + 1) * 512].fill(0);
            // The last sectors are zeros anyway.
            if torn != batch {
                assert!(!is_one_bit_off(&torn, US, 0), "sector {lost}");
            }
        }
        assert!(!is_one_bit_off(&vec![0; UNIT], US, 0));
        assert!(!is_one_bit_off(&[], US, 0));
    }
}
