//! Finds the data of a buffer: long runs of zeros are not copied.

use std::ops::Range;

/// Unit of the search: the blocks of a volume.
const BLOCK: usize = 4096;
/// Zeros shorter than this are copied along: a request costs more than they do.
const GAP_MIN: usize = 64 << 10;

/// The ranges of `buffer` that contain data, in order: whole blocks, except at the end of `buffer`.
pub(super) fn data_ranges(buffer: &[u8]) -> Vec<Range<usize>> {
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
    // The compiler turns a comparison of this length into vector instructions.
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
            let ranges = data_ranges(buffer).into_iter();
            ranges.map(|part| (part.start, part.end)).collect()
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
