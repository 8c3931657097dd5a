//! What may take long: swaps, listings, names, the opening and closing of files, syncs of the pool; and deletions.
//!
//! Large files are shortened in steps before they are unlinked: freeing many extents at once blocks the file system for
//! everybody.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{ErrorCode, Lineage};
use archipelago_runtime::{Clock, SystemClock};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::PollTimeout;
use nix::unistd::{Whence, lseek};
use xseg::Span;

use crate::access::is_full;
use crate::around::Around;
use crate::descriptors::retry_while_exhausted;
use crate::errors::{Failed, code_of, sync_code_of};
use crate::heads::{Heads, scatter};
use crate::layout::{FileId, Layout, parse};
use crate::opening::{Opened, Opening};
use crate::reserve::{Claim, Reserve};
use crate::room::room;

/// A file is shortened by this much at a time when it is deleted; holes cost nothing.
const DELETE_STEP: u64 = 8 << 20;
/// After each step of a deletion the thread rests this many times as long as the step took: others want the journal.
const DELETE_REST: u32 = 3;

/// What a thread shall do.
#[derive(Debug)]
pub(crate) enum Job {
    /// A request of a client.
    Request {
        request: ObjectRequest,
        memory: Vec<Span>,
    },
    /// Make the names of a lineage's files durable.
    Names(Lineage),
    /// Open a file, or make it.
    Open(Opening),
    /// Close one: that may write, and wait.
    Close(OwnedFd),
    /// Have the reserve grow if there is room.
    Grow,
    /// Move something to or from a place that the medium does not take as it is.
    Around(Around),
    /// A call that does not return before it is told to.
    #[cfg(test)]
    Wait(std::sync::mpsc::Receiver<()>),
}

impl Job {
    /// What it may take of the reserve if it finds no room.
    fn claim(&self) -> Option<Claim> {
        match self {
            Job::Request { .. } => Some(Claim::All),
            Job::Open(opening) if opening.id.object.kind != ObjectKind::Data => Some(Claim::All),
            Job::Around(around) => around.claim,
            _ => None,
        }
    }

    pub(crate) fn syncs_pool(&self) -> bool {
        matches!(self, Job::Request { request, .. } if request.op == ObjectOp::SyncPool)
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    /// The answer to a request, or to something that has none of its own.
    Replied(Result<ObjectReply, Failed>),
    /// The file that was asked for.
    Opened(io::Result<Opened>),
}

/// What threads share.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) layout: Layout,
    pub(crate) heads: Heads,
    pub(crate) reserve: Arc<Reserve>,
    /// Steps done of jobs that consist of many calls: as long as it grows, none of them hangs.
    pub(crate) steps: AtomicU64,
}

impl Ground {
    pub(crate) fn new(layout: Layout, heads: Heads, reserve: Arc<Reserve>) -> Ground {
        Ground {
            layout,
            heads,
            reserve,
            steps: AtomicU64::new(0),
        }
    }

