//! Threads for calls that may take long, or for ever: jobs wait in queues, and each queue is processed in order.
//!
//! Invariants
//! - At most one thread at a time processes a queue, so a swap is atomic among swaps of its object, and a call that does not return blocks
//!   one thread and its own queue only. Queues are processed side by side, and the file system commits them together.
//! - A volume has two queues ([`JobQueue`]), so all [`THREADS_MAX`] threads are blocked only when [`THREADS_MAX`] / 2 volumes hang: then
//!   not single files hang, but the pool.
//! - Waiting syncs of the pool are merged into one: what each of them covers was completed before it was requested, so a sync that begins
//!   later covers it. If it fails, all of them fail.
//! - The number of jobs is bounded by the credits of the clients, and by the number of open files.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use archipelago_protocol::Lineage;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustc_hash::FxHashMap;

use crate::calls::Token;
use crate::heads::Heads;
use crate::jobs::{Done, Job, WorkerContext, run};
use crate::layout::Layout;
use crate::reserve::Reserve;

/// Threads of the volumes' queues: two for each of 32 volumes that hang. They are started when no thread is free for a job.
pub(crate) const THREADS_MAX: usize = 64;
/// Threads that are kept without work: swaps are synced one by one, and a takeover of all volumes of a node is at least one swap each.
const THREADS_KEPT: usize = 8;

/// A queue of jobs, which are done in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum JobQueue {
    /// Swaps, names and state of one lineage.
    Swaps(Lineage),
    /// Files of one lineage: opened, closed, changed at unaligned places.
    Files(Lineage),
    /// Jobs that concern the whole pool.
    Pool,
}

/// A job and the token for its result; `None`: no result is needed.
type Queued = (Option<Token>, Job);

#[derive(Debug, Default)]
struct PoolState {
    /// Queues with jobs that wait or are being done.
    queues: FxHashMap<JobQueue, VecDeque<Queued>>,
    /// Queues that no thread processes, in order.
    ready: VecDeque<JobQueue>,
    threads: Vec<JoinHandle<()>>,
    running: usize,
    idle: usize,
    ended: bool,
}

#[derive(Debug)]
struct PoolShared {
    state: Mutex<PoolState>,
    called: Condvar,
    name: &'static str,
    context: WorkerContext,
    doorbell: EventFd,
    done: Sender<(Token, Done)>,
    threads_max: usize,
}

impl PoolShared {
    fn state(&self) -> MutexGuard<'_, PoolState> {
        // No code panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None`: this thread ends.
    fn next(&self) -> Option<(JobQueue, Queued, Vec<Token>)> {
        let mut state = self.state();
        loop {
            while let Some(queue) = state.ready.pop_front() {
                let Some(jobs) = state.queues.get_mut(&queue) else {
                    continue;
                };
                let Some(first) = jobs.pop_front() else {
                    continue;
                };
                let others = if first.1.syncs_pool() {
                    take_pool_syncs(jobs)
                } else {
                    Vec::new()
                };
                return Some((queue, first, others));
            }
            if state.ended || state.idle >= THREADS_KEPT {
                state.running -= 1;
                return None;
            }
            state.idle += 1;
            state = self
                .called
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn work(&self) {
        while let Some((queue, (token, job), others)) = self.next() {
            let done = run(&self.context, job);
            // There is no receiver any more when the backend is being dropped.
            let send = |token, done| _ = self.done.send((token, done));
            if let Done::Replied(reply) = done {
                others
                    .into_iter()
                    .for_each(|token| send(token, Done::Replied(reply)));
            }
            if let Some(token) = token {
                send(token, done);
            }
            // The counter of an eventfd cannot overflow while a machine runs.
            let _rung = self.doorbell.write(1);
            let mut state = self.state();
            if state.queues.get(&queue).is_some_and(VecDeque::is_empty) {
                state.queues.remove(&queue);
            } else {
                state.ready.push_back(queue);
            }
        }
    }

    /// Appends `job` to `queue`.
    fn enqueue(self: &Arc<Self>, queue: JobQueue, token: Option<Token>, job: Job) {
        let mut state = self.state();
        if let Some(jobs) = state.queues.get_mut(&queue) {
            // A thread processes the queue, or it is in `ready`.
            return jobs.push_back((token, job));
        }
        state.queues.insert(queue, VecDeque::from([(token, job)]));
        state.ready.push_back(queue);
        if state.idle < state.ready.len()
            && state.running < self.threads_max
            && let Err(error) = self.start_thread(&mut state)
        {
            tracing::warn!("{}: no further thread: {error}", self.name);
        }
        drop(state);
        self.called.notify_one();
    }

    fn start_thread(self: &Arc<Self>, state: &mut PoolState) -> io::Result<()> {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || shared.work())?;
        state.threads.retain(|thread| !thread.is_finished());
        state.threads.push(thread);
        state.running += 1;
        Ok(())
    }
}

/// Removes the syncs of the pool from `jobs`, and keeps the others in their order. Returns the tokens of the syncs.
fn take_pool_syncs(jobs: &mut VecDeque<Queued>) -> Vec<Token> {
    let mut tokens = Vec::new();
    jobs.retain(|(token, job)| {
        let taken = job.syncs_pool();
        if taken {
            tokens.extend(*token);
        }
        !taken
    });
    tokens
}

/// The threads, with their queues and results.
#[derive(Debug)]
pub(crate) struct BlockingPool {
    shared: Arc<PoolShared>,
    done: Receiver<(Token, Done)>,
}

/// A sender of jobs whose results are not needed.
#[derive(Debug, Clone)]
pub(crate) struct JobSender(Arc<PoolShared>);

impl BlockingPool {
    /// At most `threads_max` threads called `name`; `heads` is the state of the heads that they swap.
    pub(crate) fn start(
        name: &'static str,
        threads_max: usize,
        layout: Layout,
        heads: Heads,
        reserve: Arc<Reserve>,
    ) -> io::Result<BlockingPool> {
        let (sender, done) = channel();
        let shared = Arc::new(PoolShared {
            state: Mutex::default(),
            called: Condvar::new(),
            name,
            context: WorkerContext::new(layout, heads, reserve),
            doorbell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            done: sender,
            threads_max,
        });
        let pool = BlockingPool { shared, done };
        // One thread at once, so that a shortage of threads is found at the start.
        pool.shared.start_thread(&mut pool.shared.state())?;
        Ok(pool)
    }

