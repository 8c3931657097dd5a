//! The file system: passes each call of the kernel to the thread that can answer it. Nothing here waits.
//!
//! | call | answered by |
//! |---|---|
//! | names and attributes | the node, through [`ApiThreads`] |
//! | open, read, write, sync, holes | the thread of the open file |
//! | close | at once: the volume is closed after its last user |
//! | making, removing, renaming, modes | refused: `archipelago volume` does that |

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use archipelago_api::client::{Client, Method, path_segment};
use archipelago_api::types::{ResizeVolume, VolumeView};
use archipelago_protocol::catalogue::{Entry, Kind};
use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::{Access, Error, ErrorCode, Name};
use fuser::consts::FUSE_ASYNC_DIO;
use fuser::{
    Filesystem, KernelConfig, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyWrite, Request, TimeOrNow,
};

use crate::api_threads::ApiThreads;
use crate::attributes::{Owner, TTL};
use crate::failures::errno;
use crate::job::{Io, Seek};
use crate::listing::Listing;
use crate::nodes::{Node, Nodes, ROOT};
use crate::open_files::OpenFiles;

/// Longest write and longest read: the kernel's limit.
const TRANSFER_LEN_MAX: u32 = 1 << 20;
/// Requests that the kernel sends without a program that waits: reading ahead, direct I/O in the background.
const BACKGROUND_MAX: u16 = 64;
/// `FOPEN_KEEP_CACHE` of `linux/fuse.h`: the page cache of the file stays valid.
const KEEP_CACHE: u32 = 1 << 1;

/// The volumes, snapshots and images of a node, each a file in one directory.
#[derive(Debug)]
pub struct VolumeFiles {
    api: ApiThreads,
    nodes: Arc<Mutex<Nodes>>,
    open: OpenFiles,
    listings: HashMap<u64, Arc<Mutex<Listing>>>,
    next_listing: u64,
    owner: Owner,
    /// If set, only this file is shown.
    only: Option<Name>,
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks the node for `name`.
fn ask(client: &Client, name: &Name) -> Result<Entry, Error> {
    let view: VolumeView = client.get(&path(name, ""))?;
    if view.entry.kind == Kind::Importing {
        let message = format!("`{name}` is being imported");
        return Err(Error::new(ErrorCode::NotFound, message));
    }
    Ok(view.entry)
}

/// The `known` entry of a file while the node cannot be asked. After an error for a file the kernel would forget its path, and a loop
/// device would lose its file.
fn known_while_away(error: Error, known: impl FnOnce() -> Option<Entry>) -> Result<Entry, Error> {
    match error.code {
        ErrorCode::Unavailable => known().ok_or(error),
        _ => Err(error),
    }
}

fn path(name: &Name, rest: &str) -> String {
    format!("/v1/volumes/{}{rest}", path_segment(name.as_str()))
}

/// The number of an error, for programs; an error that is not an answer of the node is logged.
fn number_of(error: &Error, what: &Name) -> libc::c_int {
    if error.code != ErrorCode::NotFound {
        tracing::warn!("`{what}`: {error} ({})", error.hint);
    }
    errno(error.code)
}

impl VolumeFiles {
    /// The files of the node behind `client`, or only the file `only`. They belong to the user and group of this process. Requests wait for
    /// up to `wait_max` for a node that is away.
    ///
    /// # Errors
    /// The kernel's error, if a thread cannot start.
    pub fn new(
        client: Client,
        only: Option<Name>,
        wait_max: Duration,
    ) -> std::io::Result<VolumeFiles> {
        Ok(VolumeFiles {
            api: ApiThreads::start(client)?,
            nodes: Arc::default(),
            open: OpenFiles::new(wait_max),
            listings: HashMap::new(),
            next_listing: 0,
            owner: Owner {
                uid: nix::unistd::geteuid().as_raw(),
                gid: nix::unistd::getegid().as_raw(),
            },
            only,
        })
    }

    fn node(&self, number: u64) -> Option<Node> {
        lock(&self.nodes).get(number).cloned()
    }

