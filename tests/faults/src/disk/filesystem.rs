//! The file system: each call of the kernel, done on the directory behind unless it is to fail, and answered.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::time::{Duration, SystemTime};

use fuser::{
    FileAttr, FileType, Filesystem, KernelConfig, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, TimeOrNow,
};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use super::pass_through::{Answer, PassThrough, errno};
use super::{Kind, Lack, Verdict};

/// Nothing is remembered by the kernel, so that every call comes here.
const TTL: Duration = Duration::ZERO;
/// `FOPEN_DIRECT_IO` of `linux/fuse.h`: reads and writes come as they are called.
const DIRECT_IO: u32 = 1;

/// `FUSE_FLOCK_LOCKS` of `linux/fuse.h`: `flock` is asked of the file system.
const FLOCK_LOCKS: u32 = 1 << 10;

/// How a file is opened so that every read and write comes here. Not [`DIRECT_IO`] for what is opened with `O_DIRECT`: a short
/// transfer by io_uring would be continued at its own beginning (Linux 6.18 does not move the position in that case).
fn uncached(flags: i32) -> u32 {
    if flags & libc::O_DIRECT == 0 {
        DIRECT_IO
    } else {
        0
    }
}
/// The thread of the file blocker that does the syncs of the pool.
const POOL_SYNC_THREAD: &str = "blocker-sync";

fn unsigned(value: i64) -> Answer<u64> {
    u64::try_from(value).map_err(|_negative| libc::EINVAL)
}

/// Half of `len`, in whole sectors if there are two: what direct I/O moves of a short transfer.
fn part(len: usize) -> usize {
    match len / 2 / 512 * 512 {
        0 => len / 2,
        sectors => sectors,
    }
}

fn empty(reply: ReplyEmpty) -> impl FnOnce(Answer<()>) + Send + 'static {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn entry(reply: ReplyEntry) -> impl FnOnce(Answer<FileAttr>) + Send + 'static {
    move |result| match result {
        Ok(attributes) => reply.entry(&TTL, &attributes, 0),
        Err(errno) => reply.error(errno),
    }
}

