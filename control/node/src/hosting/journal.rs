//! Presence journals in mapped files: they outlive any of our processes, but not the machine's boot.
//!
//! Invariants
//! - A file is allocated in full before it is mapped: a full file system is told at the open, never at an append.
//! - Names are lineages, so a journal is found by whoever opens the volume next.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use archipelago_mapper::journal::{
    self, Journal, JournalArea, JournalMemory, JournalStore, Recovered,
};
use archipelago_protocol::{Error, ErrorCode, Generation, Lineage};
use xseg::Region;

/// Records that a journal has room for at least.
pub(crate) const RECORDS: usize = 32_768;
const JOURNAL_LEN: usize = journal::len_for(RECORDS);
/// Where the kernel tells which boot this is.
pub(super) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The journals in one directory.
#[derive(Debug)]
pub(crate) struct FileJournals {
    directory: PathBuf,
    boot: u128,
}

#[derive(Debug)]
struct MappedFile {
    region: Region,
}

impl FileJournals {
    /// The journals in `directory`, which is made if need be.
    pub(crate) fn new(directory: PathBuf) -> Result<FileJournals, Error> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Error::new(ErrorCode::Io, format!("{what}: {error}"))
        };
        std::fs::create_dir_all(&directory)
            .map_err(|error| failed(&directory.display().to_string(), &error))?;
        let text = std::fs::read_to_string(BOOT_ID).map_err(|error| failed(BOOT_ID, &error))?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let boot = u128::from_str_radix(&digits, 16).map_err(|error| failed(BOOT_ID, &error))?;
        Ok(FileJournals { directory, boot })
    }

    fn path(&self, lineage: Lineage) -> PathBuf {
        self.directory.join(lineage.to_string())
    }

    fn map(file: File, len: usize) -> std::io::Result<MappedFile> {
        Ok(MappedFile {
            region: Region::from_fd(OwnedFd::from(file), 0, len)?,
        })
    }

    fn fresh(&self, lineage: Lineage) -> std::io::Result<MappedFile> {
        let path = self.path(lineage);
        // A new file in place of the old one: a process that is still dying may have the old one mapped.
        let hidden = path.with_extension("new");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&hidden)?;
        let len = i64::try_from(JOURNAL_LEN).map_err(std::io::Error::other)?;
        nix::fcntl::posix_fallocate(&file, 0, len)?;
        std::fs::rename(&hidden, &path)?;
        FileJournals::map(file, JOURNAL_LEN)
    }
}

impl JournalStore for FileJournals {
    fn open(
        &mut self,
        lineage: Lineage,
        generation: Generation,
    ) -> Result<Box<dyn Journal>, ErrorCode> {
        match self.fresh(lineage) {
            Ok(memory) => Ok(Box::new(JournalArea::create(
                memory, self.boot, lineage, generation,
            ))),
            Err(error) => {
                tracing::error!(
                    "presence journal of {lineage} in {}: {error}",
                    self.directory.display()
                );
                Err(if error.kind() == ErrorKind::StorageFull {
                    ErrorCode::NoSpace
                } else {
                    ErrorCode::Io
                })
            }
        }
    }

    fn load(&mut self, lineage: Lineage) -> Option<Recovered> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(lineage))
            .ok()?;
        let len = usize::try_from(file.metadata().ok()?.len()).ok()?;
        let memory = FileJournals::map(file, len).ok()?;
        journal::load(&memory, self.boot, lineage)
    }

    fn remove(&mut self, lineage: Lineage) {
        match std::fs::remove_file(self.path(lineage)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!("presence journal of {lineage}: {error}");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

impl JournalMemory for MappedFile {
    fn size(&self) -> u64 {
        self.region.len()
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        self.region
            .read(offset, into)
            .expect("the journal keeps to its length");
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.region
            .write(offset, bytes)
            .expect("the journal keeps to its length");
    }
}

#[cfg(test)]
mod tests {
    use archipelago_mapper::journal::JournalRecord;
    use archipelago_protocol::Epoch;

    use super::*;

    #[test]
    fn a_successor_finds_what_was_appended_and_nothing_of_another_boot() {
        let dir = tempfile::tempdir().unwrap();
        let us = Lineage(5);
        let mut journals = FileJournals::new(dir.path().join("journal")).unwrap();
        let record = JournalRecord {
            sequence: 1,
            start: 7,
            blocks: 2,
            epoch: Epoch(1),
            zero: false,
        };
        let mut journal = journals.open(us, Generation(3)).unwrap();
        journal.append(record).unwrap();
        // Not dropped: as after a kill, nothing was said at the end.
        std::mem::forget(journal);
        let found = FileJournals::new(dir.path().join("journal"))
            .unwrap()
            .load(us)
            .unwrap();
        assert_eq!(
            (found.generation, found.records),
            (Generation(3), vec![record])
        );
        let mut next_boot = FileJournals::new(dir.path().join("journal")).unwrap();
        next_boot.boot ^= 1;
        assert_eq!(next_boot.load(us), None);
        journals.remove(us);
        journals.remove(us);
        assert_eq!(journals.load(us), None);
    }
}
