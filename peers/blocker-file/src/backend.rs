//! The backend: takes requests, drives transfers and syncs on the ring, hands the rest to the slow threads.
//!
//! Invariant: no call on the pool's file system is made on this thread once the pool is open, but those of a file system in
//! memory. Any of them may never return, and all volumes share the thread.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use archipelago_blocker::Backend;
use archipelago_protocol::control::{PoolAccess, PoolReport, PoolReserve, Wait};
use archipelago_protocol::object::{
    FLAG_DURABLE, ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest,
};
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Clock, Source, Watch};
use rustc_hash::FxHashMap;
use xseg::Span;

use crate::access::{self, Access, Below};
use crate::awaited::Awaited;
use crate::bounce::Bounces;
use crate::counters::Counters;
use crate::errors::{Failed, code_of};
use crate::files::{Files, Open};
use crate::heads::Heads;
use crate::jobs::{Done, Job};
use crate::layout::{FileId, Layout};
use crate::owner::{self, Claimant, Owner};
use crate::reserve::Reserve;
use crate::slow::{Line, Slow, THREADS_MAX};
use crate::throttle::Throttle;
use crate::transfer::Transfer;
use crate::unsynced::Turn;
use crate::watching::Steps;
use crate::{lock, pool};

/// The token of the slow threads' doorbells; all others are places in the table.
const DOORBELL: u64 = u64::MAX;

/// What a file backend can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The pool's directory.
    pub directory: PathBuf,
    /// Whether to use `O_DIRECT` where the file system takes it.
    pub direct: bool,
    /// Whether to set room aside for metadata; what was set aside before is used all the same.
    pub reserve: bool,
    /// How long to wait for the pool's lock, which a dead predecessor's ring may hold for some milliseconds.
    pub lock_timeout: Duration,
    /// Who opens it.
    pub claimant: Claimant,
}

/// What waits for answers.
#[derive(Debug)]
pub(crate) enum Pending {
    Transfer(Transfer),
    Sync {
        ticket: u64,
        open: Rc<Open>,
        /// What it covers.
        began: Turn,
        waiting: u32,
        failed: Option<ErrorCode>,
    },
    /// A sync of the pool, on its thread.
    SyncPool {
        ticket: u64,
        began: Turn,
    },
    Slow {
        ticket: u64,
        op: ObjectOp,
        id: ObjectId,
    },
    /// A file is being opened, for those who wait.
    Open(Awaited),
}

/// Objects in the files of a directory. Lives on its reactor's thread.
#[derive(Debug)]
pub struct FileBackend {
    pub(crate) source: Source,
    pub(crate) layout: Layout,
    pub(crate) access: Access,
    /// The access with its reason.
    access_report: PoolAccess,
    pub(crate) files: Files,
    pub(crate) below: Below,
    pub(crate) slow: Slow,
    syncer: Slow,
    pub(crate) deleter: Slow,
    pub(crate) listings: Steps,
    pub(crate) deletions: Steps,
    pub(crate) bounces: Bounces,
    pub(crate) pending: Vec<Option<Pending>>,
    /// When each of them began, in seconds as [`FileBackend::seconds`] counts them.
    pub(crate) since: Vec<u64>,
    /// Monotonic time, as it was told last.
    pub(crate) seconds: u64,
    pub(crate) free: Vec<usize>,
    /// Files that are being opened: their places in the table.
    pub(crate) opening: FxHashMap<FileId, usize>,
    pub(crate) done: VecDeque<(u64, ObjectReply)>,
    /// Lists of spans for the next transfers: their memory is used again.
    pub(crate) spare: Vec<Vec<Span>>,
    pub(crate) counters: Counters,
    /// The next sync of the pool fails: one before it did, and nobody was there to be told.
    pub(crate) untold: bool,
    /// Data writes while the reserve is spent.
    pub(crate) throttle: Throttle,
    _doorbells: Vec<Watch>,
    /// The last to be dropped: the pool is released when nobody writes any more.
    owner: Option<Owner>,
}