fn attributes(reply: ReplyAttr) -> impl FnOnce(Answer<FileAttr>) + Send + 'static {
    move |result| match result {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for PassThrough {
    fn init(&mut self, _: &Request<'_>, config: &mut KernelConfig) -> Result<(), i32> {
        // Else the kernel keeps everybody waiting when a few calls are held.
        if self.lack == Lack::Locks {
            // Else the kernel locks by itself.
            let added = config.add_capabilities(FLOCK_LOCKS);
            added.map_err(|_missing| libc::EOPNOTSUPP)?;
        }
        let set = config.set_max_background(u16::MAX);
        set.map(drop).map_err(|_nearest| libc::EINVAL)
    }

    fn lookup(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let path = self.child(parent, name);
        let answer = self.call(Kind::Lookup, path, |files, path, _| files.attributes(path));
        self.answer(answer, entry(reply));
    }

    fn getattr(&mut self, _: &Request<'_>, number: u64, _: Option<u64>, reply: ReplyAttr) {
        let path = self.path(number);
        let answer = self.call(Kind::Stat, path, |files, path, _| files.attributes(path));
        self.answer(answer, attributes(reply));
    }

    fn setattr(
        &mut self,
        _: &Request<'_>,
        number: u64,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        _modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _handle: Option<u64>,
        _created: Option<SystemTime>,
        _mode_changed: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<u32>,
        reply: ReplyAttr,
    ) {
        let path = self.path(number);
        let answer = self.call(Kind::Resize, path, |files, path, _| {
            if let Some(size) = size {
                let file = OpenOptions::new().write(true).open(files.store.join(path));
                file.and_then(|file| file.set_len(size))
                    .map_err(|error| errno(&error))?;
                // What is cut off is gone at once.
                if let Some(undo) = files.state().undo.get_mut(path) {
                    undo.cut(size);
                }
            }
            files.attributes(path)
        });
        self.answer(answer, attributes(reply));
    }

    fn mkdir(
        &mut self,
        _: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let path = self.child(parent, name);
        let answer = self.call(Kind::MakeDirectory, path, |files, path, _| {
            let made = DirBuilder::new()
                .mode(mode & !umask)
                .create(files.store.join(path));
            made.map_err(|error| errno(&error))?;
            files.attributes(path)
        });
        self.answer(answer, entry(reply));
    }

    fn unlink(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        let path = self.child(parent, name);
        let answer = self.call(Kind::Unlink, path, |files, path, _| {
            fs::remove_file(files.store.join(path)).map_err(|error| errno(&error))?;
            // Another file of this name is another file.
            files.numbers.remove(path);
            files.state().undo.remove(path);
            Ok(())
        });
        self.answer(answer, empty(reply));
    }

    fn rmdir(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        let path = self.child(parent, name);
        let answer = self.call(Kind::RemoveDirectory, path, |files, path, _| {
            fs::remove_dir(files.store.join(path)).map_err(|error| errno(&error))?;
            files.numbers.remove(path);
            Ok(())
        });
        self.answer(answer, empty(reply));
    }

    fn rename(
        &mut self,
        _: &Request<'_>,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
        reply: ReplyEmpty,
    ) {
        let path = self.child(parent, name);
        let new_path = self.child(new_parent, new_name);
        let answer = self.call(Kind::Rename, path, |files, path, _| {
            let new_path = new_path?;
            if flags != 0 {
                return Err(libc::EINVAL);
            }
            fs::rename(files.store.join(path), files.store.join(&new_path))
                .map_err(|error| errno(&error))?;
            files.renamed(path, &new_path);
            Ok(())
        });
        self.answer(answer, empty(reply));
    }

    fn open(&mut self, _: &Request<'_>, number: u64, flags: i32, reply: ReplyOpen) {
        let path = self.path(number);
        let answer = self.call(Kind::Open, path, |files, path, _| {
            files.takes(flags)?;
            // What the kernel still holds of an earlier file of this name.
            if files.numbers.get(path) != Some(&number) {
                return Err(libc::ESTALE);
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .truncate(flags & libc::O_TRUNC != 0)
                .open(files.store.join(path))
                .map_err(|error| errno(&error))?;
            Ok(files.keep_open(path, file))
        });
        self.answer(answer, move |result| match result {
            Ok(handle) => reply.opened(handle, uncached(flags)),
            Err(errno) => reply.error(errno),
        });
    }

    fn create(
        &mut self,
        _: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let path = self.child(parent, name);
        let answer = self.call(Kind::Create, path, |files, path, _| {
            files.takes(flags)?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(flags & libc::O_TRUNC != 0)
                .mode(mode & !umask)
                .open(files.store.join(path))
                .map_err(|error| errno(&error))?;
            let attributes = files.attributes(path)?;
            Ok((attributes, files.keep_open(path, file)))
        });
        self.answer(answer, move |result| match result {
            Ok((attributes, handle)) => {
                reply.created(&TTL, &attributes, 0, handle, uncached(flags));
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        number: u64,
        handle: u64,
        offset: i64,
        size: u32,
        _flags: i32,
        _owner: Option<u64>,
        reply: ReplyData,
    ) {
        let path = self.path(number);
        let answer = self.call(Kind::Read, path, |files, _, verdict| {
            let (_, file) = files.open_file(handle)?;
            let mut bytes = vec![0; size as usize];
            let mut filled = 0;
            while filled < bytes.len() {
                let at = unsigned(offset)? + filled as u64;
                match file.read_at(&mut bytes[filled..], at) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) => return Err(errno(&error)),
                }
            }
            if verdict == Verdict::Short {
                filled = part(filled);
            }
            bytes.truncate(filled);
            Ok(bytes)
        });
        self.answer(answer, move |result| match result {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &mut self,
        _: &Request<'_>,
        number: u64,
        handle: u64,
        offset: i64,
        data: &[u8],
        _write_flags: u32,
        flags: i32,
        _owner: Option<u64>,
        reply: ReplyWrite,
    ) {
        let durable = flags & libc::O_DSYNC != 0;
        let kind = if durable {
            Kind::DurableWrite
        } else {
            Kind::Write
        };
        let path = self.path(number);
        let (answer, verdict) = self.call(kind, path, |files, _, verdict| {
            let len = match verdict {
                Verdict::Short => part(data.len()),
                // Nothing is there before it returns, and all when it does: also when its caller is dead by then.
                Verdict::Hold => return Ok(0),
                _ => data.len(),
            };
            let at = unsigned(offset)?;
            files.change(handle, at, len as u64, durable, |file| {
                file.write_all_at(&data[..len], at)
            })?;
            u32::try_from(len).map_err(|_too_long| libc::EINVAL)
        });
        let send = move |result: Answer<u32>| match result {
            Ok(count) => reply.written(count),
            Err(errno) => reply.error(errno),
        };
        if verdict == Verdict::Hold {
            let at = unsigned(offset);
            match at.and_then(|at| self.late_write(handle, at, durable, data)) {
                Ok(write) => self.answer_late(write, send),
                Err(errno) => send(Err(errno)),
            }
        } else {
            self.answer((answer, verdict), send);
        }
    }

    /// Only asked of a disk without locks: everybody has it.
    fn setlk(
        &mut self,
        _: &Request<'_>,
        _number: u64,
        _handle: u64,
        _owner: u64,
        _start: u64,
        _end: u64,
        _type: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn flush(&mut self, _: &Request<'_>, number: u64, _: u64, _: u64, reply: ReplyEmpty) {
        let path = self.path(number);
        let answer = self.call(Kind::Close, path, |_, _, _| Ok(()));
        self.answer(answer, empty(reply));
    }

    fn release(
        &mut self,
        _: &Request<'_>,
        _number: u64,
        handle: u64,
        _flags: i32,
        _owner: Option<u64>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.remove(&handle);
        self.state().open = self.files.len();
        reply.ok();
    }

    fn fsync(&mut self, _: &Request<'_>, number: u64, _: u64, _: bool, reply: ReplyEmpty) {
        let path = self.path(number);
        let answer = self.call(Kind::Sync, path, |files, path, _| {
            files.state().undo.remove(path);
            Ok(())
        });
        self.answer(answer, empty(reply));
    }

    fn opendir(&mut self, request: &Request<'_>, number: u64, _: i32, reply: ReplyOpen) {
        let thread = fs::read_to_string(format!("/proc/{}/comm", request.pid()));
        let kind = if thread.is_ok_and(|name| name.trim() == POOL_SYNC_THREAD) {
            Kind::SyncPool
        } else {
            Kind::OpenDirectory
        };
        let path = self.path(number);
        let answer = self.call(kind, path, |files, _, _| {
            if kind == Kind::SyncPool {
                files.state().undo.clear();
            }
            Ok(())
        });
        self.answer(answer, move |result| match result {
            Ok(()) => reply.opened(0, 0),
            Err(errno) => reply.error(errno),
        });
    }

    fn readdir(
        &mut self,
        _: &Request<'_>,
        number: u64,
        _handle: u64,
        offset: i64,
        mut reply: ReplyDirectory,
    ) {
        let path = self.path(number);
        let answer = self.call(Kind::List, path, |files, path, _| {
            let mut entries = Vec::new();
            let list = fs::read_dir(files.store.join(path)).map_err(|error| errno(&error))?;
            for entry in list {
                let entry = entry.map_err(|error| errno(&error))?;
                let number = files.number(&path.join(entry.file_name()));
                let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                entries.push((number, directory, entry.file_name()));
            }
            // In the order of numbers: names that come meanwhile are at the end.
            entries.sort_unstable();
            Ok(entries)
        });
        self.answer(answer, move |result| match result {
            Ok(entries) => {
                let past = entries.into_iter().filter(|(number, ..)| {
                    i64::try_from(*number).is_ok_and(|number| number > offset)
                });
                for (number, directory, name) in past {
                    let kind = if directory {
                        FileType::Directory
                    } else {
                        FileType::RegularFile
                    };
                    let next = i64::try_from(number).unwrap_or(i64::MAX);
                    if reply.add(number, next, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn fsyncdir(&mut self, _: &Request<'_>, number: u64, _: u64, _: bool, reply: ReplyEmpty) {
        let path = self.path(number);
        let answer = self.call(Kind::SyncNames, path, |_, _, _| Ok(()));
        self.answer(answer, empty(reply));
    }

    fn statfs(&mut self, _: &Request<'_>, number: u64, reply: ReplyStatfs) {
        let path = self.path(number);
        let answer = self.call(Kind::StatPool, path, |files, _, _| {
            nix::sys::statvfs::statvfs(&files.store).map_err(|errno| errno as i32)
        });
        self.answer(answer, move |result| match result {
            Ok(stat) => reply.statfs(
                stat.blocks(),
                stat.blocks_free(),
                stat.blocks_available(),
                stat.files(),
                stat.files_free(),
                4096,
                255,
                u32::try_from(stat.fragment_size()).unwrap_or(4096),
            ),
            Err(errno) => reply.error(errno),
        });
    }

    fn fallocate(
        &mut self,
        _: &Request<'_>,
        number: u64,
        handle: u64,
        offset: i64,
        length: i64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let path = self.path(number);
        let answer = self.call(Kind::Allocate, path, |files, _, _| {
            let (at, len) = (unsigned(offset)?, unsigned(length)?);
            files.change(handle, at, len, false, |file| {
                let mode = FallocateFlags::from_bits_truncate(mode);
                Ok(fallocate(file, mode, offset, length)?)
            })
        });
        self.answer(answer, empty(reply));
    }

    fn lseek(
        &mut self,
        _: &Request<'_>,
        number: u64,
        handle: u64,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let path = self.path(number);
        let answer = self.call(Kind::Seek, path, |files, _, _| {
            let (_, file) = files.open_file(handle)?;
            let whence = match whence {
                libc::SEEK_DATA => Whence::SeekData,
                libc::SEEK_HOLE => Whence::SeekHole,
                _ => return Err(libc::EINVAL),
            };
            lseek(file, offset, whence).map_err(|errno| errno as i32)
        });
        self.answer(answer, move |result| match result {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        });
    }
}
