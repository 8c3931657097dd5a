//! Open files of a pool: a bounded cache.
//!
//! Invariants
//! - A file with a request in flight is never closed.
//! - A file that was made here is `fresh` until its name is durable.

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
    turn: u64,
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
            turn: 0,
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
            in_flight: Cell::new(0),
            used: Cell::new(self.turn),
        });
        self.open.insert(id, Rc::clone(&open));
        Ok(open)
    }

    /// Closes what is open of the files that `which` names. Requests in flight keep theirs to their end.
    pub(crate) fn forget(&mut self, which: impl Fn(&FileId) -> bool) {
        self.open.retain(|id, _| !which(id));
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
            self.open.remove(&oldest);
        }
    }
}
