//! A disk that fails on order: a directory, mounted by this process, with a plan for its calls.
//!
//! What is written is kept apart from what is durable: after a failed sync, and after a power cut, sectors are again what
//! they were at the last good sync.

mod calls;
mod durable;
mod filesystem;
mod pass_through;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

pub use calls::{Class, Fault, Kind, Site};
use durable::Undo;
use pass_through::PassThrough;

/// How long a call that never returns is held: longer than anybody waits who does not wait for it.
pub const HOLD: Duration = Duration::from_millis(400);

/// What the file system and its owner share.
#[derive(Default)]
pub(crate) struct State {
    phase: &'static str,
    seen: BTreeMap<Site, u64>,
    plan: BTreeMap<Site, Fault>,
    struck: Vec<Site>,
    calls: u64,
    /// Files that somebody has open.
    open: usize,
    /// By path below the directory that stands for the disk.
    undo: HashMap<PathBuf, Undo>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Go,
    Fail(i32),
    Short,
    Hold,
}

impl State {
    fn judge(&mut self, kind: Kind, path: &Path) -> Verdict {
        let site = Site {
            phase: self.phase,
            kind,
            class: Class::of(path),
        };
        *self.seen.entry(site).or_default() += 1;
        self.calls += 1;
        let Some(fault) = self.plan.remove(&site) else {
            return Verdict::Go;
        };
        self.struck.push(site);
        match fault {
            Fault::Errno(errno) => Verdict::Fail(errno),
            Fault::Short => Verdict::Short,
            Fault::Never => Verdict::Hold,
        }
    }

    /// All files lose what is not durable.
    fn lose_all(&mut self, store: &Path) -> Result<()> {
        for (path, mut undo) in self.undo.drain() {
            let path = store.join(path);
            let file = OpenOptions::new().write(true).open(&path);
            undo.lose(&file.with_context(|| path.display().to_string())?)?;
        }
        Ok(())
    }
}

/// The disk. Unmounted when dropped.
pub struct Disk {
    state: Arc<Mutex<State>>,
    session: Option<fuser::BackgroundSession>,
    dir: TempDir,
}

impl Disk {
    /// Mounts an empty disk.
    ///
    /// # Errors
    /// If this process may not mount.
    pub fn mount() -> Result<Disk> {
        let dir = tempfile::Builder::new().prefix("faults-").tempdir()?;
        let (store, mount) = (dir.path().join("store"), dir.path().join("mount"));
        std::fs::create_dir(&store)?;
        std::fs::create_dir(&mount)?;
        let state = Arc::new(Mutex::new(State::default()));
        let files = PassThrough::new(store, Arc::clone(&state));
        let options = [fuser::MountOption::FSName("archipelago-faults".to_owned())];
        let session = fuser::spawn_mount2(files, mount, &options)?;
        Ok(Disk {
            state,
            session: Some(session),
            dir,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// Calls from now on belong to `phase`.
    pub fn enter(&self, phase: &'static str) {
        self.state().phase = phase;
    }

    /// The next call at each of these sites meets its fault.
    pub fn plan(&self, faults: &[(Site, Fault)]) {
        self.state().plan = faults.iter().copied().collect();
    }

    /// Where faults have happened, in order.
    #[must_use]
    pub fn struck(&self) -> Vec<Site> {
        self.state().struck.clone()
    }

    /// Calls so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// What was called so far, and how often.
    #[must_use]
    pub fn seen(&self) -> BTreeMap<Site, u64> {
        self.state().seen.clone()
    }

    /// Directories of lineages in the pool.
    #[must_use]
    pub fn lineages(&self) -> usize {
        let pool = self.dir.path().join("store/pool");
        let shards = std::fs::read_dir(pool).into_iter().flatten().flatten();
        shards
            .filter_map(|shard| std::fs::read_dir(shard.path()).ok())
            .map(Iterator::count)
            .sum()
    }

    /// Whether anybody has a file open.
    #[must_use]
    pub fn in_use(&self) -> bool {
        self.state().open > 0
    }

    /// What is not durable is lost. Nobody may be using the disk.
    ///
    /// # Errors
    /// If the directory behind it cannot be written.
    pub fn cut_power(&self) -> Result<()> {
        self.state().lose_all(&self.dir.path().join("store"))
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.state().plan.clear();
        // Detached: whoever still uses it must not keep this process.
        let _gone = umount2(&self.path(), MntFlags::MNT_DETACH);
        drop(self.session.take());
    }
}