impl FileBackend {
    /// Opens the pool for this process alone: waits for the lock, makes what a dead predecessor wrote durable.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] naming the holder of the lock or the owner on another host, [`ErrorCode::Stale`] if another host has
    /// had the pool since a process died whose successor this is, [`ErrorCode::Damaged`] for an unknown version, [`ErrorCode::Unsupported`] for a
    /// file system whose locks exclude nobody, or what the system says.
    pub fn open(options: &Options, source: Source, clock: &dyn Clock) -> Result<Self, Error> {
        let layout = Layout::new(&options.directory);
        pool::check_marker(&layout)?;
        let lock = lock::take(&layout, clock, clock.now() + options.lock_timeout)?;
        let failed = |what: &str, error: io::Error| {
            Error::new(
                code_of(&error),
                format!("{what} for pool `{}`: {error}", options.directory.display()),
            )
        };
        source.keep_until_ring_ends(lock.into()).map_err(|error| {
            let hint = error.hint();
            let what = format!("keep the lock by io_uring: {error}: {}", error.cause());
            let text = format!("pool `{}`: {what}", options.directory.display());
            Error::new(code_of(error.cause()), text).with_hint(hint)
        })?;
        let owner = owner::claim(&layout, &options.claimant, clock)?;
        let found = match options.direct {
            true => access::find(&layout, &source)?,
            false => access::configured_cached(),
        };
        let access = found.access;
        let copies = access::copies_on_write(&layout);
        let synced =
            std::fs::File::open(&options.directory).and_then(|dir| Ok(nix::unistd::syncfs(dir)?));
        let reserve = Reserve::open(&layout).map_err(|error| failed("open the reserve", error))?;
        if options.reserve {
            reserve.grow();
            reserve.tell_start();
        }
        let reserve = Arc::new(reserve);
        let start = |name, threads_max| {
            let heads = match &synced {
                Ok(()) => Heads::new(copies),
                Err(_) => Heads::suspect(copies),
            };
            Slow::start(
                name,
                threads_max,
                layout.clone(),
                heads,
                Arc::clone(&reserve),
            )
            .map_err(|error| {
                Error::of_thread(
                    format_args!("pool `{}`", options.directory.display()),
                    &error,
                )
            })
        };
        let slow = start("blocker-slow", THREADS_MAX)?;
        let (syncer, deleter) = (start("blocker-sync", 1)?, start("blocker-delete", 1)?);
        let watch = |doorbell| {
            let watch = source.poll_readable(doorbell, DOORBELL);
            watch.map_err(|error| failed("watch a thread", error))
        };
        let threads = [&slow, &syncer, &deleter].map(Slow::doorbell);
        let doorbells = threads
            .into_iter()
            .chain([reserve.gate.doorbell()])
            .map(watch)
            .collect::<Result<_, Error>>()?;
        let below = Below::of(&layout);
        let mut backend = FileBackend {
            source,
            below,
            layout,
            access,
            access_report: found.report,
            files: Files::new(access, below.calls(), copies),
            slow,
            syncer,
            deleter,
            listings: Steps::default(),
            deletions: Steps::default(),
            bounces: Bounces::default(),
            pending: Vec::new(),
            since: Vec::new(),
            seconds: clock.now().as_secs(),
            free: Vec::new(),
            opening: FxHashMap::default(),
            done: VecDeque::new(),
            spare: Vec::new(),
            counters: Counters::default(),
            untold: false,
            throttle: Throttle::default(),
            _doorbells: doorbells,
            owner,
        };
        if let Err(error) = synced {
            let error = failed("sync the file system", error);
            tracing::error!("{}: what was not flushed may be lost", error.message);
            backend.suspect_all();
        }
        Ok(backend)
    }

    /// What went through.
    #[must_use]
    pub fn figures(&self) -> Counters {
        Counters {
            opens: self.files.opens,
            creations: self.files.creations,
            reserve_spent: self.slow.reserve().spent(),
            ..self.counters
        }
    }

    pub(crate) fn insert(&mut self, pending: Pending) -> usize {
        if let Some(index) = self.free.pop() {
            self.pending[index] = Some(pending);
            self.since[index] = self.seconds;
            return index;
        }
        self.pending.push(Some(pending));
        self.since.push(self.seconds);
        self.pending.len() - 1
    }

    pub(crate) fn remove(&mut self, index: usize) -> Option<Pending> {
        let pending = self.pending.get_mut(index)?.take();
        if pending.is_some() {
            self.free.push(index);
        }
        pending
    }

    pub(crate) fn transfer_mut(&mut self, index: usize) -> Option<&mut Transfer> {
        match self.pending.get_mut(index)? {
            Some(Pending::Transfer(transfer)) => Some(transfer),
            _ => None,
        }
    }

    pub(crate) fn answer(&mut self, ticket: u64, reply: ObjectReply) {
        self.done.push_back((ticket, reply));
    }

    /// The next job that a thread has done.
    fn next_slow(&self) -> Option<(usize, Done)> {
        [&self.slow, &self.syncer, &self.deleter]
            .into_iter()
            .find_map(Slow::next_done)
    }

    /// The ring is done with something.
    fn on_event(&mut self, index: usize, result: i32) {
        match self.pending.get_mut(index) {
            Some(Some(Pending::Transfer(transfer))) if transfer.waiting > 0 => {
                let failed = self.sync_failure(result);
                self.on_part(index, failed);
            }
            Some(Some(Pending::Transfer(_))) => self.on_moved(index, result),
            Some(Some(Pending::Sync { .. })) => {
                let failed = self.sync_failure(result);
                self.on_part(index, failed);
            }
            _ => {}
        }
    }