    fn step(&self) {
        // Only looked at: nothing else is ordered by it.
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

impl Done {
    /// Whether it found no room.
    fn found_no_room(&self) -> bool {
        match self {
            Done::Replied(result) => result.is_err_and(|failed| failed.code == ErrorCode::NoSpace),
            Done::Opened(result) => result.as_ref().is_err_and(is_full),
        }
    }
}

/// Does `job`, for as long as that takes; what is metadata with room from the reserve if there is no other.
pub(crate) fn work(ground: &Ground, job: Job) -> Done {
    match job {
        Job::Close(file) => {
            drop(file);
            Done::Replied(Ok(ObjectReply::done(0)))
        }
        job => match job.claim() {
            Some(claim) => {
                let call = || attempt(ground, &job);
                ground.reserve.spend(claim, call, Done::found_no_room)
            }
            None => attempt(ground, &job),
        },
    }
}

/// Does `job`, which can be done again.
fn attempt(ground: &Ground, job: &Job) -> Done {
    let layout = &ground.layout;
    match job {
        Job::Names(lineage) => {
            Done::Replied(sync_names(layout, *lineage).map(|()| ObjectReply::done(0)))
        }
        Job::Request { request, memory } => Done::Replied(carry_out(ground, request, memory)),
        Job::Open(opening) => Done::Opened(opening.open(layout)),
        Job::Grow => {
            ground.reserve.grow_if_room();
            Done::Replied(Ok(ObjectReply::done(0)))
        }
        // Done by whoever calls this.
        Job::Close(_) => Done::Replied(Err(ErrorCode::Internal.into())),
        #[cfg(test)]
        Job::Wait(told) => {
            let _told = told.recv();
            Done::Replied(Ok(ObjectReply::done(0)))
        }
        Job::Around(around) => {
            let moved = around.run().map(|()| ObjectReply::done(0));
            Done::Replied(moved.map_err(Failed::from))
        }
    }
}

fn carry_out(
    ground: &Ground,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, Failed> {
    let (layout, heads, id) = (&ground.layout, &ground.heads, request.id);
    let plain =
        |result: io::Result<()>| result.map(|()| ObjectReply::done(0)).map_err(Failed::from);
    match request.op {
        ObjectOp::CompareAndSwap => heads.swap(layout, request, memory),
        ObjectOp::ReadSwapped => heads.read_swapped(layout, request, memory),
        ObjectOp::SyncPool => {
            let synced = retry_while_exhausted(|| File::open(layout.directory()))
                .and_then(|dir| Ok(nix::unistd::syncfs(dir)?));
            // Told to all, whatever the reason: whoever asked takes it so.
            let failed = |error: io::Error| Failed {
                code: sync_code_of(&error),
                lost: true,
            };
            synced.map(|()| ObjectReply::done(0)).map_err(failed)
        }
        ObjectOp::Delete => plain(delete(ground, |known| known.object == id, id.lineage)),
        ObjectOp::DeleteLineage => plain(delete_lineage(ground, id.lineage)),
        ObjectOp::Punch => plain(punch(layout, request)),
        ObjectOp::Stat => Ok(stat(layout, id)?),
        ObjectOp::StatPool => Ok(stat_pool(layout)?),
        ObjectOp::List => Ok(list(ground, request, memory)?),
        ObjectOp::Read | ObjectOp::Write | ObjectOp::Sync => Err(ErrorCode::Internal.into()),
    }
}

/// Makes the names of a lineage's files durable. Whatever fails, they may not be.
pub(crate) fn sync_names(layout: &Layout, lineage: Lineage) -> Result<(), Failed> {
    let own = layout.lineage(lineage);
    for directory in own
        .ancestors()
        .take_while(|path| path.starts_with(layout.directory()))
    {
        let directory =
            retry_while_exhausted(|| File::open(directory)).map_err(|error| Failed {
                lost: false,
                ..Failed::sync(&error)
            })?;
        directory.sync_all().map_err(|error| Failed::sync(&error))?;
    }
    Ok(())
}

/// Whether there is nothing, or something foreign, where a lineage's directory belongs.
fn is_no_directory(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// The files of `lineage`, in order; none if it has no directory.
fn files_of(layout: &Layout, lineage: Lineage) -> io::Result<Vec<FileId>> {
    let entries = match retry_while_exhausted(|| fs::read_dir(layout.lineage(lineage))) {
        Ok(entries) => entries,
        Err(error) if is_no_directory(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        files.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| parse(lineage, name)),
        );
    }
    files.sort_unstable();
    Ok(files)
}

/// Where pieces of [`DELETE_STEP`] begin that hold data, in order.
fn pieces_with_data(file: &File) -> io::Result<Vec<u64>> {
    let mut pieces = Vec::new();
    let mut from = 0;
    loop {
        let signed = i64::try_from(from).map_err(io::Error::other)?;
        match lseek(file, signed, Whence::SeekData) {
            Ok(data) => {
                let piece =
                    u64::try_from(data).map_err(io::Error::other)? / DELETE_STEP * DELETE_STEP;
                pieces.push(piece);
                from = piece + DELETE_STEP;
            }
            // No data from here on.
            Err(Errno::ENXIO) => return Ok(pieces),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn delete_file(ground: &Ground, path: &Path) -> io::Result<()> {
    let file = match retry_while_exhausted(|| OpenOptions::new().write(true).open(path)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for piece in pieces_with_data(&file)?.into_iter().rev() {
        let before = SystemClock.now();
        file.set_len(piece)?;
        ground.step();
        let took = SystemClock.now().saturating_sub(before);
        let rest = PollTimeout::try_from(took * DELETE_REST).unwrap_or(PollTimeout::ZERO);
        // Waiting for nothing: a signal that ends it early does no harm.
        let _rested = nix::poll::poll(&mut [], rest);
    }
    fs::remove_file(path)
}

fn delete(ground: &Ground, which: impl Fn(&FileId) -> bool, lineage: Lineage) -> io::Result<()> {
    for id in files_of(&ground.layout, lineage)?.into_iter().filter(which) {
        delete_file(ground, &ground.layout.file(id))?;
        ground.step();
    }
    Ok(())
}

fn delete_lineage(ground: &Ground, lineage: Lineage) -> io::Result<()> {
    // The head goes last: as long as it is there, the deletion can be found and repeated.
    delete(ground, |id| id.object.kind != ObjectKind::Head, lineage)?;
    delete(ground, |_| true, lineage)?;
    match fs::remove_dir(ground.layout.lineage(lineage)) {
        // Foreign files are left alone, and with them the directory.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn punch(layout: &Layout, request: &ObjectRequest) -> io::Result<()> {
    let (id, offset) = FileId::locate(request.id, request.offset);
    let path = layout.file(id);
    let file = match retry_while_exhausted(|| OpenOptions::new().write(true).open(&path)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if request.len == 0 {
        return Ok(());
    }
    let signed = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(
        &file,
        flags,
        signed(offset)?,
        signed(u64::from(request.len))?,
    )?)
}

fn stat(layout: &Layout, id: ObjectId) -> Result<ObjectReply, ErrorCode> {
    let (mut occupied, mut len, mut found) = (0, 0, false);
    for file in files_of(layout, id.lineage).map_err(|error| code_of(&error))? {
        if file.object != id {
            continue;
        }
        let metadata = fs::metadata(layout.file(file)).map_err(|error| code_of(&error))?;
        found = true;
        occupied += metadata.blocks() * 512;
        len = file.chunk * crate::layout::CONTAINER_LEN + metadata.len();
    }
    if !found {
        return Err(ErrorCode::NotFound);
    }
    Ok(ObjectReply {
        result: Ok(0),
        values: [occupied, len],
    })
}

fn stat_pool(layout: &Layout) -> Result<ObjectReply, ErrorCode> {
    let room = room(layout.directory()).map_err(|error| code_of(&error))?;
    Ok(ObjectReply {
        result: Ok(0),
        values: [room.free, room.total],
    })
}

fn list(
    ground: &Ground,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, ErrorCode> {
    let entry = request.id.to_bytes().len();
    let room = request.len as usize / entry;
    if room == 0 {
        return Err(ErrorCode::Invalid);
    }
    let mut lineages = lineages(ground).map_err(|error| code_of(&error))?;
    lineages.retain(|lineage| *lineage >= request.id.lineage);
    lineages.sort_unstable();
    let mut bytes = Vec::new();
    let mut last = request.id;
    'pages: for lineage in lineages {
        ground.step();
        for file in files_of(&ground.layout, lineage).map_err(|error| code_of(&error))? {
            if file.object <= last {
                continue;
            }
            if bytes.len() / entry == room {
                break 'pages;
            }
            last = file.object;
            bytes.extend_from_slice(&last.to_bytes());
        }
    }
    scatter(&bytes, memory);
    Ok(ObjectReply::done(
        u32::try_from(bytes.len()).map_err(|_too_long| ErrorCode::Internal)?,
    ))
}

fn lineages(ground: &Ground) -> io::Result<Vec<Lineage>> {
    let mut lineages = Vec::new();
    for shard in retry_while_exhausted(|| fs::read_dir(ground.layout.directory()))? {
        ground.step();
        let shard = shard?;
        if shard.file_name().len() != 2 || !shard.file_type()?.is_dir() {
            continue;
        }
        for directory in retry_while_exhausted(|| fs::read_dir(shard.path()))? {
            let directory = directory?;
            if !directory.file_type()?.is_dir() {
                // Not ours: `foreign` names it.
                continue;
            }
            let name = directory.file_name();
            lineages.extend(name.to_str().and_then(|name| name.parse::<Lineage>().ok()));
        }
    }
    Ok(lineages)
}