    /// Grows a volume; does nothing if it has this size already.
    fn truncate(&self, node: Node, size: u64, reply: ReplyAttr) {
        let (nodes, owner) = (Arc::clone(&self.nodes), self.owner);
        self.api.ask(move |client| match grow(client, &node, size) {
            Ok(entry) => {
                lock(&nodes).update(&entry);
                reply.attr(&TTL, &owner.file(&entry));
            }
            Err(number) => reply.error(number),
        });
    }
}

/// Grows the volume to `size` bytes, or returns the error number.
fn grow(client: &Client, node: &Node, size: u64) -> Result<Entry, libc::c_int> {
    let failed = |error: Error| number_of(&error, node.name());
    let entry = ask(client, node.name()).map_err(failed)?;
    if size == entry.size {
        return Ok(entry);
    }
    if node.is_frozen() {
        return Err(libc::EROFS);
    }
    if size < entry.size {
        // Truncation loses data, which is reserved to an explicit command.
        return Err(libc::EPERM);
    }
    if !size.is_multiple_of(SECTOR_SIZE) {
        return Err(libc::EINVAL);
    }
    let resize = ResizeVolume { size, force: false };
    let view: Result<VolumeView, Error> =
        client.call(Method::Post, &path(node.name(), "/resize"), &resize);
    Ok(view.map_err(failed)?.entry)
}

impl Filesystem for VolumeFiles {
    fn init(&mut self, _: &Request<'_>, config: &mut KernelConfig) -> Result<(), libc::c_int> {
        // Without this flag the kernel sends the direct requests of a program one after another. It is older than every kernel that
        // supports the rest, and nothing else depends on it.
        let _without = config.add_capabilities(FUSE_ASYNC_DIO);
        let background = config.set_max_background(BACKGROUND_MAX);
        let transfer = config.set_max_write(TRANSFER_LEN_MAX);
        match (background, transfer) {
            (Ok(_), Ok(_)) => Ok(()),
            _ => Err(libc::EINVAL),
        }
    }

    fn destroy(&mut self) {
        self.open.close_all();
    }

    fn lookup(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_str().and_then(|name| name.parse::<Name>().ok());
        let is_shown = |name: &Name| self.only.as_ref().is_none_or(|only| only == name);
        let Some(name) = name.filter(|name| parent == ROOT && is_shown(name)) else {
            return reply.error(libc::ENOENT);
        };
        let (nodes, owner) = (Arc::clone(&self.nodes), self.owner);
        self.api.ask(move |client| {
            let known = || lock(&nodes).named(&name);
            match ask(client, &name).or_else(|error| known_while_away(error, known)) {
                Ok(entry) => match lock(&nodes).look_up(&entry) {
                    Some(_) => reply.entry(&TTL, &owner.file(&entry), 0),
                    None => reply.error(libc::EIO),
                },
                Err(error) => reply.error(number_of(&error, &name)),
            }
        });
    }

    fn forget(&mut self, _: &Request<'_>, number: u64, lookups: u64) {
        lock(&self.nodes).forget(number, lookups);
    }

    fn getattr(&mut self, _: &Request<'_>, number: u64, _: Option<u64>, reply: ReplyAttr) {
        if number == ROOT {
            return reply.attr(&TTL, &self.owner.directory());
        }
        let Some(node) = self.node(number) else {
            return reply.error(libc::ESTALE);
        };
        let (nodes, owner) = (Arc::clone(&self.nodes), self.owner);
        self.api.ask(move |client| {
            let known = || Some(node.entry());
            match ask(client, node.name()).or_else(|error| known_while_away(error, known)) {
                Ok(entry) if entry.lineage == node.lineage() => {
                    lock(&nodes).update(&entry);
                    reply.attr(&TTL, &owner.file(&entry));
                }
                // Another volume has the name now; the kernel looks it up again.
                Ok(_other) => reply.error(libc::ESTALE),
                Err(error) => reply.error(number_of(&error, node.name())),
            }
        });
    }

    fn setattr(
        &mut self,
        _: &Request<'_>,
        number: u64,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
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
        let Some(node) = self.node(number) else {
            return reply.error(libc::EPERM);
        };
        if mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(libc::EPERM);
        }
        // Times are not stored: to set them changes nothing.
        // Relaxed: a number of its own, it orders nothing else.
        let size = size.unwrap_or_else(|| node.size.load(Ordering::Relaxed));
        self.truncate(node, size, reply);
    }