    fn on_done(&mut self, index: usize, done: Done) {
        match done {
            Done::Replied(result) => self.on_slow(index, result),
            Done::Opened(result) => self.on_opened(index, result),
        }
    }

    pub(crate) fn on_slow(&mut self, index: usize, done: Result<ObjectReply, Failed>) {
        if done.is_err_and(|failed| failed.lost) {
            self.lose_unsynced();
        }
        let ticket = match self.pending.get(index) {
            Some(&Some(Pending::Slow { ticket, .. })) => ticket,
            Some(&Some(Pending::SyncPool { ticket, began })) => {
                if done.is_ok() {
                    self.files.pool_synced(began);
                }
                ticket
            }
            Some(Some(Pending::Transfer(transfer)))
                if transfer.waiting == 0 && transfer.from_reserve && !transfer.open.alone.get() =>
            {
                let result = done.map(drop).map_err(|failed| failed.code);
                return self.on_written_from_reserve(index, result);
            }
            // Nothing of a transfer is on its way but that.
            Some(Some(Pending::Transfer(transfer))) if transfer.waiting == 0 => {
                return self.on_moved_around(index, done.map(drop).map_err(|failed| failed.code));
            }
            _ => return self.on_part(index, done.err().map(|failed| failed.code)),
        };
        self.remove(index);
        let reply = done.unwrap_or_else(|failed| ObjectReply::failed(failed.code));
        self.answer(ticket, reply);
    }

    fn start_slow(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        let id = request.id;
        if request.op == ObjectOp::SyncPool && std::mem::take(&mut self.untold) {
            return self.answer(ticket, ObjectReply::failed(ErrorCode::SyncFailed));
        }
        match request.op {
            ObjectOp::Delete => self.forget(|known| known.object == id),
            ObjectOp::DeleteLineage => self.forget(|known| known.object.lineage == id.lineage),
            ObjectOp::SyncPool => self.counters.pool_syncs += 1,
            _ => {}
        }
        let index = self.insert(match request.op {
            ObjectOp::SyncPool => Pending::SyncPool {
                ticket,
                began: self.files.now(),
            },
            op => Pending::Slow { ticket, op, id },
        });
        let (threads, line) = match request.op {
            ObjectOp::Delete | ObjectOp::DeleteLineage | ObjectOp::Punch => {
                (&self.deleter, Line::Pool)
            }
            ObjectOp::SyncPool => (&self.syncer, Line::Pool),
            ObjectOp::List | ObjectOp::StatPool => (&self.slow, Line::Pool),
            _ => (&self.slow, Line::Swaps(id.lineage)),
        };
        let memory = memory.to_vec();
        let request = *request;
        threads.send(line, index, Job::Request { request, memory });
    }
}

impl Backend for FileBackend {
    fn name(&self) -> &str {
        "file"
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.figures().named().to_vec()
    }

    fn pool_report(&self) -> Option<PoolReport> {
        let [held, wanted] = self.slow.reserve().figures();
        Some(PoolReport {
            access: self.access_report.clone(),
            reserve: PoolReserve { held, wanted },
            owner: self.owner.as_ref().map(Owner::text),
        })
    }

    fn look(&mut self, now: Duration) {
        self.look_at(now);
    }

    fn waits(&self) -> Vec<Wait> {
        self.told_waits()
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        debug_assert!(request.flags & !FLAG_DURABLE == 0, "judged by the peer");
        let swapped = request.id.kind == ObjectKind::Head;
        let result = match request.op {
            // Small objects change by swaps only.
            ObjectOp::Read | ObjectOp::Write if swapped => Err(ErrorCode::Invalid),
            ObjectOp::Read | ObjectOp::Write => self.start_on_file(ticket, request, memory),
            ObjectOp::Sync if swapped => {
                self.answer(ticket, ObjectReply::done(0));
                Ok(())
            }
            ObjectOp::Sync => self.start_on_file(ticket, request, memory),
            ObjectOp::CompareAndSwap | ObjectOp::ReadSwapped if !swapped => Err(ErrorCode::Invalid),
            _ => {
                self.start_slow(ticket, request, memory);
                Ok(())
            }
        };
        if let Err(code) = result {
            self.answer(ticket, ObjectReply::failed(code));
        }
    }

    fn poll(&mut self) -> Option<(u64, ObjectReply)> {
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        if self.throttle.is_on() {
            self.tend_gate();
        }
        while let Some(event) = self.source.next() {
            if event.token == DOORBELL {
                self.tend_gate();
                while let Some((index, done)) = self.next_slow() {
                    self.on_done(index, done);
                }
            } else if let Ok(index) = usize::try_from(event.token) {
                self.on_event(index, event.result);
            }
        }
        self.done.pop_front()
    }
}
