//! What may take long, on threads of their own: swaps, listings, names, syncs of the pool; and deletions, behind which
//! nothing else may wait.
//!
//! Invariants
//! - A thread does its jobs in order, and one thread does all swaps of a lineage, so a swap is atomic among swaps of its
//!   object. Swaps of several lineages go on side by side, and the file system commits them together.
//! - Syncs of the pool that wait for the thread are one sync: what it covers was completed before any of them was asked
//!   for, so a sync that begins later covers it. If it fails, it fails for all.
//! - Jobs are bounded by the credits of the clients whose requests they are.
//! - Large files are shortened in steps before they are unlinked: freeing many extents at once blocks the file system for
//!   everybody.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{ErrorCode, Lineage};
use archipelago_runtime::{Clock, SystemClock};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::PollTimeout;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{Whence, lseek};
use xseg::Span;

use crate::errors::{Failed, code_of, sync_code_of};
use crate::heads::{Heads, scatter};
use crate::layout::{FileId, Layout, parse};

/// A file is shortened by this much at a time when it is deleted; holes cost nothing.
const DELETE_STEP: u64 = 8 << 20;
/// After each step of a deletion the thread rests this many times as long as the step took: others want the journal.
const DELETE_REST: u32 = 3;

/// What the thread shall do.
#[derive(Debug)]
pub(crate) enum Job {
    /// A request of a client.
    Request {
        request: ObjectRequest,
        memory: Vec<Span>,
    },
    /// Make the names of a lineage's files durable.
    Names(Lineage),
}

impl Job {
    fn syncs_pool(&self) -> bool {
        matches!(self, Job::Request { request, .. } if request.op == ObjectOp::SyncPool)
    }
}

/// What came of it.
pub(crate) type Done = Result<ObjectReply, Failed>;

/// Takes the syncs of the pool out of `jobs`, and leaves the others in their order: their tokens.
fn take_pool_syncs(jobs: &mut VecDeque<(usize, Job)>) -> Vec<usize> {
    let mut tokens = Vec::new();
    jobs.retain(|(token, job)| {
        let taken = job.syncs_pool();
        if taken {
            tokens.push(*token);
        }
        !taken
    });
    tokens
}

/// The thread, and the two ways to it.
#[derive(Debug)]
pub(crate) struct Slow {
    jobs: Option<Sender<(usize, Job)>>,
    done: Receiver<(usize, Done)>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    /// Starts a thread called `name`; `heads` is what it knows of those that it swaps.
    pub(crate) fn start(name: &str, layout: Layout, mut heads: Heads) -> io::Result<Slow> {
        let (jobs, incoming) = channel::<(usize, Job)>();
        let (outgoing, done) = channel();
        let bell = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let rung = Arc::clone(&bell);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let mut jobs = VecDeque::new();
                while let Some((token, job)) = jobs.pop_front().or_else(|| incoming.recv().ok()) {
                    let mut tokens = vec![token];
                    if job.syncs_pool() {
                        jobs.extend(incoming.try_iter());
                        tokens.extend(take_pool_syncs(&mut jobs));
                    }
                    let done = work(&layout, &mut heads, &job);
                    drop(job);
                    for token in tokens {
                        if outgoing.send((token, done)).is_err() {
                            return;
                        }
                    }
                    // The counter of an eventfd cannot overflow in the life of a machine.
                    let _rung = rung.write(1);
                }
            })?;
        Ok(Slow {
            jobs: Some(jobs),
            done,
            bell,
            thread: Some(thread),
        })
    }

    /// Rung whenever a job is done.
    pub(crate) fn bell(&self) -> &EventFd {
        &self.bell
    }

    pub(crate) fn send(&self, token: usize, job: Job) {
        let jobs = self.jobs.as_ref().expect("only dropping takes it");
        jobs.send((token, job))
            .expect("the thread ends only when this is dropped");
    }

    pub(crate) fn next_done(&self) -> Option<(usize, Done)> {
        self.done.try_recv().ok()
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It has no reason to panic; if it did, its jobs have no answers, which the process notices elsewhere.
            let _ended = thread.join();
        }
    }
}

fn work(layout: &Layout, heads: &mut Heads, job: &Job) -> Done {
    let (request, memory) = match job {
        Job::Names(lineage) => {
            return sync_names(layout, *lineage).map(|()| ObjectReply::done(0));
        }
        Job::Request { request, memory } => (request, memory),
    };
    let id = request.id;
    let plain =
        |result: io::Result<()>| result.map(|()| ObjectReply::done(0)).map_err(Failed::from);
    match request.op {
        ObjectOp::CompareAndSwap => heads.swap(layout, request, memory),
        ObjectOp::ReadSwapped => heads.read_swapped(layout, request, memory),
        ObjectOp::SyncPool => {
            let synced =
                File::open(layout.directory()).and_then(|dir| Ok(nix::unistd::syncfs(dir)?));
            // Told to all, whatever the reason: whoever asked takes it so.
            let failed = |error: io::Error| Failed {
                code: sync_code_of(&error),
                lost: true,
            };
            synced.map(|()| ObjectReply::done(0)).map_err(failed)
        }
        ObjectOp::Delete => plain(delete(layout, |known| known.object == id, id.lineage)),
        ObjectOp::DeleteLineage => plain(delete_lineage(layout, id.lineage)),
        ObjectOp::Punch => plain(punch(layout, request)),
        ObjectOp::Stat => Ok(stat(layout, id)?),
        ObjectOp::StatPool => Ok(stat_pool(layout)?),
        ObjectOp::List => Ok(list(layout, request, memory)?),
        ObjectOp::Read | ObjectOp::Write | ObjectOp::Sync | ObjectOp::Barrier => {
            Err(ErrorCode::Internal.into())
        }
    }
}

