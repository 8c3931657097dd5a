//! The backend: takes requests, drives transfers and syncs on the ring, hands the rest to the slow threads.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use archipelago_blocker::{Backend, Capabilities, Fencing};
use archipelago_protocol::object::{
    FLAG_DURABLE, ObjectKind, ObjectOp, ObjectReply, ObjectRequest,
};
use archipelago_protocol::{Error, ErrorCode, Lineage};
use archipelago_runtime::{Clock, Source, Watch};
use xseg::Span;

use crate::bounce::Bounces;
use crate::counters::Counters;
use crate::errors::code_of;
use crate::files::{Files, Open};
use crate::heads::Heads;
use crate::layout::Layout;
use crate::pool::{self, Access};
use crate::slow::{Done, Job, Slow};
use crate::transfer::Transfer;
use crate::unsynced::Turn;

/// The token of the slow threads' bells; all others are places in the table.
const BELL: u64 = u64::MAX;
/// Threads for what may take long, by lineage: swaps are synced one by one, and a takeover of all volumes of a node is at
/// least one swap each.
const SLOW_THREADS: usize = 8;

/// What a file backend can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The pool's directory.
    pub directory: PathBuf,
    /// How long to wait for the pool's lock, which a dead predecessor's ring may hold for some milliseconds.
    pub lock_patience: Duration,
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
    },
}

/// Objects in the files of a directory. Lives on its reactor's thread.
#[derive(Debug)]
pub struct FileBackend {
    pub(crate) source: Source,
    pub(crate) access: Access,
    pub(crate) files: Files,
    slow: Vec<Slow>,
    syncer: Slow,
    deleter: Slow,
    pub(crate) bounces: Bounces,
    pub(crate) pending: Vec<Option<Pending>>,
    pub(crate) free: Vec<usize>,
    /// Transfers that need their file for themselves, and those behind them, in order.
    pub(crate) waiting: VecDeque<usize>,
    pub(crate) done: VecDeque<(u64, ObjectReply)>,
    /// Lists of spans for the next transfers: their memory is used again.
    pub(crate) spare: Vec<Vec<Span>>,
    pub(crate) counters: Counters,
    /// The next sync of the pool fails: one before it did, and nobody was there to be told.
    pub(crate) untold: bool,
    _bells: Vec<Watch>,
}

impl FileBackend {
    /// Opens the pool for this process alone: waits for the lock, makes what a dead predecessor wrote durable.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] naming the holder, [`ErrorCode::Damaged`] for an unknown version, or what the system says.
    pub fn open(options: &Options, source: Source, clock: &dyn Clock) -> Result<Self, Error> {
        let layout = Layout::new(&options.directory);
        pool::check_marker(&layout)?;
        let lock = pool::lock(&layout, clock, clock.now() + options.lock_patience)?;
        let failed = |what: &str, error: io::Error| {
            Error::new(
                code_of(&error),
                format!("{what} for pool `{}`: {error}", options.directory.display()),
            )
        };
        source
            .keep_until_ring_ends(lock)
            .map_err(|error| failed("keep the lock", error))?;
        let access = pool::probe(&layout, &source)?;
        let synced =
            std::fs::File::open(&options.directory).and_then(|dir| Ok(nix::unistd::syncfs(dir)?));
        let start = |name: &str| {
            let heads = match &synced {
                Ok(()) => Heads::default(),
                Err(_) => Heads::suspect(),
            };
            Slow::start(name, layout.clone(), heads)
                .map_err(|error| failed("start a thread", error))
        };
        let slow: Vec<Slow> = (0..SLOW_THREADS)
            .map(|_| start("blocker-slow"))
            .collect::<Result<_, Error>>()?;
        let (syncer, deleter) = (start("blocker-sync")?, start("blocker-delete")?);
        let watch = |slow: &Slow| {
            let watch = source.poll_readable(slow.bell(), BELL);
            watch.map_err(|error| failed("watch a thread", error))
        };
        let bells = slow
            .iter()
            .chain([&syncer, &deleter])
            .map(watch)
            .collect::<Result<_, Error>>()?;
        let mut backend = FileBackend {
            source,
            access,
            files: Files::new(layout, access),
            slow,
            syncer,
            deleter,
            bounces: Bounces::default(),
            pending: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            done: VecDeque::new(),
            spare: Vec::new(),
            counters: Counters::default(),
            untold: false,
            _bells: bells,
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
            ..self.counters
        }
    }

