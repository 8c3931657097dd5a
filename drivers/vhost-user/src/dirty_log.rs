//! The dirty log of a live migration: a bit for each 4 KiB page of guest memory that was written.
//!
//! Invariants
//! - A bit is set after its write: otherwise a front end that clears the bit and copies the page in between would miss the write.
//! - The memory cannot shrink (sealed), so no store to it can fault.
//! - A page beyond the log is not recorded: the front end has no place for it.

use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Bytes of guest memory per bit.
const PAGE: u64 = 4096;

/// A mapped dirty log.
#[derive(Debug)]
pub struct DirtyLog {
    bits: MmapRegion<()>,
    start: usize,
    len: usize,
}

impl DirtyLog {
    /// Maps the log that a front end passed.
    ///
    /// # Errors
    /// The error of `mmap`; `InvalidInput` if the file is too short or could be made shorter.
    pub fn map(file: File, offset: u64, len: u64) -> std::io::Result<DirtyLog> {
        let refused = |text| std::io::Error::new(std::io::ErrorKind::InvalidInput, text);
        let sealed = |file: &File| {
            let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(std::io::Error::from)?;
            Ok::<bool, std::io::Error>(seals & SealFlag::F_SEAL_SHRINK.bits() != 0)
        };
        if !sealed(&file)? {
            fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))
                .map_err(std::io::Error::from)?;
        }
        let start = offset % PAGE;
        let end = offset.checked_add(len).filter(|_| len > 0);
        if end.is_none_or(|end| file.metadata().map_or(true, |data| data.len() < end)) {
            return Err(refused("the log is longer than its file"));
        }
        let size = |bytes: u64| usize::try_from(bytes).map_err(std::io::Error::other);
        let bits = MmapRegion::from_file(FileOffset::new(file, offset - start), size(start + len)?)
            .map_err(std::io::Error::other)?;
        Ok(DirtyLog {
            bits,
            start: size(start)?,
            len: size(len)?,
        })
    }

    /// Records that `len` bytes at guest address `address` were written.
    pub fn mark(&self, address: u64, len: u64) {
        if len == 0 {
            return;
        }
        let pages = self.len as u64 * 8;
        let first = address / PAGE;
        let last = (address.saturating_add(len - 1) / PAGE).min(pages.saturating_sub(1));
        for page in first..=last {
            let Ok(byte) = usize::try_from(page / 8) else {
                return;
            };
            if let Ok(bits) = self.bits.get_atomic_ref::<AtomicU8>(self.start + byte) {
                // Release: pairs with the front end's atomic fetch-and-clear; the data is written before the bit is set.
                bits.fetch_or(1 << (page % 8), Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use xseg::Region;

    #[test]
    fn marks_exactly_the_pages_written() {
        let region = Region::anonymous(4096).unwrap();
        let fd: OwnedFd = region.descriptor().0.try_clone().unwrap();
        let log = DirtyLog::map(File::from(fd), 0, 16).unwrap();
        log.mark(4096 * 7 + 4095, 2);
        log.mark(4096 * 20, 0);
        log.mark(4096 * 127, 4096 * 1000);
        log.mark(u64::MAX - 10, 100);
        let mut bits = [0; 17];
        region.read(0, &mut bits).unwrap();
        let mut expected = [0; 17];
        expected[0] = 0x80;
        expected[1] = 0x01;
        expected[15] = 0x80;
        assert_eq!(bits, expected);
    }
}