/// Makes the names of a lineage's files durable. Whatever fails, they may not be.
pub(crate) fn sync_names(layout: &Layout, lineage: Lineage) -> Result<(), Failed> {
    let own = layout.lineage(lineage);
    for directory in own
        .ancestors()
        .take_while(|path| path.starts_with(layout.directory()))
    {
        let directory = File::open(directory).map_err(|error| Failed {
            lost: false,
            ..Failed::sync(&error)
        })?;
        directory.sync_all().map_err(|error| Failed::sync(&error))?;
    }
    Ok(())
}

/// The files of `lineage`, in order; none if it has no directory.
fn files_of(layout: &Layout, lineage: Lineage) -> io::Result<Vec<FileId>> {
    let entries = match fs::read_dir(layout.lineage(lineage)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
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

fn delete_file(path: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for piece in pieces_with_data(&file)?.into_iter().rev() {
        let before = SystemClock.now();
        file.set_len(piece)?;
        let took = SystemClock.now().saturating_sub(before);
        let rest = PollTimeout::try_from(took * DELETE_REST).unwrap_or(PollTimeout::ZERO);
        // Waiting for nothing: a signal that ends it early does no harm.
        let _rested = nix::poll::poll(&mut [], rest);
    }
    fs::remove_file(path)
}

fn delete(layout: &Layout, which: impl Fn(&FileId) -> bool, lineage: Lineage) -> io::Result<()> {
    for id in files_of(layout, lineage)?.into_iter().filter(which) {
        delete_file(&layout.file(id))?;
    }
    Ok(())
}

fn delete_lineage(layout: &Layout, lineage: Lineage) -> io::Result<()> {
    // The head goes last: as long as it is there, the deletion can be found and repeated.
    delete(layout, |id| id.object.kind != ObjectKind::Head, lineage)?;
    delete(layout, |_| true, lineage)?;
    match fs::remove_dir(layout.lineage(lineage)) {
        // Foreign files are left alone, and with them the directory.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn punch(layout: &Layout, request: &ObjectRequest) -> io::Result<()> {
    let (id, offset) = FileId::locate(request.id, request.offset);
    let file = match OpenOptions::new().write(true).open(layout.file(id)) {
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
    let stat =
        nix::sys::statvfs::statvfs(layout.directory()).map_err(|errno| code_of(&errno.into()))?;
    let unit = stat.fragment_size();
    Ok(ObjectReply {
        result: Ok(0),
        values: [stat.blocks_available() * unit, stat.blocks() * unit],
    })
}

fn list(
    layout: &Layout,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, ErrorCode> {
    let entry = request.id.to_bytes().len();
    let room = request.len as usize / entry;
    if room == 0 {
        return Err(ErrorCode::Invalid);
    }
    let mut lineages = lineages(layout).map_err(|error| code_of(&error))?;
    lineages.retain(|lineage| *lineage >= request.id.lineage);
    lineages.sort_unstable();
    let mut bytes = Vec::new();
    let mut last = request.id;
    'pages: for lineage in lineages {
        for file in files_of(layout, lineage).map_err(|error| code_of(&error))? {
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

fn lineages(layout: &Layout) -> io::Result<Vec<Lineage>> {
    let mut lineages = Vec::new();
    for shard in fs::read_dir(layout.directory())? {
        let shard = shard?;
        if shard.file_name().len() != 2 || !shard.file_type()?.is_dir() {
            continue;
        }
        for directory in fs::read_dir(shard.path())? {
            let name = directory?.file_name();
            lineages.extend(name.to_str().and_then(|name| name.parse::<Lineage>().ok()));
        }
    }
    Ok(lineages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_syncs_of_the_pool_become_one_and_the_rest_keeps_its_order() {
        let job = |op: ObjectOp| Job::Request {
            request: ObjectRequest::new(op, ObjectId::head(Lineage(1))),
            memory: Vec::new(),
        };
        let ops = [
            ObjectOp::CompareAndSwap,
            ObjectOp::SyncPool,
            ObjectOp::Stat,
            ObjectOp::SyncPool,
        ];
        let mut jobs: VecDeque<(usize, Job)> = ops.into_iter().map(job).enumerate().collect();
        jobs.push_back((4, Job::Names(Lineage(1))));
        assert_eq!(take_pool_syncs(&mut jobs), [1, 3]);
        let left: Vec<usize> = jobs.iter().map(|(token, _)| *token).collect();
        assert_eq!(left, [0, 2, 4]);
    }
}
