//! Requests that a thread carries out as a whole: swaps, listings, deletions, states, and syncs of the pool.

use archipelago_protocol::control::Wait;
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{ErrorCode, Lineage};
use xseg::Span;

use crate::calls::{Calls, Part, Token};
use crate::context::Context;
use crate::errors::Failed;
use crate::layout::{FileId, Layout};
use crate::stall_detector::{Steps, wait_on};
use crate::sync_state::LogicalTime;
use crate::threads::Threads;

/// A request that a thread carries out.
#[derive(Debug)]
enum JobRequest {
    /// A sync of the pool.
    SyncPool {
        ticket: u64,
        /// The logical time of its beginning: it covers all earlier writes.
        began: LogicalTime,
        /// Another sync has failed meanwhile, and may have dropped data that this one covers.
        lost: bool,
    },
    /// Any other request.
    Other {
        ticket: u64,
        op: ObjectOp,
        id: ObjectId,
    },
}

/// The requests that threads carry out.
#[derive(Debug)]
pub(crate) struct JobRequests {
    calls: Calls<JobRequest>,
    /// Monotonic time, as last reported.
    seconds: u64,
    listings: Steps,
    deletions: Steps,
    pool_syncs: u64,
    /// A sync of the pool failed without a request to report that to: the next one fails.
    unreported_loss: bool,
}

impl JobRequests {
    /// No requests yet, at the time `seconds`.
    pub(crate) fn new(seconds: u64) -> Self {
        JobRequests {
            calls: Calls::new(seconds),
            seconds,
            listings: Steps::default(),
            deletions: Steps::default(),
            pool_syncs: 0,
            unreported_loss: false,
        }
    }

    /// Sets the time.
    pub(crate) fn tick(&mut self, seconds: u64, threads: &Threads) {
        self.seconds = seconds;
        self.calls.tick(seconds);
        self.listings.look(threads.listing_steps(), seconds);
        self.deletions.look(threads.deletion_steps(), seconds);
    }

    /// Syncs of the pool so far.
    pub(crate) fn pool_syncs(&self) -> u64 {
        self.pool_syncs
    }

    /// Records that a sync of the pool failed without a request to report that to: the next one fails.
    pub(crate) fn suspect(&mut self) {
        self.unreported_loss = true;
    }

    /// Whether the request at `index` is a sync of the pool.
    pub(crate) fn is_pool_sync(&self, index: usize) -> bool {
        matches!(self.calls.get(index), Some(JobRequest::SyncPool { .. }))
    }

    /// Has a thread carry out `request`.
    pub(crate) fn start(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
        context: &mut Context<'_>,
    ) {
        let call = match request.op {
            ObjectOp::SyncPool if std::mem::take(&mut self.unreported_loss) => {
                let failed = ObjectReply::failed(ErrorCode::SyncFailed);
                return context.replies.push(ticket, failed);
            }
            ObjectOp::SyncPool => {
                self.pool_syncs += 1;
                let began = context.files.now();
                JobRequest::SyncPool {
                    ticket,
                    began,
                    lost: false,
                }
            }
            op => JobRequest::Other {
                ticket,
                op,
                id: request.id,
            },
        };
        let index = self.calls.insert(call);
        let token = Token {
            part: Part::Requests,
            index,
        };
        context.threads.send_request(token, request, memory);
    }

    /// Handles the result of the request at `index`.
    pub(crate) fn done(
        &mut self,
        index: usize,
        done: Result<ObjectReply, Failed>,
        context: &mut Context<'_>,
    ) {
        let done = done.map_err(|failed| failed.code);
        let (ticket, done) = match self.calls.remove(index) {
            Some(JobRequest::SyncPool { ticket, lost, .. }) if lost => {
                (ticket, done.and(Err(ErrorCode::SyncFailed)))
            }
            Some(JobRequest::SyncPool { ticket, began, .. }) => {
                if done.is_ok() {
                    context.files.pool_synced(began);
                }
                (ticket, done)
            }
            Some(JobRequest::Other { ticket, .. }) => (ticket, done),
            None => return,
        };
        let reply = done.unwrap_or_else(ObjectReply::failed);
        context.replies.push(ticket, reply);
    }

    /// Records that a sync failed, of any file: the syncs of the pool that are under way fail, too.
    pub(crate) fn mark_lost(&mut self) {
        for call in self.calls.iter_mut() {
            if let JobRequest::SyncPool { lost, .. } = call {
                *lost = true;
            }
        }
    }

    /// The calls under way, to be reported.
    pub(crate) fn waits<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = Wait> {
        let calls = self.calls.ages();
        calls.map(|(age, request)| self.wait(request, age, layout))
    }

    fn wait(&self, request: &JobRequest, age: u64, layout: &Layout) -> Wait {
        let pool = layout.directory().display();
        let (lineage, what, seconds) = match request {
            JobRequest::SyncPool { .. } => (Lineage::CATALOGUE, format!("sync of {pool}"), age),
            JobRequest::Other { op, id, .. } => match op {
                ObjectOp::List => {
                    let age = self.listings.age(age, self.seconds);
                    (Lineage::CATALOGUE, format!("listing of {pool}"), age)
                }
                ObjectOp::StatPool => (Lineage::CATALOGUE, format!("look at {pool}"), age),
                ObjectOp::DeleteLineage | ObjectOp::Delete | ObjectOp::Punch => {
                    let age = self.deletions.age(age, self.seconds);
                    let path = layout.lineage(id.lineage);
                    (id.lineage, format!("deletion in {}", path.display()), age)
                }
                ObjectOp::ReadSwapped => {
                    return wait_on("read of", FileId::locate(*id, 0).0, layout, age);
                }
                _ => return wait_on("swap of", FileId::locate(*id, 0).0, layout, age),
            },
        };
        Wait {
            lineage,
            what,
            seconds,
        }
    }

    /// Begins a sync of the pool that no thread carries out; returns its place.
    #[cfg(test)]
    pub(crate) fn insert_pool_sync(&mut self, ticket: u64, began: LogicalTime) -> usize {
        self.calls.insert(JobRequest::SyncPool {
            ticket,
            began,
            lost: false,
        })
    }
}
