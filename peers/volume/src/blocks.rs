//! Block arithmetic.

use std::ops::Range;

use archipelago_protocol::BLOCK_SIZE;

/// Bytes of a block, in memory.
pub(crate) const BLOCK_LEN: usize = 4096;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_SIZE);

/// First byte of the block that holds byte `offset`.
pub(crate) fn block_start(offset: u64) -> u64 {
    offset - offset % BLOCK_SIZE
}

/// First byte after the last block that holds a byte below `end`.
pub(crate) fn block_end(end: u64) -> u64 {
    end.div_ceil(BLOCK_SIZE) * BLOCK_SIZE
}

/// Whether the two ranges share a block.
pub(crate) fn share_a_block(one: &Range<u64>, other: &Range<u64>) -> bool {
    block_start(one.start) < other.end && block_start(other.start) < one.end
}

/// Whether `range` has a byte in the block that begins at `block`.
pub(crate) fn touches(range: &Range<u64>, block: u64) -> bool {
    block_start(range.start) <= block && block < range.end
}
