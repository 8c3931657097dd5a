//! The backend: routes requests to its parts, and completions of the ring and of threads to the part that made the call.
//!
//! Life of a write: [`FileBackend::start`] finds its file, or has it opened ([`crate::pending_opens`]); [`crate::transfers`]
//! drives it, [`crate::transfer`] tracks its progress; its reply waits in [`crate::context::Replies`].
//!
//! Invariant: once the pool is open, no call on its file system is made on this thread, except on a file system in memory. Any such call
//! may never return, and all volumes share the thread.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use archipelago_blocker::Backend;
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::control::{PoolReport, PoolReserve, Wait};
use archipelago_protocol::object::{
    FLAG_DURABLE, ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest,
};
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Clock, Source, Watch};
use xseg::Span;

use crate::access::{self, Below};
use crate::calls::{Part, Token};
use crate::context::{Context, Replies};
use crate::counters::Counters;
use crate::errors::{Failed, failed_for_pool, is_of_one_file, sync_failure};
use crate::files::{Files, Unsynced};
use crate::heads::Heads;
use crate::job_requests::JobRequests;
use crate::jobs::Done;
use crate::joined::{JoinedPool, Options};
use crate::layout::{CONTAINER_LEN, FileId, Layout};
use crate::log_job::LogDone;
use crate::logs::Logs;
use crate::open_job::Opened;
use crate::owner::Owner;
use crate::parts::Parts;
use crate::pending_opens::{PendingOpens, Waiter};
use crate::siblings::{Deletion, Loss, Sibling};
use crate::stall_detector::{oldest, spare_workers};
use crate::syncs::Syncs;
use crate::threads::Threads;
use crate::throttle::Throttle;
use crate::transfers::Transfers;

/// The token of the threads' doorbell on the ring; no call has this token.
const DOORBELL: u64 = u64::MAX;

/// Objects in the files of a directory. Lives on its reactor's thread.
///
/// Dropped in this order: open files are closed by the threads, which finish their jobs before they end; the pool is released when no
/// thread writes any more.
#[derive(Debug)]
pub struct FileBackend {
    source: Source,
    layout: Layout,
    files: Files,
    logs: Logs,
    opens: PendingOpens,
    transfers: Transfers,
    syncs: Syncs,
    requests: JobRequests,
    throttle: Throttle,
    replies: Replies,
    /// Monotonic time, as last reported.
    seconds: u64,
    threads: Threads,
    _doorbells: Vec<Watch>,
    pool: OpenPool,
}

/// The pool, as this backend has opened it.
#[derive(Debug)]
struct OpenPool {
    /// Of the first backend only.
    owner: Option<Owner>,
    joined: JoinedPool,
    sibling: Sibling,
}

impl FileBackend {
    /// Opens the pool for this process alone: waits for the lock, and makes durable what a dead predecessor wrote.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] naming the holder of the lock or the owner on another host, [`ErrorCode::Stale`] if another host has
    /// had the pool since a process died whose successor this is, [`ErrorCode::UnsupportedFormat`] for an unknown version, [`ErrorCode::Unsupported`]
    /// for a file system whose locks exclude nobody; otherwise the error of the system.
    pub fn open(options: &Options, source: Source, clock: &dyn Clock) -> Result<Self, Error> {
        let (joined, sibling, owner) = JoinedPool::open(options, &source, clock)?;
        FileBackend::start(joined, sibling, owner, source, clock)
    }

    /// The pool, for another backend of it in this process.
    #[must_use]
    pub fn join(&self) -> JoinedPool {
        self.pool.joined.clone()
    }

    /// One more backend of a pool that this process has opened.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] if there are as many as the first one was opened for; otherwise the error of the system.
    pub fn open_joined(
        joined: JoinedPool,
        source: Source,
        clock: &dyn Clock,
    ) -> Result<Self, Error> {
        let sibling = joined.enter(&source)?;
        FileBackend::start(joined, sibling, None, source, clock)
    }

