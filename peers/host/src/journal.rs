//! Presence journals in mapped files: they outlive any of our processes, but not the machine's boot.
//!
//! Invariants
//! - A file is allocated in full before it is mapped: a full file system is reported at the open, never at an append.
//! - A journal gets a new file, renamed over the older one. Only if there is no space for two, the older file is used again, in place; see
//!   [`FileJournals::reuse`] for why no other process writes to it then.
//! - Names are lineages, so the next process that opens the volume finds its journal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use archipelago_mapper::journal::{
    self, Journal, JournalArea, JournalMemory, JournalStore, Recovered, UnsupportedJournal,
};
use archipelago_protocol::{Error, ErrorCode, Generation, Lineage};
use nix::errno::Errno;
use xseg::Region;

use crate::owner::BOOT_ID;

/// Fewest records that fit into a journal.
pub(crate) const RECORDS: usize = 32_768;
const JOURNAL_LEN: usize = journal::len_for(RECORDS);
/// Bytes of the presence journal of an open volume.
pub const JOURNAL_LEN_BYTES: u64 = JOURNAL_LEN as u64;

/// The journals in one directory.
#[derive(Debug)]
pub(crate) struct FileJournals {
    directory: PathBuf,
    boot: u128,
    /// Files that are ready for the next journal of a lineage, which is not made yet.
    prepared: BTreeMap<Lineage, Prepared>,
    /// Journals of this process that may still be written to.
    mapped: BTreeMap<Lineage, Weak<()>>,
    /// Lineages whose last journal found no memory.
    starved: BTreeSet<Lineage>,
}

/// Memory for a journal.
#[derive(Debug)]
enum Prepared {
    /// A file beside the older journal, which it will replace.
    Fresh(File),
    /// The older journal's file.
    Older(File),
}

#[derive(Debug)]
struct MappedFile {
    region: Region,
    /// While this exists, the file is in use.
    _alive: Rc<()>,
}

impl FileJournals {
    /// The journals in `directory`, which is created if it does not exist.
    pub(crate) fn new(directory: PathBuf) -> Result<FileJournals, Error> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Error::new(ErrorCode::Io, format!("{what}: {error}"))
        };
        std::fs::create_dir_all(&directory)
            .map_err(|error| failed(&directory.display().to_string(), &error))?;
        let text = std::fs::read_to_string(BOOT_ID).map_err(|error| failed(BOOT_ID, &error))?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let boot = u128::from_str_radix(&digits, 16).map_err(|error| failed(BOOT_ID, &error))?;
        Ok(FileJournals {
            directory,
            boot,
            prepared: BTreeMap::new(),
            mapped: BTreeMap::new(),
            starved: BTreeSet::new(),
        })
    }

    fn path(&self, lineage: Lineage) -> PathBuf {
        self.directory.join(lineage.to_string())
    }

    /// A new file, allocated in full.
    fn fresh(hidden: &Path) -> std::io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(hidden)?;
        let allocated = allocate(&file);
        if allocated.is_err() {
            // A partly allocated file takes space from others.
            let _removed = std::fs::remove_file(hidden);
        }
        allocated.map(|()| file)
    }

    /// The older file, to be used again in place. No other process writes to it:
    /// - No volume of this process: it would keep its journal's mark in `mapped`, and no other data thread has a volume of this lineage.
    /// - No former process. Its memory is freed before its descriptors are closed, whatever killed it. In the fused placement one of these
    ///   descriptors is the pool's lock, which this process holds; in the split one it is the mapper's listening socket, which this process
    ///   has replaced before the first open. A process of the same daemon was waited for.
    ///
    /// Its content stays until the new journal is made. Slots contain their generation, so older ones need not be cleared.
    fn reuse(&self, lineage: Lineage) -> std::io::Result<File> {
        let in_use = self.mapped.get(&lineage);
        if in_use.is_some_and(|alive| alive.strong_count() > 0) {
            return Err(Errno::EBUSY.into());
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(lineage))?;
        if file.metadata()?.len() != JOURNAL_LEN as u64 {
            return Err(std::io::Error::from(ErrorKind::InvalidData));
        }
        // Costs nothing if the file is fully allocated. If it is not, an append would end the process.
        allocate(&file)?;
        Ok(file)
    }

    fn memory_for(&self, lineage: Lineage) -> std::io::Result<Prepared> {
        let failed = match Self::fresh(&self.hidden(lineage)) {
            Ok(file) => return Ok(Prepared::Fresh(file)),
            Err(error) => error,
        };
        match self.reuse(lineage) {
            Ok(file) => {
                tracing::info!(
                    "no room for a second presence journal of {lineage} in {}: the one that is there is used again",
                    self.directory.display()
                );
                Ok(Prepared::Older(file))
            }
            // It does not exist or is in use: the lack of space is the error to report.
            Err(_why) => Err(failed),
        }
    }

    fn make(&mut self, lineage: Lineage) -> std::io::Result<MappedFile> {
        let prepared = match self.prepared.remove(&lineage) {
            Some(prepared) => prepared,
            None => self.memory_for(lineage)?,
        };
        let file = match prepared {
            Prepared::Fresh(file) => {
                std::fs::rename(self.hidden(lineage), self.path(lineage))?;
                file
            }
            Prepared::Older(file) => file,
        };
        let alive = Rc::new(());
        self.mapped.retain(|_, alive| alive.strong_count() > 0);
        self.mapped.insert(lineage, Rc::downgrade(&alive));
        Ok(MappedFile {
            region: Region::from_fd(OwnedFd::from(file), 0, JOURNAL_LEN)?,
            _alive: alive,
        })
    }

    /// The code of `error` for the mapper; the error is logged once, until there is memory again.
    fn report(&mut self, lineage: Lineage, error: &std::io::Error) -> ErrorCode {
        let code = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => ErrorCode::NoRunSpace,
            Some(Errno::EMFILE | Errno::ENFILE) => ErrorCode::NoDescriptors,
            Some(Errno::ENOMEM) => ErrorCode::NoMemory,
            _ => ErrorCode::Io,
        };
        if self.starved.insert(lineage) {
            let directory = self.directory.display();
            tracing::error!(
                "presence journal of {lineage}: {JOURNAL_LEN} bytes in {directory}: {error}{}",
                if code.passes() {
                    "; tried again until there are"
                } else {
                    ""
                }
            );
        }
        code
    }

    fn hidden(&self, lineage: Lineage) -> PathBuf {
        self.path(lineage).with_extension("new")
    }

    /// The memory of the present journal.
    fn existing(&self, lineage: Lineage) -> Option<MappedFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(lineage))
            .ok()?;
        let len = usize::try_from(file.metadata().ok()?.len()).ok()?;
        let region = Region::from_fd(OwnedFd::from(file), 0, len).ok()?;
        Some(MappedFile {
            region,
            _alive: Rc::new(()),
        })
    }
}