    pub(crate) fn insert(&mut self, pending: Pending) -> usize {
        if let Some(index) = self.free.pop() {
            self.pending[index] = Some(pending);
            return index;
        }
        self.pending.push(Some(pending));
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

    /// The thread that does the swaps of `lineage`.
    pub(crate) fn slow_of(&self, lineage: Lineage) -> &Slow {
        let [high, low] = lineage.to_words();
        let count = self.slow.len() as u64;
        // Lineages are random; a fixed one, the catalogue's, has its place too.
        let index = usize::try_from((high ^ low) % count).unwrap_or(0);
        &self.slow[index]
    }

    /// The next job that a thread has done.
    fn next_slow(&self) -> Option<(usize, Done)> {
        self.slow
            .iter()
            .chain([&self.syncer, &self.deleter])
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

    pub(crate) fn on_slow(&mut self, index: usize, done: Done) {
        if done.is_err_and(|failed| failed.lost) {
            self.lose_unsynced();
        }
        let ticket = match self.pending.get(index) {
            Some(&Some(Pending::Slow { ticket })) => ticket,
            Some(&Some(Pending::SyncPool { ticket, began })) => {
                if done.is_ok() {
                    self.files.pool_synced(began);
                }
                ticket
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
            ObjectOp::Delete => self.files.forget(|known| known.object == id),
            ObjectOp::DeleteLineage => self
                .files
                .forget(|known| known.object.lineage == id.lineage),
            ObjectOp::SyncPool => self.counters.pool_syncs += 1,
            _ => {}
        }
        let index = self.insert(match request.op {
            ObjectOp::SyncPool => Pending::SyncPool {
                ticket,
                began: self.files.now(),
            },
            _ => Pending::Slow { ticket },
        });
        let thread = match request.op {
            ObjectOp::Delete | ObjectOp::DeleteLineage | ObjectOp::Punch => &self.deleter,
            ObjectOp::SyncPool => &self.syncer,
            _ => self.slow_of(id.lineage),
        };
        let memory = memory.to_vec();
        let request = *request;
        thread.send(index, Job::Request { request, memory });
    }
}

impl Backend for FileBackend {
    fn name(&self) -> &str {
        "file"
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.figures().named().to_vec()
    }

    fn capabilities(&self) -> Capabilities {
        let alignment = match self.access {
            Access::Direct { alignment } => alignment,
            Access::Cached => 1,
        };
        Capabilities {
            fencing: Fencing::Enforced,
            alignment,
        }
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        debug_assert!(request.flags & !FLAG_DURABLE == 0, "judged by the peer");
        let swapped = request.id.kind == ObjectKind::Head;
        let result = match request.op {
            // Small objects change by swaps only.
            ObjectOp::Read | ObjectOp::Write if swapped => Err(ErrorCode::Invalid),
            ObjectOp::Read | ObjectOp::Write => self.start_transfer(ticket, request, memory),
            ObjectOp::Sync if swapped => {
                self.answer(ticket, ObjectReply::done(0));
                Ok(())
            }
            ObjectOp::Sync => self.start_sync(ticket, request),
            ObjectOp::Barrier => {
                self.answer(ticket, ObjectReply::done(0));
                Ok(())
            }
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
        while let Some(event) = self.source.next() {
            if event.token == BELL {
                while let Some((index, done)) = self.next_slow() {
                    self.on_slow(index, done);
                }
            } else if let Ok(index) = usize::try_from(event.token) {
                self.on_event(index, event.result);
            }
        }
        self.done.pop_front()
    }
}
