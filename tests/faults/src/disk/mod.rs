//! A disk that fails on order: a directory, mounted by this process, with a plan for its calls.
//!
//! What is written is kept apart from what is durable: after a failed sync, and after a power cut, sectors are again what
//! they were at the last good sync.

mod calls;
mod durable;
mod filesystem;
mod gate;
mod pass_through;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

use crate::place;

pub use calls::{Call, Class, Fault, Kind, Site};
use durable::Undo;
use gate::Gate;
use pass_through::PassThrough;

/// Calls of this phase meet no fault, and make no site.
pub const QUIET: &str = "quiet";

/// What a disk's file system lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lack {
    /// Nothing.
    #[default]
    Nothing,
    /// Locks are granted to everybody who asks.
    Locks,
    /// Files cannot be opened with `O_DIRECT`: this error.
    Direct(i32),
}

/// What the file system and its owner share.
#[derive(Default)]
pub(crate) struct State {
    phase: &'static str,
    seen: BTreeMap<Site, u64>,
    plan: BTreeMap<Site, Fault>,
    injected: Vec<Site>,
    /// The next call of this kind on this file fails: the rest of a part.
    rest: Option<(Kind, PathBuf)>,
    /// Directory whose files meet no fault, and make no site.
    exempt: Option<String>,
    /// Directories on whose files no call returns.
    frozen: Vec<String>,
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
    fn decide(&mut self, kind: Kind, path: &Path) -> Verdict {
        self.calls += 1;
        let is_in = |name: &String| path.components().any(|part| part.as_os_str() == &name[..]);
        let first = Site {
            phase: self.phase,
            kind,
            class: Class::of(path),
            call: Call::First,
        };
        if self.frozen.iter().any(is_in) {
            self.injected.push(first);
            return Verdict::Hold;
        }
        if self.phase == QUIET || self.exempt.iter().any(is_in) {
            return Verdict::Go;
        }
        if self
            .rest
            .as_ref()
            .is_some_and(|(of, on)| *of == kind && on == path)
        {
            self.rest = None;
            return Verdict::Fail(libc::EIO);
        }
        let count = self.seen.entry(first).or_default();
        *count += 1;
        let numbered = Site {
            call: Call::Number(*count),
            ..first
        };
        let met = [first, numbered]
            .into_iter()
            .find_map(|site| Some((site, self.plan.remove(&site)?)));
        let Some((site, fault)) = met else {
            return Verdict::Go;
        };
        self.injected.push(site);
        match fault {
            Fault::Errno(errno) => Verdict::Fail(errno),
            Fault::Short => Verdict::Short,
            Fault::Part => {
                self.rest = Some((kind, path.to_owned()));
                Verdict::Short
            }
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
    gate: Arc<Gate>,
    session: Option<fuser::BackgroundSession>,
    dir: TempDir,
}

impl Disk {
    /// Mounts an empty disk.
    ///
    /// # Errors
    /// If this process may not mount.
    pub fn mount() -> Result<Disk> {
        Disk::mount_without(Lack::Nothing)
    }

    /// Mounts an empty disk whose file system lacks something.
    ///
    /// # Errors
    /// If this process may not mount.
    pub fn mount_without(lack: Lack) -> Result<Disk> {
        let dir = tempfile::Builder::new()
            .prefix("faults-")
            .tempdir_in(place::directory())?;
        let store = dir.path().join("store");
        std::fs::create_dir(&store)?;
        Disk::mount_store(dir, store, lack)
    }

    /// Mounts what is on this disk once more, as another host does: the locks of one mount are unknown to the other.
    ///
    /// # Errors
    /// If this process may not mount.
    pub fn mount_again(&self) -> Result<Disk> {
        let dir = tempfile::Builder::new()
            .prefix("faults-")
            .tempdir_in(place::directory())?;
        Disk::mount_store(dir, self.dir.path().join("store"), Lack::Nothing)
    }

    fn mount_store(dir: TempDir, store: PathBuf, lack: Lack) -> Result<Disk> {
        let mount = dir.path().join("mount");
        std::fs::create_dir(&mount)?;
        let state = Arc::new(Mutex::new(State::default()));
        let gate = Arc::new(Gate::default());
        let files = PassThrough::new(store, Arc::clone(&state), Arc::clone(&gate), lack);
        let options = [fuser::MountOption::FSName("archipelago-faults".to_owned())];
        let session = fuser::spawn_mount2(files, mount, &options)?;
        Ok(Disk {
            state,
            gate,
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

    /// Calls on files below a directory called `name` meet no fault, and make no site.
    pub fn exempt(&self, name: &str) {
        self.state().exempt = Some(name.to_owned());
    }

    /// From now on no call on files below directories with these names returns; until [`Disk::release`].
    pub fn freeze(&self, names: Vec<String>) {
        self.state().frozen = names;
    }

    /// Calls that do not return.
    #[must_use]
    pub fn held(&self) -> usize {
        self.gate.held()
    }

    /// Calls that were held, may return, and have not yet.
    #[must_use]
    pub fn leaving(&self) -> usize {
        self.gate.leaving()
    }

    /// All calls that are held return; one that the plan or a fault holds later waits for the next release.
    pub fn release(&self) {
        self.state().frozen.clear();
        self.gate.open();
    }

    /// Where faults have happened, in order.
    #[must_use]
    pub fn injected(&self) -> Vec<Site> {
        self.state().injected.clone()
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
            .filter(|shard| shard.file_name().len() == 2)
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
        self.release();
        // Detached: whoever still uses it must not keep this process.
        let _gone = umount2(&self.path(), MntFlags::MNT_DETACH);
        drop(self.session.take());
    }
}