fn allocate(file: &File) -> std::io::Result<()> {
    let len = i64::try_from(JOURNAL_LEN).map_err(std::io::Error::other)?;
    Ok(nix::fcntl::posix_fallocate(file, 0, len)?)
}

impl JournalStore for FileJournals {
    fn prepare(&mut self, lineage: Lineage) -> Result<(), ErrorCode> {
        // Always made anew: an earlier prepared file may be outdated after a removal.
        self.prepared.remove(&lineage);
        match self.memory_for(lineage) {
            Ok(prepared) => {
                self.prepared.insert(lineage, prepared);
                if self.starved.remove(&lineage) {
                    tracing::info!("presence journal of {lineage}: there is room again");
                }
                Ok(())
            }
            Err(error) => Err(self.report(lineage, &error)),
        }
    }

    fn open(
        &mut self,
        lineage: Lineage,
        generation: Generation,
    ) -> Result<Box<dyn Journal>, ErrorCode> {
        match self.make(lineage) {
            Ok(memory) => Ok(Box::new(JournalArea::create(
                memory, self.boot, lineage, generation,
            ))),
            Err(error) => Err(self.report(lineage, &error)),
        }
    }

    fn load(&mut self, lineage: Lineage) -> Result<Option<Recovered>, UnsupportedJournal> {
        match self.existing(lineage) {
            Some(memory) => journal::load(&memory, self.boot, lineage),
            None => Ok(None),
        }
    }

    fn in_use(&self) -> Vec<Lineage> {
        let in_use = self
            .mapped
            .iter()
            .filter(|(_, alive)| alive.strong_count() > 0);
        in_use.map(|(lineage, _)| *lineage).collect()
    }

    fn remove(&mut self, lineage: Lineage) {
        if self.prepared.remove(&lineage).is_some() {
            // A file that was used again in place has none beside it.
            let _removed = std::fs::remove_file(self.hidden(lineage));
        }
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
        // Not dropped: as after a kill, nothing is reported at the end.
        std::mem::forget(journal);
        let found = FileJournals::new(dir.path().join("journal"))
            .unwrap()
            .load(us)
            .unwrap()
            .unwrap();
        assert_eq!(
            (found.generation, found.records),
            (Generation(3), vec![record])
        );
        let mut next_boot = FileJournals::new(dir.path().join("journal")).unwrap();
        next_boot.boot ^= 1;
        assert_eq!(next_boot.load(us), Ok(None));
        journals.remove(us);
        journals.remove(us);
        assert_eq!(journals.load(us), Ok(None));
    }
}