    fn open(&mut self, _: &Request<'_>, number: u64, flags: i32, reply: ReplyOpen) {
        let Some(node) = self.node(number) else {
            return reply.error(libc::ESTALE);
        };
        let access = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => Access::Read,
            _ => Access::Write,
        };
        if access == Access::Write && node.is_frozen() {
            return reply.error(libc::EROFS);
        }
        let cache = if node.is_frozen() { KEEP_CACHE } else { 0 };
        let opened = move |result: Result<u64, ErrorCode>| match result {
            Ok(handle) => reply.opened(handle, cache),
            Err(code) => reply.error(errno(code)),
        };
        self.open
            .open(self.api.client(), &node, access, Box::new(opened));
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        _number: u64,
        handle: u64,
        offset: i64,
        len: u32,
        _flags: i32,
        _owner: Option<u64>,
        reply: ReplyData,
    ) {
        let read = move |result: Result<Vec<u8>, ErrorCode>| match result {
            Ok(data) => reply.data(&data),
            Err(code) => reply.error(errno(code)),
        };
        let io = Io::Read {
            offset: offset.unsigned_abs(),
            len: len.min(TRANSFER_LEN_MAX),
            reply: Box::new(read),
        };
        self.open.io(handle, io);
    }

    fn write(
        &mut self,
        _: &Request<'_>,
        _number: u64,
        handle: u64,
        offset: i64,
        data: &[u8],
        _write_flags: u32,
        _flags: i32,
        _owner: Option<u64>,
        reply: ReplyWrite,
    ) {
        let written = move |result: Result<u32, ErrorCode>| match result {
            Ok(len) => reply.written(len),
            Err(code) => reply.error(errno(code)),
        };
        let io = Io::Write {
            offset: offset.unsigned_abs(),
            data: data.to_vec(),
            reply: Box::new(written),
        };
        self.open.io(handle, io);
    }

    /// Called for each close of a descriptor: there is no cache here that it would have to write.
    fn flush(&mut self, _: &Request<'_>, _: u64, _: u64, _: u64, reply: ReplyEmpty) {
        reply.ok();
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
        self.open.release(handle);
        reply.ok();
    }

    fn fsync(&mut self, _: &Request<'_>, _: u64, handle: u64, _: bool, reply: ReplyEmpty) {
        let reply = Box::new(|result| empty(reply, result));
        self.open.io(handle, Io::Flush { reply });
    }

    fn fallocate(
        &mut self,
        _: &Request<'_>,
        number: u64,
        handle: u64,
        offset: i64,
        len: i64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (punch, zero) = (libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let what = mode & !libc::FALLOC_FL_KEEP_SIZE;
        // Space cannot be reserved, and a program that asks for it must not rely on it.
        if what != punch && what != zero {
            return reply.error(libc::EOPNOTSUPP);
        }
        let (offset, len) = (offset.unsigned_abs(), len.unsigned_abs());
        // Relaxed: a number of its own, it orders nothing else.
        let size = self
            .node(number)
            .map_or(0, |node| node.size.load(Ordering::Relaxed));
        if !keep_size && offset.saturating_add(len) > size {
            return reply.error(libc::EOPNOTSUPP);
        }
        let io = Io::Zero {
            offset,
            len,
            keep_space: what == zero,
            reply: Box::new(|result| empty(reply, result)),
        };
        self.open.io(handle, io);
    }

    fn lseek(
        &mut self,
        _: &Request<'_>,
        _number: u64,
        handle: u64,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(libc::EINVAL),
        };
        let found = move |result: Result<u64, ErrorCode>| match result {
            Ok(offset) => reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
            Err(ErrorCode::NotFound) => reply.error(libc::ENXIO),
            Err(code) => reply.error(errno(code)),
        };
        let io = Io::Seek {
            offset: offset.unsigned_abs(),
            what,
            reply: Box::new(found),
        };
        self.open.io(handle, io);
    }

    fn opendir(&mut self, _: &Request<'_>, _: u64, _: i32, reply: ReplyOpen) {
        self.next_listing += 1;
        let listing = Listing::new(self.only.clone());
        let listing = Arc::new(Mutex::new(listing));
        self.listings.insert(self.next_listing, listing);
        reply.opened(self.next_listing, 0);
    }

    fn readdir(
        &mut self,
        _: &Request<'_>,
        _number: u64,
        handle: u64,
        offset: i64,
        mut reply: ReplyDirectory,
    ) {
        let Some(listing) = self.listings.get(&handle).map(Arc::clone) else {
            return reply.error(libc::EBADF);
        };
        self.api.ask(move |client| {
            let read = lock(&listing).read(client, offset.unsigned_abs(), &mut reply);
            match read {
                Ok(()) => reply.ok(),
                Err(error) => {
                    tracing::warn!("reading the directory: {error} ({})", error.hint);
                    reply.error(errno(error.code));
                }
            }
        });
    }

    fn releasedir(&mut self, _: &Request<'_>, _: u64, handle: u64, _: i32, reply: ReplyEmpty) {
        self.listings.remove(&handle);
        reply.ok();
    }

    fn create(
        &mut self,
        _: &Request<'_>,
        _parent: u64,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(libc::EPERM);
    }

    fn unlink(&mut self, _: &Request<'_>, _parent: u64, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(libc::EPERM);
    }

    fn rename(
        &mut self,
        _: &Request<'_>,
        _parent: u64,
        _name: &OsStr,
        _new_parent: u64,
        _new_name: &OsStr,
        _flags: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(libc::EPERM);
    }
}

fn empty(reply: ReplyEmpty, result: Result<(), ErrorCode>) {
    match result {
        Ok(()) => reply.ok(),
        Err(code) => reply.error(errno(code)),
    }
}
