//! The threads that may block on the pool's file system, and their jobs.
//!
//! | threads | jobs |
//! |---|---|
//! | general, many | requests of volumes: swaps, opens, closes, names, unaligned transfers; listings |
//! | syncer, one | syncs of the pool: one at a time; all waiting ones are merged |
//! | deleter, one | deletions, which take long and must not delay others |

use std::io;
use std::sync::Arc;

use archipelago_protocol::Lineage;
use archipelago_protocol::object::{ObjectOp, ObjectRequest};
use nix::sys::eventfd::EventFd;
use xseg::Span;

use crate::blocking_pool::{BlockingPool, JobQueue, JobSender, THREADS_MAX};
use crate::calls::Token;
use crate::heads::Heads;
use crate::jobs::{Done, Job};
use crate::layout::Layout;
use crate::reserve::Reserve;

/// The threads of a pool.
#[derive(Debug)]
pub(crate) struct Threads {
    general: BlockingPool,
    syncer: BlockingPool,
    deleter: BlockingPool,
}

impl Threads {
    /// Starts them; each gets what `heads` returns as its state of heads.
    pub(crate) fn start(
        layout: &Layout,
        heads: impl Fn() -> Heads,
        reserve: &Arc<Reserve>,
    ) -> io::Result<Threads> {
        let start = |name, threads_max| {
            let (layout, reserve) = (layout.clone(), Arc::clone(reserve));
            BlockingPool::start(name, threads_max, layout, heads(), reserve)
        };
        Ok(Threads {
            general: start("blocker-slow", THREADS_MAX)?,
            syncer: start("blocker-sync", 1)?,
            deleter: start("blocker-delete", 1)?,
        })
    }

    /// The descriptors that become readable when a job is done.
    pub(crate) fn doorbells(&self) -> [&EventFd; 3] {
        [&self.general, &self.syncer, &self.deleter].map(BlockingPool::doorbell)
    }

    /// Queues `job`, which concerns one volume; its result goes to `token`.
    pub(crate) fn send(&self, queue: JobQueue, token: Token, job: Job) {
        self.general.send(queue, token, job);
    }

    /// Makes the names of the files of `lineage` durable; the result goes to `token`.
    pub(crate) fn sync_names(&self, lineage: Lineage, token: Token) {
        self.send(JobQueue::Swaps(lineage), token, Job::Names(lineage));
    }

    /// A sender of jobs for the general threads whose results are not needed.
    pub(crate) fn sender(&self) -> JobSender {
        self.general.sender()
    }

    /// Queues a request that is not a transfer of data.
    pub(crate) fn send_request(&self, token: Token, request: &ObjectRequest, memory: &[Span]) {
        let (threads, queue) = match request.op {
            ObjectOp::Delete | ObjectOp::DeleteLineage | ObjectOp::Punch => {
                (&self.deleter, JobQueue::Pool)
            }
            ObjectOp::SyncPool => (&self.syncer, JobQueue::Pool),
            ObjectOp::List | ObjectOp::StatPool => (&self.general, JobQueue::Pool),
            _ => (&self.general, JobQueue::Swaps(request.id.lineage)),
        };
        let (request, memory) = (*request, memory.to_vec());
        threads.send(queue, token, Job::Request { request, memory });
    }

    /// The next result.
    pub(crate) fn next_done(&self) -> Option<(Token, Done)> {
        [&self.general, &self.syncer, &self.deleter]
            .into_iter()
            .find_map(BlockingPool::next_done)
    }

    /// Steps done of listings.
    pub(crate) fn listing_steps(&self) -> u64 {
        self.general.steps()
    }

    /// Steps done of deletions.
    pub(crate) fn deletion_steps(&self) -> u64 {
        self.deleter.steps()
    }
}
