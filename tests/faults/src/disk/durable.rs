//! What of a file is not durable yet: its sectors as they were at the last sync.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SECTOR: u64 = 512;

/// The durable content of the sectors that were written since the last sync of a file.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    sectors: HashMap<u64, Vec<u8>>,
}

impl Undo {
    /// `len` bytes at `offset` are about to be changed.
    pub(crate) fn keep(&mut self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        for sector in offset / SECTOR..(offset + len).div_ceil(SECTOR) {
            if self.sectors.contains_key(&sector) {
                continue;
            }
            let mut bytes = vec![0; 512];
            let mut filled = 0;
            while filled < bytes.len() {
                match file.read_at(&mut bytes[filled..], sector * SECTOR + filled as u64)? {
                    0 => break,
                    count => filled += count,
                }
            }
            self.sectors.insert(sector, bytes);
        }
        Ok(())
    }

    /// `len` bytes at `offset` are durable as they are.
    pub(crate) fn settle(&mut self, offset: u64, len: u64) {
        for sector in offset / SECTOR..(offset + len).div_ceil(SECTOR) {
            self.sectors.remove(&sector);
        }
    }

    /// The file ends at `len` now.
    pub(crate) fn cut(&mut self, len: u64) {
        self.sectors.retain(|sector, _| sector * SECTOR < len);
    }

    /// The disk loses what is not durable. A file keeps its length, as if that had been.
    pub(crate) fn lose(&mut self, file: &File) -> io::Result<()> {
        for (sector, bytes) in self.sectors.drain() {
            file.write_all_at(&bytes, sector * SECTOR)?;
        }
        Ok(())
    }
}