    fn start(
        joined: JoinedPool,
        sibling: Sibling,
        owner: Option<Owner>,
        source: Source,
        clock: &dyn Clock,
    ) -> Result<Self, Error> {
        let layout = joined.layout().clone();
        let failed =
            |what: &str, error: &io::Error| failed_for_pool(what, layout.directory(), error);
        let access = joined.access();
        let copy_on_write = access::copies_on_write(&layout);
        let heads = || match joined.is_synced() {
            true => Heads::new(copy_on_write),
            false => Heads::suspect(copy_on_write),
        };
        let throttle = Throttle::new(Arc::clone(joined.reserve()));
        let throttle = throttle.map_err(|error| failed("make a doorbell", &error))?;
        let threads = Threads::start(&layout, heads, joined.reserve()).map_err(|error| {
            Error::of_thread(
                format_args!("pool `{}`", layout.directory().display()),
                &error,
            )
        })?;
        let doorbells = threads
            .doorbells()
            .into_iter()
            .chain([throttle.doorbell()])
            .map(|doorbell| source.poll_readable(doorbell, DOORBELL))
            .collect::<io::Result<_>>()
            .map_err(|error| failed("watch a thread", &error))?;
        let below = Below::of(&layout);
        let seconds = clock.now().as_secs();
        let mut backend = FileBackend {
            source,
            logs: Logs::new(seconds),
            files: Files::new(access, below.calls(), copy_on_write, joined.backends()),
            opens: PendingOpens::new(seconds),
            transfers: Transfers::new(access, below, seconds),
            syncs: Syncs::new(seconds),
            requests: JobRequests::new(seconds),
            throttle,
            replies: Replies::default(),
            seconds,
            threads,
            _doorbells: doorbells,
            layout,
            pool: OpenPool {
                owner,
                joined,
                sibling,
            },
        };
        if !backend.pool.joined.is_synced() {
            backend.suspect_all();
        }
        Ok(backend)
    }

    /// The figures so far.
    #[must_use]
    pub fn figures(&self) -> Counters {
        let transfers = self.transfers.figures();
        let (opens, creations) = self.files.figures();
        Counters {
            file_syncs: self.syncs.count() + transfers.file_syncs,
            pool_syncs: self.requests.pool_syncs(),
            opens,
            creations,
            bounces: transfers.bounces,
            space_retries: transfers.space_retries,
            reserve_spent: self.throttle.reserve().spent(),
        }
    }

    /// The parts that have calls under way, and what they share.
    fn parts(&mut self) -> (Parts<'_>, Context<'_>) {
        let parts = Parts {
            opens: &mut self.opens,
            transfers: &mut self.transfers,
            syncs: &mut self.syncs,
            requests: &mut self.requests,
        };
        let context = Context {
            source: &self.source,
            threads: &self.threads,
            files: &mut self.files,
            logs: &mut self.logs,
            throttle: &mut self.throttle,
            replies: &mut self.replies,
        };
        (parts, context)
    }

    /// Starts a read, a write or a change of a log, as soon as its file is open.
    fn start_on_file(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
    ) -> Result<(), ErrorCode> {
        let (id, offset) = FileId::locate(request.id, request.offset);
        let is_data = request.id.kind == ObjectKind::Data;
        if is_data && offset + u64::from(request.len) > CONTAINER_LEN {
            // An object never crosses a container: its size divides the container's.
            return Err(ErrorCode::Invalid);
        }
        let (mut parts, mut context) = self.parts();
        match context.files.find(id) {
            Some(open) => parts.start_on_open(ticket, request, memory, open, &mut context),
            None => {
                let waiter = Waiter {
                    ticket,
                    request: *request,
                    memory: memory.to_vec(),
                };
                parts.opens.wait(id, waiter, &context);
            }
        }
        parts.go_on_with_logs(&mut context);
        Ok(())
    }

    /// Makes earlier writes to an object durable.
    fn start_sync(&mut self, ticket: u64, id: ObjectId) {
        self.learn_losses();
        let (parts, mut context) = self.parts();
        match context.files.unsynced(id) {
            Unsynced::Files(files) => parts.syncs.start(ticket, files, &mut context),
            Unsynced::Many => {
                let request = ObjectRequest::new(ObjectOp::SyncPool, id);
                parts.requests.start(ticket, &request, &[], &mut context);
            }
            Unsynced::Lost => {
                let failed = ObjectReply::failed(ErrorCode::SyncFailed);
                context.replies.push(ticket, failed);
            }
        }
    }

    /// Has a thread carry out a request without data.
    fn start_on_thread(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        let id = request.id;
        match request.op {
            ObjectOp::Delete => self.delete(Deletion::Object(id)),
            ObjectOp::DeleteLineage => self.delete(Deletion::Lineage(id.lineage)),
            ObjectOp::SyncPool => self.learn_losses(),
            _ => {}
        }
        let (parts, mut context) = self.parts();
        parts.requests.start(ticket, request, memory, &mut context);
    }

    /// Closes the files that are being deleted, here and in the other backends of the pool.
    fn delete(&mut self, deletion: Deletion) {
        self.pool.sibling.deletes(deletion);
        self.forget(|known| deletion.has(known));
    }

    /// Closes the files that `which` selects: they are being deleted.
    fn forget(&mut self, which: impl Fn(&FileId) -> bool) {
        self.opens.forget(&which);
        self.logs.forget(&which);
        self.files.forget(which);
    }

