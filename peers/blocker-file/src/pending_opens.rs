//! Files that are being opened, and the requests that wait for them.
//!
//! A thread opens a file; then requests on it go on in their order. Without a free descriptor they wait, and the open is tried again.

use std::io;
use std::rc::Rc;

use archipelago_protocol::control::Wait;
use archipelago_protocol::object::{ObjectOp, ObjectReply, ObjectRequest};
use rustc_hash::FxHashMap;
use xseg::Span;

use crate::blocking_pool::JobQueue;
use crate::calls::{Calls, Part, Token};
use crate::context::Context;
use crate::descriptors::{Starved, is_exhausted, pause};
use crate::errors::code_of;
use crate::jobs::Job;
use crate::layout::{FileId, Layout};
use crate::open_file::OpenFile;
use crate::open_job::{Missing, OpenJob, Opened};
use crate::stall_detector::wait_on;

/// A request that waits for its file.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) ticket: u64,
    pub(crate) request: ObjectRequest,
    pub(crate) memory: Vec<Span>,
}

impl Waiter {
    /// Only a write creates a file.
    fn missing(&self) -> Missing {
        match self.request.op {
            ObjectOp::Write => Missing::Create,
            _ => Missing::Refuse,
        }
    }
}

/// A file that is being opened, and the requests that wait for it.
#[derive(Debug)]
struct PendingOpen {
    id: FileId,
    missing: Missing,
    /// The file was deleted meanwhile.
    deleted: bool,
    /// The number of tries that found no free descriptor, and the episode that they belong to.
    starved: Option<(u32, Starved)>,
    waiters: Vec<Waiter>,
}

/// The files of a pool that are being opened.
#[derive(Debug)]
pub(crate) struct PendingOpens {
    calls: Calls<PendingOpen>,
    by_file: FxHashMap<FileId, usize>,
}

/// The token of the open at `index`.
fn token(index: usize) -> Token {
    let part = Part::Opens;
    Token { part, index }
}

impl PendingOpens {
    /// No opens yet, at the time `seconds`.
    pub(crate) fn new(seconds: u64) -> Self {
        PendingOpens {
            calls: Calls::new(seconds),
            by_file: FxHashMap::default(),
        }
    }

    /// Sets the time.
    pub(crate) fn tick(&mut self, seconds: u64) {
        self.calls.tick(seconds);
    }

    /// Queues `waiter` until `id` is open.
    pub(crate) fn wait(&mut self, id: FileId, waiter: Waiter, context: &Context<'_>) {
        let known = self.by_file.get(&id);
        if let Some(pending) = known.and_then(|index| self.calls.get_mut(*index)) {
            return pending.waiters.push(waiter);
        }
        let missing = waiter.missing();
        let index = self.calls.insert(PendingOpen {
            id,
            missing,
            deleted: false,
            starved: None,
            waiters: vec![waiter],
        });
        self.by_file.insert(id, index);
        let job = context.files.open_job(id, missing);
        send(index, job, context);
    }

    /// Handles the result of the open at `index`. Returns the open file and the requests that waited for it; requests that fail with it are
    /// answered.
    pub(crate) fn opened(
        &mut self,
        index: usize,
        result: io::Result<Opened>,
        context: &mut Context<'_>,
    ) -> Option<(Rc<OpenFile>, Vec<Waiter>)> {
        let result = match result {
            Err(error) if is_exhausted(&error) && self.open_again(index, &error, context) => {
                return None;
            }
            result => result,
        };
        let pending = self.calls.remove(index)?;
        let id = pending.id;
        self.by_file.remove(&id);
        match result {
            Ok(opened) => {
                let closing = context.threads.sender();
                let open = context.files.opened(id, opened, closing, pending.deleted);
                Some((open, pending.waiters))
            }
            Err(error) => {
                self.failed(pending, &error, context);
                None
            }
        }
    }

    fn failed(&mut self, pending: PendingOpen, error: &io::Error, context: &mut Context<'_>) {
        let PendingOpen { id, missing, .. } = pending;
        if missing == Missing::Create {
            context.files.half_created(id);
        }
        let not_there = error.kind() == io::ErrorKind::NotFound;
        for waiter in pending.waiters {
            let reply = match waiter.missing() {
                // A write came while an open without creation was under way.
                Missing::Create if not_there && missing == Missing::Refuse => {
                    self.wait(id, waiter, context);
                    continue;
                }
                _ => ObjectReply::failed(code_of(error)),
            };
            context.replies.push(waiter.ticket, reply);
        }
    }

    /// No descriptor was free: closes idle files, and tries once more. Requests wait meanwhile. Returns whether it tries again.
    fn open_again(&mut self, index: usize, error: &io::Error, context: &mut Context<'_>) -> bool {
        let Some(pending) = self.calls.get_mut(index) else {
            return false;
        };
        if pending.deleted {
            return false;
        }
        let (tries, starved) = match pending.starved.take() {
            Some((tries, starved)) => (tries + 1, starved),
            None => (0, Starved::new(error)),
        };
        pending.starved = Some((tries, starved));
        let (id, missing) = (pending.id, pending.missing);
        if missing == Missing::Create {
            context.files.half_created(id);
        }
        context.files.close_some_idle();
        let job = OpenJob {
            pause: pause(tries),
            ..context.files.open_job(id, missing)
        };
        send(index, job, context);
        true
    }

    /// The files that `which` selects are being deleted: the requests that wait for such a file are the last to use it.
    pub(crate) fn forget(&mut self, which: impl Fn(&FileId) -> bool) {
        for pending in self.calls.iter_mut() {
            pending.deleted |= which(&pending.id);
        }
    }

    /// The calls under way, to be reported.
    pub(crate) fn waits<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = Wait> {
        let calls = self.calls.ages();
        calls.map(|(age, pending)| wait_on("open of", pending.id, layout, age))
    }
}

/// Has a thread do `job`.
fn send(index: usize, job: OpenJob, context: &Context<'_>) {
    let queue = JobQueue::Files(job.id.object.lineage);
    context.threads.send(queue, token(index), Job::Open(job));
}
