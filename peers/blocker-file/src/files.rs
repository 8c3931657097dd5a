//! Open files of a pool: a bounded cache.
//!
//! Invariants
//! - A file with a request in flight is never closed.
//! - A file that was made here is `fresh` until its name is durable.
//! - What is not durable of a file is known also while it is closed.

use std::cell::Cell;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::rc::Rc;

use archipelago_protocol::object::ObjectKind;
use archipelago_runtime::File;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};
use rustc_hash::FxHashMap;

use crate::layout::{CONTAINER_LEN, FileId, Layout};
use crate::pool::Access;
use crate::unsynced::{Turn, Unsynced};

/// Descriptors left for everything but objects: sockets, eventfds, memory regions.
const OTHERS: u64 = 512;
/// Files kept open at most, whatever the limit of descriptors: beyond that, looking for the oldest gets slow.
const OPEN_MAX: u64 = 4096;
/// Files kept open at least.
const OPEN_MIN: u64 = 16;

/// An open file.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) id: FileId,
    pub(crate) file: File,
    /// Past the page cache.
    pub(crate) direct: bool,
    /// Its name is not durable yet.
    pub(crate) fresh: Cell<bool>,
    opened: Turn,
    /// What of it is not durable.
    pub(crate) unsynced: Unsynced,
    /// Transfers on it.
    pub(crate) in_flight: Cell<u32>,
    used: Cell<u64>,
}

/// Whether a file that is not there is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Create,
    Refuse,
}

/// The open files of a pool.
#[derive(Debug)]
pub(crate) struct Files {
    layout: Layout,
    access: Access,
    limit: usize,
    open: FxHashMap<FileId, Rc<Open>>,
    /// Of files that were closed with something to remember.
    closed: FxHashMap<FileId, Unsynced>,
    /// What a predecessor wrote may be lost: each file's first sync tells.
    suspect: bool,
    turn: u64,
    /// When the last sync of the pool that succeeded began.
    pool_synced: Turn,
    pub(crate) opens: u64,
    pub(crate) creations: u64,
}

impl Files {
    pub(crate) fn new(layout: Layout, access: Access) -> Self {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        let limit = (soft.saturating_sub(OTHERS) / 2).clamp(OPEN_MIN, OPEN_MAX);
        let limit = usize::try_from(limit).expect("at most OPEN_MAX");
        Files {
            layout,
            access,
            limit,
            open: FxHashMap::default(),
            closed: FxHashMap::default(),
            suspect: false,
            turn: 0,
            pool_synced: Turn(0),
            opens: 0,
            creations: 0,
        }
    }

    /// The file `id`, opened if need be.
    pub(crate) fn get(&mut self, id: FileId, missing: Missing) -> io::Result<Rc<Open>> {
        self.turn += 1;
        if let Some(open) = self.open.get(&id) {
            open.used.set(self.turn);
            return Ok(Rc::clone(open));
        }
        self.make_room();
        let (file, fresh) = match self.open_file(id, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && missing == Missing::Create => {
                (self.open_file(id, true)?, true)
            }
            other => (other?, false),
        };
        self.opens += 1;
        self.creations += u64::from(fresh);
        let open = Rc::new(Open {
            id,
            file: file.into(),
            direct: self.is_direct(id),
            fresh: Cell::new(fresh),
            opened: self.now(),
            unsynced: self.unsynced_of(id, fresh),
            in_flight: Cell::new(0),
            used: Cell::new(self.turn),
        });
        self.open.insert(id, Rc::clone(&open));
        Ok(open)
    }

    /// Closes what is open of the files that `which` names. Requests in flight keep theirs to their end.
    pub(crate) fn forget(&mut self, which: impl Fn(&FileId) -> bool) {
        self.open.retain(|id, _| !which(id));
        self.closed.retain(|id, _| !which(id));
    }

    /// The sync of what a predecessor wrote failed. Told by the first sync of each file that it may have written.
    pub(crate) fn suspect_all(&mut self) {
        self.suspect = true;
    }