    /// Threads for a test.
    #[cfg(test)]
    pub(crate) fn for_test(threads_max: usize, layout: Layout) -> BlockingPool {
        let reserve = Arc::new(Reserve::open(&layout).expect("an eventfd"));
        BlockingPool::start("test", threads_max, layout, Heads::default(), reserve)
            .expect("a thread")
    }

    /// Becomes readable whenever a job is done.
    pub(crate) fn doorbell(&self) -> &EventFd {
        &self.shared.doorbell
    }

    /// Appends `job` to its queue; its result goes to `token`.
    pub(crate) fn send(&self, queue: JobQueue, token: Token, job: Job) {
        self.shared.enqueue(queue, Some(token), job);
    }

    /// A sender of jobs whose results are not needed.
    pub(crate) fn sender(&self) -> JobSender {
        JobSender(Arc::clone(&self.shared))
    }

    /// Steps done so far of jobs that consist of many calls.
    pub(crate) fn steps(&self) -> u64 {
        self.shared.context.progress.steps()
    }

    pub(crate) fn next_done(&self) -> Option<(Token, Done)> {
        self.done.try_recv().ok()
    }
}

impl JobSender {
    /// Appends `job` to its queue.
    pub(crate) fn send(&self, queue: JobQueue, job: Job) {
        self.0.enqueue(queue, None, job);
    }
}

impl Drop for BlockingPool {
    /// Waits for the running jobs, and does the waiting ones.
    fn drop(&mut self) {
        let threads = {
            let mut state = self.shared.state();
            state.ended = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.called.notify_all();
        for thread in threads {
            // The thread has no cause to panic. If it did, its jobs would have no results, which the process notices elsewhere.
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectRequest};

    use super::*;
    use crate::calls::Part;

    fn token(index: usize) -> Token {
        let part = Part::Requests;
        Token { part, index }
    }

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
        let mut jobs: VecDeque<Queued> = ops
            .into_iter()
            .map(job)
            .enumerate()
            .map(|(index, job)| (Some(token(index)), job))
            .collect();
        jobs.push_back((Some(token(4)), Job::Names(Lineage(1))));
        assert_eq!(take_pool_syncs(&mut jobs), [1, 3].map(token));
        let left: Vec<Token> = jobs.iter().filter_map(|(token, _)| *token).collect();
        assert_eq!(left, [0, 2, 4].map(token));
    }

    /// Waits for what is done next: its token.
    fn next(pool: &BlockingPool) -> usize {
        let (token, done) = pool.done.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(matches!(done, Done::Replied(Ok(_))), "{done:?}");
        token.index
    }

    #[test]
    fn a_call_that_hangs_keeps_its_own_queue_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let pool = BlockingPool::for_test(THREADS_MAX, layout);
        let hang = |queue| {
            let (held, ended) = channel();
            pool.send(queue, token(1000), Job::Wait(ended));
            held
        };
        // Swaps and files of as many volumes as there are threads for, less one thread.
        let mut held = Vec::new();
        for number in 1..THREADS_MAX / 2 {
            let lineage = Lineage(number as u128);
            held.push(hang(JobQueue::Swaps(lineage)));
            held.push(hang(JobQueue::Files(lineage)));
        }
        let queue = JobQueue::Swaps(Lineage(1));
        let names = Job::Names;
        pool.send(queue, token(1), names(Lineage::CATALOGUE));
        std::fs::create_dir_all(pool.shared.context.layout.lineage(Lineage(99))).unwrap();
        for index in 2..20 {
            let queue = JobQueue::Swaps(Lineage(99));
            pool.send(queue, token(index), names(Lineage(99)));
            assert_eq!(next(&pool), index);
        }
        // What waits behind a call is done when that has returned, and then the queue is as any other.
        std::fs::create_dir_all(pool.shared.context.layout.lineage(Lineage::CATALOGUE)).unwrap();
        held.clear();
        let mut tokens: Vec<usize> = (0..THREADS_MAX - 1).map(|_| next(&pool)).collect();
        tokens.sort_unstable();
        assert_eq!(tokens.first(), Some(&1));
        pool.send(queue, token(2), names(Lineage(99)));
        assert_eq!(next(&pool), 2);
    }
}
