//! Aligned buffers for transfers whose memory is not aligned as the medium requires.

use std::io;

use xseg::Region;

/// Buffers kept for the next transfer.
const KEPT_MAX: usize = 16;
/// Longest buffer that is kept: 1 MiB, so all of them hold 16 MiB at most.
const KEPT_LEN_MAX: u64 = 1 << 20;
/// Buffers are multiples of this: a page.
const UNIT: u64 = 4096;

/// A pool of buffers.
#[derive(Debug, Default)]
pub(crate) struct BounceBuffers {
    free: Vec<Region>,
}

impl BounceBuffers {
    /// A buffer of at least `len` bytes.
    pub(crate) fn take(&mut self, len: u64) -> io::Result<Region> {
        if let Some(index) = self.free.iter().position(|region| region.len() >= len) {
            return Ok(self.free.swap_remove(index));
        }
        let len =
            usize::try_from(len.next_multiple_of(UNIT).max(UNIT)).map_err(io::Error::other)?;
        Region::anonymous(len)
    }

    /// Takes back a buffer that is not used any more.
    pub(crate) fn put_back(&mut self, region: Region) {
        if self.free.len() < KEPT_MAX && region.len() <= KEPT_LEN_MAX {
            self.free.push(region);
        }
    }
}