    /// Handles a completion of the ring.
    fn on_ring(&mut self, token: Token, result: i32) {
        self.learn_losses();
        let Token { part, index } = token;
        let is_failed_sync = match part {
            Part::Transfers => self.transfers.is_failed_sync(index, result),
            Part::Syncs => result < 0,
            // Calls of threads only.
            Part::Opens | Part::Requests | Part::Logs => return,
        };
        if is_failed_sync {
            // Data of this file at least may be lost, and a sync of the pool that began before does not know that.
            self.requests.mark_lost();
            let of_one = is_of_one_file(&io::Error::from_raw_os_error(-result));
            let loss = if of_one { Loss::OfFile } else { Loss::Unsynced };
            self.pool.sibling.failed(loss);
            if !of_one {
                self.mark_unsynced_lost();
            }
        }
        let (mut parts, mut context) = self.parts();
        match part {
            Part::Transfers => {
                parts.transfers.on_ring(index, result, &mut context);
                parts.go_on_with_logs(&mut context);
            }
            _ => {
                let failed = sync_failure(result);
                parts.syncs.part_done(index, failed, context.replies);
            }
        }
    }

    /// Handles the result of a thread.
    fn on_thread(&mut self, token: Token, done: Done) {
        self.learn_losses();
        let Token { part, index } = token;
        let done = match done {
            Done::Opened(result) => return self.on_opened(index, result),
            Done::Log(result) => return self.on_log(index, result),
            Done::Replied(done) => done,
        };
        if done.is_err_and(|failed| failed.lost) {
            let of_pool = part == Part::Requests && self.requests.is_pool_sync(index);
            let loss = if of_pool {
                Loss::PoolSync
            } else {
                Loss::Unsynced
            };
            self.pool.sibling.failed(loss);
            self.mark_unsynced_lost();
        }
        let (mut parts, mut context) = self.parts();
        let result = done.map(drop).map_err(|failed| failed.code);
        match part {
            Part::Transfers => {
                parts.transfers.on_thread(index, result, &mut context);
                parts.go_on_with_logs(&mut context);
            }
            Part::Syncs => {
                let failed = result.err();
                parts.syncs.part_done(index, failed, context.replies);
            }
            Part::Requests => parts.requests.done(index, done, &mut context),
            // Their results are an open file, and the state of a log.
            Part::Opens | Part::Logs => {}
        }
    }

    fn on_opened(&mut self, index: usize, result: io::Result<Opened>) {
        let (mut parts, mut context) = self.parts();
        let Some((open, waiters)) = parts.opens.opened(index, result, &mut context) else {
            return;
        };
        for waiter in waiters {
            let Waiter {
                ticket,
                request,
                memory,
            } = waiter;
            let open = Rc::clone(&open);
            parts.start_on_open(ticket, &request, &memory, open, &mut context);
        }
        parts.go_on_with_logs(&mut context);
    }

    /// Handles the result of a thread's job on a log.
    fn on_log(&mut self, index: usize, done: Result<LogDone, Failed>) {
        if done.is_err_and(|failed| failed.lost) {
            self.pool.sibling.failed(Loss::Unsynced);
            self.mark_unsynced_lost();
        }
        let (mut parts, mut context) = self.parts();
        let Some((id, reply)) = context.logs.done(index, done) else {
            return;
        };
        if let Some((ticket, reply)) = reply {
            context.replies.push(ticket, reply);
        }
        parts.go_on_with_log(id, &mut context);
        parts.go_on_with_logs(&mut context);
    }

    /// Records losses of the pool's other backends: a failed sync of theirs may have dropped data of this one.
    fn learn_losses(&mut self) {
        let Some(loss) = self.pool.sibling.new_loss() else {
            return;
        };
        self.requests.mark_lost();
        if loss != Loss::OfFile {
            self.mark_unsynced_lost();
        }
        if loss == Loss::PoolSync {
            // The next sync of the pool reports it here, too.
            self.requests.suspect();
        }
    }

    /// A sync has failed, of any file: data that is not durable may be lost, also that of requests under way.
    fn mark_unsynced_lost(&mut self) {
        self.files.mark_unsynced_lost();
        self.transfers.lose_durable();
        self.syncs.mark_lost();
        self.requests.mark_lost();
    }

    /// The sync of a predecessor's writes has failed. A second sync might succeed, and hide the loss.
    pub(crate) fn suspect_all(&mut self) {
        self.files.suspect_all();
        self.logs.suspect_all();
        self.requests.suspect();
    }

    /// Pauses data writes, or resumes them, as the gate requires.
    fn follow_gate(&mut self) {
        let is_drained = || self.transfers.are_data_writes_drained();
        let resumed = self.throttle.follow_gate(self.seconds, is_drained);
        self.resume(resumed);
    }

