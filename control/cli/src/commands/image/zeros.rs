//! Zeros are not copied: which parts of a buffer hold anything.

use std::ops::Range;

/// Blocks that are looked at: those of a volume.
const BLOCK: usize = 4096;
/// Zeros shorter than this are copied along: a request costs more than they do.
const GAP_MIN: usize = 64 << 10;

/// The parts of `buffer` that hold something else than zeros: whole blocks but for the end, in order.
pub(super) fn filled(buffer: &[u8]) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    for (index, block) in buffer.chunks(BLOCK).enumerate() {
        if is_zero(block) {
            continue;
        }
        let (start, end) = (index * BLOCK, index * BLOCK + block.len());
        match parts.last_mut() {
            Some(last) if start - last.end < GAP_MIN => last.end = end,
            _ => parts.push(start..end),
        }
    }
    parts
}

fn is_zero(block: &[u8]) -> bool {
    // The pieces are what the compiler turns into vector compares.
    block
        .chunks(64)
        .all(|piece| piece.iter().fold(0, |sum, byte| sum | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_zeros_are_left_out_and_short_ones_are_not() {
        let parts = |buffer: &[u8]| -> Vec<(usize, usize)> {
            let filled = filled(buffer).into_iter();
            filled.map(|part| (part.start, part.end)).collect()
        };
        let mut buffer = vec![0; 1 << 20];
        assert!(parts(&buffer).is_empty());
        buffer[5000] = 1;
        buffer[9 * BLOCK] = 1;
        assert_eq!(parts(&buffer), [(BLOCK, 10 * BLOCK)]);
        buffer[(1 << 20) - 1] = 1;
        let end = ((1 << 20) - BLOCK, 1 << 20);
        assert_eq!(parts(&buffer), [(BLOCK, 10 * BLOCK), end]);
        let tail = vec![7; BLOCK + 512];
        assert_eq!(parts(&tail), [(0, BLOCK + 512)]);
    }
}