    fn unsynced_of(&mut self, id: FileId, fresh: bool) -> Unsynced {
        match self.closed.remove(&id) {
            Some(known) => known,
            None if self.suspect && !fresh => Unsynced::suspect(),
            None => Unsynced::default(),
        }
    }

    /// A write to `open` ended, whatever came of it.
    pub(crate) fn wrote(&mut self, open: &Open) {
        self.turn += 1;
        open.unsynced.wrote(self.now());
    }

    /// What a sync that begins now covers.
    pub(crate) fn now(&self) -> Turn {
        Turn(self.turn)
    }

    /// A sync of the pool that began at `began` succeeded.
    pub(crate) fn pool_synced(&mut self, began: Turn) {
        self.pool_synced = self.pool_synced.max(began);
        let pool_synced = self.pool_synced;
        for open in self.open.values() {
            if open.opened <= pool_synced {
                open.fresh.set(false);
            }
        }
        self.closed
            .retain(|_, unsynced| self.suspect || unsynced.matters(pool_synced));
    }

    /// A sync failed, and does not say whose data it dropped.
    pub(crate) fn lose_unsynced(&mut self) {
        let open = self.open.values().map(|open| &open.unsynced);
        for unsynced in open.chain(self.closed.values()) {
            unsynced.lose(self.pool_synced);
        }
    }

    /// Packs are read and written in odd lengths, once: the page cache serves them best.
    fn is_direct(&self, id: FileId) -> bool {
        self.access != Access::Cached
            && matches!(id.object.kind, ObjectKind::Data | ObjectKind::Log)
    }

    fn open_file(&self, id: FileId, create: bool) -> io::Result<fs::File> {
        let path = self.layout.file(id);
        let direct = if self.is_direct(id) {
            OFlag::O_DIRECT
        } else {
            OFlag::empty()
        };
        let open = |flags: OFlag| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(create)
                .mode(0o600)
                .custom_flags(flags.bits())
                .open(&path)
        };
        if create {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(self.layout.lineage(id.object.lineage))?;
        }
        let file = match open(direct | OFlag::O_NOATIME) {
            // Only the owner of a file may say that.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(direct)?,
            other => other?,
        };
        if create && id.object.kind == ObjectKind::Data {
            // Its full length at once, all hole: writes beyond the end of a file are serialised.
            file.set_len(CONTAINER_LEN)?;
        }
        Ok(file)
    }

    fn make_room(&mut self) {
        if self.open.len() < self.limit {
            return;
        }
        let idle = self
            .open
            .values()
            .filter(|open| Rc::strong_count(open) == 1 && !open.fresh.get());
        if let Some(oldest) = idle.min_by_key(|open| open.used.get()).map(|open| open.id) {
            let closed = self.open.remove(&oldest);
            let unsynced = closed.map(|open| open.unsynced.clone());
            if let Some(unsynced) =
                unsynced.filter(|it| self.suspect || it.matters(self.pool_synced))
            {
                self.closed.insert(oldest, unsynced);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::object::ObjectId;
    use archipelago_protocol::{Epoch, Lineage};

    use super::*;

    #[test]
    fn what_is_not_durable_is_known_of_closed_files_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::new(Layout::new(dir.path()), Access::Cached);
        files.limit = 1;
        let [first, second] = [1, 2].map(|n| {
            let id = ObjectId::data(Lineage(n), Epoch(1));
            FileId::locate(id, 0).0
        });
        let open = files.get(first, Missing::Create).unwrap();
        open.fresh.set(false);
        files.wrote(&open);
        drop(open);
        let other = files.get(second, Missing::Create).unwrap();
        other.fresh.set(false);
        drop(other);
        assert!(!files.open.contains_key(&first));
        files.lose_unsynced();
        let open = files.get(first, Missing::Refuse).unwrap();
        assert!(!open.unsynced.synced(files.now()), "told");
        assert!(open.unsynced.synced(files.now()), "once");
        drop(open);
        // What there was before this process is suspect once, too.
        files.suspect_all();
        for told in [true, false] {
            let open = files.get(second, Missing::Refuse).unwrap();
            assert_eq!(open.unsynced.synced(files.now()), !told);
            drop(open);
            drop(files.get(first, Missing::Refuse).unwrap());
        }
    }
}