    fn resume(&mut self, paused: Vec<usize>) {
        let (parts, mut context) = self.parts();
        parts.transfers.resume(paused, &mut context);
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
        Capabilities::EXCLUSIVE_LOCK
    }

    fn pool_report(&self) -> Option<PoolReport> {
        let [held, wanted] = self.throttle.reserve().figures();
        Some(PoolReport {
            access: self.pool.joined.report(),
            reserve: PoolReserve { held, wanted },
            owner: self.pool.owner.as_ref().map(Owner::text),
        })
    }

    fn failed_pool_syncs_elsewhere(&self) -> u64 {
        self.pool.sibling.failed_pool_syncs()
    }

    fn look(&mut self, now: Duration) {
        self.seconds = now.as_secs();
        self.opens.tick(self.seconds);
        self.transfers.tick(self.seconds);
        self.syncs.tick(self.seconds);
        self.requests.tick(self.seconds, &self.threads);
        self.logs.tick(self.seconds);
        for deletion in self.pool.sibling.take_deletions() {
            self.forget(|known| deletion.has(known));
        }
        let resumed = self.throttle.look(self.seconds);
        self.resume(resumed);
        self.throttle.grow_reserve(&self.threads);
        let ages = self.transfers.ring_ages().chain(self.syncs.ring_ages());
        self.source.spare_workers(spare_workers(ages));
    }

    fn waits(&self) -> Vec<Wait> {
        let layout = &self.layout;
        let on_files = self.transfers.waits(layout).chain(self.syncs.waits(layout));
        let others = self.opens.waits(layout).chain(self.requests.waits(layout));
        oldest(on_files.chain(others).chain(self.logs.waits(layout)))
    }

    fn written_before(&mut self, id: ObjectId) {
        self.files.written_before(id);
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        debug_assert!(request.flags & !FLAG_DURABLE == 0, "checked by the peer");
        let swapped = request.id.kind == ObjectKind::Head;
        let result = match request.op {
            // Small objects are changed by swaps only.
            ObjectOp::Read | ObjectOp::Write if swapped => Err(ErrorCode::Invalid),
            ObjectOp::Read | ObjectOp::Write => self.start_on_file(ticket, request, memory),
            ObjectOp::Sync if swapped => {
                self.replies.push(ticket, ObjectReply::done(0));
                Ok(())
            }
            ObjectOp::Append | ObjectOp::Seal if request.id.kind != ObjectKind::Log => {
                Err(ErrorCode::Invalid)
            }
            ObjectOp::Append | ObjectOp::Seal => self.start_on_file(ticket, request, memory),
            ObjectOp::Sync => {
                self.start_sync(ticket, request.id);
                Ok(())
            }
            ObjectOp::Create if swapped || request.id.kind == ObjectKind::Data => {
                Err(ErrorCode::Invalid)
            }
            ObjectOp::CompareAndSwap | ObjectOp::ReadSwapped if !swapped => Err(ErrorCode::Invalid),
            _ => {
                self.start_on_thread(ticket, request, memory);
                Ok(())
            }
        };
        if let Err(code) = result {
            self.replies.push(ticket, ObjectReply::failed(code));
        }
    }

    fn poll(&mut self) -> Option<(u64, ObjectReply)> {
        if let Some(reply) = self.replies.pop() {
            return Some(reply);
        }
        if self.throttle.is_on() {
            self.follow_gate();
        }
        while let Some(event) = self.source.next() {
            if event.token == DOORBELL {
                self.follow_gate();
                while let Some((token, done)) = self.threads.next_done() {
                    self.on_thread(token, done);
                }
            } else if let Some(token) = Token::from_bits(event.token) {
                self.on_ring(token, event.result);
            }
        }
        self.replies.pop()
    }
}

/// Faults that tests inject, which no disk can be made to show.
#[cfg(test)]
impl FileBackend {
    /// Simulates that the ring has moved `count` bytes of a transfer. Returns how much of it is then under way. `None`: the ring moves
    /// none.
    pub(crate) fn move_part(&mut self, count: i32) -> Option<u32> {
        let (index, _) = self.transfers.moving()?;
        let part = Part::Transfers;
        self.on_ring(Token { part, index }, count);
        self.transfers.moving().map(|(_, moved)| moved)
    }

    /// Whether a reply is ready.
    pub(crate) fn has_reply(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Simulates a failed sync of the pool.
    pub(crate) fn fail_pool_sync(&mut self) {
        let ticket = u64::MAX;
        let index = self.requests.insert_pool_sync(ticket, self.files.now());
        let failed = crate::errors::Failed::sync(&io::Error::from_raw_os_error(libc::EIO));
        let part = Part::Requests;
        self.on_thread(Token { part, index }, Done::Replied(Err(failed)));
        self.replies.forget(ticket);
    }
}
