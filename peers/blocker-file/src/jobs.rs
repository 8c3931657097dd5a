//! Jobs of threads that may block: swaps, listings, names, the opening and closing of files, syncs of the pool, deletions.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{ErrorCode, Lineage};
use xseg::Span;

use crate::access::is_full;
use crate::deletion::{delete, delete_lineage, punch};
use crate::descriptors::retry_while_exhausted;
use crate::errors::{Failed, code_of, sync_code_of};
use crate::heads::Heads;
use crate::layout::{CONTAINER_LEN, FileId, LOG_HEADER_LEN, Layout};
use crate::log_job::{LogDone, LogJob};
use crate::names::{files_of, lineages, sync_names};
use crate::open_job::{Missing, OpenJob, Opened};
use crate::reserve::{Claim, Reserve};
use crate::room::room;
use crate::spans::scatter;
use crate::stall_detector::Progress;
use crate::unaligned::UnalignedTransfer;

/// A job.
#[derive(Debug)]
pub(crate) enum Job {
    /// A request of a client.
    Request {
        request: ObjectRequest,
        memory: Vec<Span>,
    },
    /// Make the names of a lineage's files durable.
    Names(Lineage),
    /// Open a file, or create it.
    Open(OpenJob),
    /// Close a file: that may write, and block.
    Close(OwnedFd),
    /// Let the reserve grow if there is space.
    Grow,
    /// A job on a log.
    Log(LogJob),
    /// Move bytes to or from a place that is not aligned as the medium requires.
    Unaligned(UnalignedTransfer),
    /// A call that does not return before the other side is dropped.
    #[cfg(test)]
    Wait(std::sync::mpsc::Receiver<()>),
}

impl Job {
    /// How much of the reserve it may take if it finds no space.
    fn claim(&self) -> Option<Claim> {
        match self {
            Job::Request { .. } => Some(Claim::All),
            // A new log leaves half of the reserve to others.
            Job::Open(open)
                if open.missing == Missing::Create && open.id.object.kind == ObjectKind::Log =>
            {
                Some(Claim::Half)
            }
            Job::Open(open) if open.id.object.kind != ObjectKind::Data => Some(Claim::All),
            Job::Unaligned(transfer) => transfer.claim,
            Job::Log(_) => Some(Claim::All),
            _ => None,
        }
    }

    pub(crate) fn syncs_pool(&self) -> bool {
        matches!(self, Job::Request { request, .. } if request.op == ObjectOp::SyncPool)
    }
}

/// The result of a job.
#[derive(Debug)]
pub(crate) enum Done {
    /// The answer to a request, or to a job without a result of its own.
    Replied(Result<ObjectReply, Failed>),
    /// The opened file.
    Opened(io::Result<Opened>),
    /// The result of a job on a log.
    Log(Result<LogDone, Failed>),
}

/// State that the threads of one pool of threads share.
#[derive(Debug)]
pub(crate) struct WorkerContext {
    pub(crate) layout: Layout,
    pub(crate) heads: Heads,
    pub(crate) reserve: Arc<Reserve>,
    /// The progress of jobs that consist of many calls.
    pub(crate) progress: Progress,
}

impl WorkerContext {
    pub(crate) fn new(layout: Layout, heads: Heads, reserve: Arc<Reserve>) -> WorkerContext {
        WorkerContext {
            layout,
            heads,
            reserve,
            progress: Progress::default(),
        }
    }
}

impl Done {
    /// Whether it found no space.
    fn found_no_room(&self) -> bool {
        match self {
            Done::Replied(result) => result.is_err_and(|failed| failed.code == ErrorCode::NoSpace),
            Done::Opened(result) => result.as_ref().is_err_and(is_full),
            Done::Log(result) => result.is_err_and(|failed| failed.code == ErrorCode::NoSpace),
        }
    }
}

/// Does `job`, for as long as that takes; metadata gets space from the reserve if there is no other.
pub(crate) fn run(context: &WorkerContext, job: Job) -> Done {
    match job {
        Job::Close(file) => {
            drop(file);
            Done::Replied(Ok(ObjectReply::done(0)))
        }
        job => match job.claim() {
            Some(claim) => {
                let call = || attempt(context, &job);
                context.reserve.spend(claim, call, Done::found_no_room)
            }
            None => attempt(context, &job),
        },
    }
}

/// Does `job`, which can be repeated.
fn attempt(context: &WorkerContext, job: &Job) -> Done {
    let layout = &context.layout;
    match job {
        Job::Names(lineage) => {
            Done::Replied(sync_names(layout, *lineage).map(|()| ObjectReply::done(0)))
        }
        Job::Request { request, memory } => Done::Replied(carry_out(context, request, memory)),
        Job::Open(open) => Done::Opened(open.run(layout)),
        Job::Log(log) => Done::Log(log.run()),
        Job::Grow => {
            context.reserve.grow_if_room();
            Done::Replied(Ok(ObjectReply::done(0)))
        }
        // The caller closes the file.
        Job::Close(_) => Done::Replied(Err(ErrorCode::Internal.into())),
        #[cfg(test)]
        Job::Wait(ended) => {
            let _ended = ended.recv();
            Done::Replied(Ok(ObjectReply::done(0)))
        }
        Job::Unaligned(transfer) => {
            let moved = transfer.run().map(|()| ObjectReply::done(0));
            Done::Replied(moved.map_err(Failed::from))
        }
    }
}

