//! A directory that stands for a disk: names and open files as the kernel numbers them, and what becomes of each call.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fuser::{FileAttr, FileType};

use super::gate::Gate;
use super::{Kind, Lack, State, Verdict};

pub(super) type Answer<T> = Result<T, i32>;

pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// A directory shown as it is, but for what is planned.
pub(super) struct PassThrough {
    pub(super) store: PathBuf,
    state: Arc<Mutex<State>>,
    gate: Arc<Gate>,
    pub(super) lack: Lack,
    paths: HashMap<u64, PathBuf>,
    pub(super) numbers: HashMap<PathBuf, u64>,
    next: u64,
    pub(super) files: HashMap<u64, (PathBuf, File)>,
}

impl PassThrough {
    pub(super) fn new(
        store: PathBuf,
        state: Arc<Mutex<State>>,
        gate: Arc<Gate>,
        lack: Lack,
    ) -> Self {
        let root = PathBuf::new();
        PassThrough {
            store,
            state,
            gate,
            lack,
            paths: HashMap::from([(1, root.clone())]),
            numbers: HashMap::from([(root, 1)]),
            next: 2,
            files: HashMap::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, number: u64) -> Answer<PathBuf> {
        self.paths.get(&number).cloned().ok_or(libc::ESTALE)
    }

    pub(super) fn child(&self, parent: u64, name: &OsStr) -> Answer<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    pub(super) fn number(&mut self, path: &Path) -> u64 {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.numbers.insert(path.to_owned(), number);
        self.paths.insert(number, path.to_owned());
        number
    }

    /// A file has another name.
    pub(super) fn renamed(&mut self, path: &Path, new_path: &Path) {
        if let Some(number) = self.numbers.remove(path) {
            self.numbers.insert(new_path.to_owned(), number);
            self.paths.insert(number, new_path.to_owned());
        }
        for (open, _) in self.files.values_mut() {
            if open == path {
                *open = new_path.to_owned();
            }
        }
        let mut state = self.state();
        if let Some(undo) = state.undo.remove(path) {
            state.undo.insert(new_path.to_owned(), undo);
        }
    }

    pub(super) fn attributes(&mut self, path: &Path) -> Answer<FileAttr> {
        let metadata =
            fs::symlink_metadata(self.store.join(path)).map_err(|error| errno(&error))?;
        let number = self.number(path);
        Ok(attributes_of(number, &metadata))
    }

    /// Whether a file can be opened with these flags.
    pub(super) fn takes(&self, flags: i32) -> Answer<()> {
        match self.lack {
            Lack::Direct(errno) if flags & libc::O_DIRECT != 0 => Err(errno),
            _ => Ok(()),
        }
    }

    pub(super) fn keep_open(&mut self, path: &Path, file: File) -> u64 {
        let handle = self.next;
        self.next += 1;
        self.files.insert(handle, (path.to_owned(), file));
        self.state().open = self.files.len();
        handle
    }

    /// Decides on a call and does it, unless it is to fail; whether it may be answered now.
    pub(super) fn call<T>(
        &mut self,
        kind: Kind,
        path: Answer<PathBuf>,
        act: impl FnOnce(&mut Self, &Path, Verdict) -> Answer<T>,
    ) -> (Answer<T>, Verdict) {
        let path = match path {
            Ok(path) => path,
            Err(errno) => return (Err(errno), Verdict::Go),
        };
        let verdict = self.state().decide(kind, &path);
        let result = match verdict {
            // A sync that was interrupted has failed to do anything, not lost anything.
            Verdict::Fail(libc::EINTR) => Err(libc::EINTR),
            Verdict::Fail(errno) => self.fail(kind, &path).and(Err(errno)),
            verdict => act(self, &path, verdict),
        };
        (result, verdict)
    }

    /// A sync that fails loses what it was for.
    fn fail(&mut self, kind: Kind, path: &Path) -> Answer<()> {
        let store = self.store.clone();
        let mut state = self.state();
        match kind {
            Kind::Sync => {
                if let Some(mut undo) = state.undo.remove(path) {
                    let file = OpenOptions::new().write(true).open(store.join(path));
                    file.and_then(|file| undo.lose(&file))
                        .map_err(|error| errno(&error))?;
                }
            }
            Kind::SyncPool => state.lose_all(&store).map_err(|_lost| libc::EIO)?,
            _ => {}
        }
        Ok(())
    }

    /// Sends an answer, now or when the held calls are released.
    pub(super) fn answer<T: Send + 'static>(
        &self,
        (result, verdict): (Answer<T>, Verdict),
        send: impl FnOnce(Answer<T>) + Send + 'static,
    ) {
        if verdict == Verdict::Hold {
            self.answer_late(move || result, send);
        } else {
            send(result);
        }
    }

    /// Executes a call and sends the answer when the held calls are released.
    pub(super) fn answer_late<T>(
        &self,
        act: impl FnOnce() -> Answer<T> + Send + 'static,
        send: impl FnOnce(Answer<T>) + Send + 'static,
    ) {
        let gate = Arc::clone(&self.gate);
        let ticket = gate.arrive();
        std::thread::spawn(move || {
            gate.pass(ticket);
            send(act());
            gate.leave();
        });
    }

    pub(super) fn open_file(&self, handle: u64) -> Answer<&(PathBuf, File)> {
        self.files.get(&handle).ok_or(libc::EBADF)
    }

    pub(super) fn change(
        &mut self,
        handle: u64,
        offset: u64,
        len: u64,
        durable: bool,
        change: impl FnOnce(&File) -> io::Result<()>,
    ) -> Answer<()> {
        let (path, file) = self.open_file(handle)?;
        self.state()
            .change(path, file, (offset, len), durable, change)
    }

    /// The same as one write, for somebody who does it later.
    pub(super) fn late_write(
        &self,
        handle: u64,
        offset: u64,
        durable: bool,
        data: &[u8],
    ) -> Answer<impl FnOnce() -> Answer<u32> + Send + 'static> {
        let (path, file) = self.open_file(handle)?;
        let (path, data, state) = (path.clone(), data.to_vec(), Arc::clone(&self.state));
        let file = file.try_clone().map_err(|error| errno(&error))?;
        Ok(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let place = (offset, data.len() as u64);
            state.change(&path, &file, place, durable, |file| {
                file.write_all_at(&data, offset)
            })?;
            u32::try_from(data.len()).map_err(|_too_long| libc::EINVAL)
        })
    }
}

impl State {
    fn change(
        &mut self,
        path: &Path,
        file: &File,
        (offset, len): (u64, u64),
        durable: bool,
        change: impl FnOnce(&File) -> io::Result<()>,
    ) -> Answer<()> {
        let undo = self.undo.entry(path.to_owned()).or_default();
        let done = undo
            .keep(file, offset, len)
            .and_then(|()| change(file))
            .map_err(|error| errno(&error));
        if durable && done.is_ok() {
            undo.settle(offset, len);
        }
        done
    }
}

fn attributes_of(number: u64, metadata: &Metadata) -> FileAttr {
    let kind = if metadata.is_dir() {
        FileType::Directory
    } else {
        FileType::RegularFile
    };
    let time = |time: io::Result<SystemTime>| time.unwrap_or(SystemTime::UNIX_EPOCH);
    FileAttr {
        ino: number,
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: time(metadata.accessed()),
        mtime: time(metadata.modified()),
        ctime: time(metadata.modified()),
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm: u16::try_from(metadata.mode() & 0o7777).unwrap_or(0),
        nlink: u32::try_from(metadata.nlink()).unwrap_or(1),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