fn carry_out(
    context: &WorkerContext,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, Failed> {
    let (layout, progress, id) = (&context.layout, &context.progress, request.id);
    let plain =
        |result: io::Result<()>| result.map(|()| ObjectReply::done(0)).map_err(Failed::from);
    match request.op {
        ObjectOp::CompareAndSwap => context.heads.swap(layout, request, memory),
        ObjectOp::ReadSwapped => context.heads.read_swapped(layout, request, memory),
        ObjectOp::SyncPool => {
            let synced = retry_while_exhausted(|| File::open(layout.directory()))
                .and_then(|dir| Ok(nix::unistd::syncfs(dir)?));
            // Reported as a loss to all, whatever the reason: the callers treat it so.
            let failed = |error: io::Error| Failed {
                code: sync_code_of(&error),
                lost: true,
            };
            synced.map(|()| ObjectReply::done(0)).map_err(failed)
        }
        ObjectOp::Delete => {
            let is_it = |known: &FileId| known.object == id;
            plain(delete(layout, is_it, id.lineage, progress))
        }
        ObjectOp::DeleteLineage => plain(delete_lineage(layout, id.lineage, progress)),
        ObjectOp::Punch => punch(layout, request).map(|()| ObjectReply::done(0)),
        ObjectOp::Stat => Ok(stat(layout, id)?),
        ObjectOp::StatPool => Ok(stat_pool(layout)?),
        ObjectOp::List => Ok(list(context, request, memory)?),
        ObjectOp::Create => Ok(create(context, id)?),
        ObjectOp::Read
        | ObjectOp::Write
        | ObjectOp::Append
        | ObjectOp::Seal
        | ObjectOp::Sync
        | ObjectOp::Capabilities => Err(ErrorCode::Internal.into()),
    }
}

pub(crate) fn stat(layout: &Layout, id: ObjectId) -> Result<ObjectReply, ErrorCode> {
    let (occupied, len) = match id.kind {
        ObjectKind::Data => stat_data(layout, id)?,
        kind => {
            let path = layout.file(FileId::locate(id, 0).0);
            let metadata = fs::metadata(path).map_err(|error| code_of(&error))?;
            let header = match kind {
                ObjectKind::Log => LOG_HEADER_LEN,
                _ => 0,
            };
            let len = metadata.len().saturating_sub(header);
            (metadata.blocks() * 512, len)
        }
    };
    Ok(ObjectReply {
        values: [occupied, len],
        ..ObjectReply::done(0)
    })
}

/// Bytes that the files of an epoch occupy together, and the end of the last one. The lineage's directory lists the files.
fn stat_data(layout: &Layout, id: ObjectId) -> Result<(u64, u64), ErrorCode> {
    let (mut occupied, mut len, mut found) = (0, 0, false);
    for file in files_of(layout, id.lineage).map_err(|error| code_of(&error))? {
        if file.object != id {
            continue;
        }
        let metadata = fs::metadata(layout.file(file)).map_err(|error| code_of(&error))?;
        found = true;
        occupied += metadata.blocks() * 512;
        len = file.chunk * CONTAINER_LEN + metadata.len();
    }
    match found {
        true => Ok((occupied, len)),
        false => Err(ErrorCode::NotFound),
    }
}

/// Makes an empty file, with a durable name.
fn create(context: &WorkerContext, id: ObjectId) -> Result<ObjectReply, Failed> {
    let layout = &context.layout;
    let (file, _) = FileId::locate(id, 0);
    let path = layout.file(file);
    if path.exists() {
        return Err(ErrorCode::Exists.into());
    }
    // The jobs of one lineage are done one after another, and no other process has the pool open.
    let job = OpenJob {
        id: file,
        missing: Missing::Create,
        direct: false,
        in_place: context.heads.copies_on_write() && id.kind == ObjectKind::Log,
        pause: Duration::ZERO,
    };
    let opened = job.run(layout)?;
    if !opened.created {
        return Err(ErrorCode::Exists.into());
    }
    opened
        .file
        .sync_all()
        .map_err(|error| Failed::sync(&error))?;
    sync_names(layout, id.lineage)?;
    Ok(ObjectReply::done(0))
}

fn stat_pool(layout: &Layout) -> Result<ObjectReply, ErrorCode> {
    let room = room(layout.directory()).map_err(|error| code_of(&error))?;
    Ok(ObjectReply {
        values: [room.free, room.total],
        ..ObjectReply::done(0)
    })
}

fn list(
    context: &WorkerContext,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, ErrorCode> {
    let entry = request.id.to_bytes().len();
    let room = request.len as usize / entry;
    if room == 0 {
        return Err(ErrorCode::Invalid);
    }
    let (layout, progress) = (&context.layout, &context.progress);
    let mut lineages = lineages(layout, progress).map_err(|error| code_of(&error))?;
    lineages.retain(|lineage| *lineage >= request.id.lineage);
    lineages.sort_unstable();
    let mut bytes = Vec::new();
    let mut last = request.id;
    'pages: for lineage in lineages {
        progress.step();
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
