//! Threads for calls that may take long, or for ever: jobs stand in lines, and each line is done in order.
//!
//! Invariants
//! - One thread at a time works at a line, so a swap is atomic among swaps of its object, and a call that does not return
//!   keeps one thread and its own line, nobody else's. Lines go on side by side, and the file system commits them together.
//! - A volume has two lines ([`Line`]), so [`THREADS_MAX`] threads are all kept only when [`THREADS_MAX`] / 2 volumes hang:
//!   that is no longer a file that hangs, but the pool.
//! - Syncs of the pool that wait in their line are one sync: what it covers was completed before any of them was asked
//!   for, so a sync that begins later covers it. If it fails, it fails for all.
//! - Jobs are bounded by the credits of the clients whose requests they are, and by the files that are open.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use archipelago_protocol::Lineage;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustc_hash::FxHashMap;

use crate::heads::Heads;
use crate::jobs::{Done, Ground, Job, work};
use crate::layout::Layout;
use crate::reserve::Reserve;

/// Threads of the volumes' lines: two for each of 32 volumes that hang. They are started when there is nobody to do a job.
pub(crate) const THREADS_MAX: usize = 64;
/// As many are kept without work: swaps are synced one by one, and a takeover of all volumes of a node is at least one
/// swap each.
const THREADS_KEPT: usize = 8;

/// What waits for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Line {
    /// Swaps, names and looks of one lineage.
    Swaps(Lineage),
    /// Its files: opened, closed, changed in odd places.
    Files(Lineage),
    /// What concerns the pool.
    Pool,
}

/// A job and where its answer belongs; `None`: nobody waits.
type Queued = (Option<usize>, Job);

#[derive(Debug, Default)]
struct State {
    /// Lines with jobs that wait or are being done.
    lines: FxHashMap<Line, VecDeque<Queued>>,
    /// Those that nobody works at, in order.
    ready: VecDeque<Line>,
    threads: Vec<JoinHandle<()>>,
    running: usize,
    idle: usize,
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    called: Condvar,
    name: &'static str,
    ground: Ground,
    doorbell: EventFd,
    done: Sender<(usize, Done)>,
    threads_max: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None`: this thread ends.
    fn next(&self) -> Option<(Line, Queued, Vec<usize>)> {
        let mut state = self.state();
        loop {
            while let Some(line) = state.ready.pop_front() {
                let Some(jobs) = state.lines.get_mut(&line) else {
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
                return Some((line, first, others));
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
        while let Some((line, (token, job), others)) = self.next() {
            let done = work(&self.ground, job);
            // Nobody listens any more when the backend is being dropped.
            let tell = |token, done| _ = self.done.send((token, done));
            if let Done::Replied(reply) = done {
                others
                    .into_iter()
                    .for_each(|token| tell(token, Done::Replied(reply)));
            }
            if let Some(token) = token {
                tell(token, done);
            }
            // The counter of an eventfd cannot overflow in the life of a machine.
            let _rung = self.doorbell.write(1);
            let mut state = self.state();
            if state.lines.get(&line).is_some_and(VecDeque::is_empty) {
                state.lines.remove(&line);
            } else {
                state.ready.push_back(line);
            }
        }
    }
}

/// Takes the syncs of the pool out of `jobs`, and leaves the others in their order: their tokens.
fn take_pool_syncs(jobs: &mut VecDeque<Queued>) -> Vec<usize> {
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

/// The threads, and the two ways to them.
#[derive(Debug)]
pub(crate) struct Slow {
    shared: Arc<Shared>,
    done: Receiver<(usize, Done)>,
}

/// A way to the threads for jobs that nobody waits for.
#[derive(Debug, Clone)]
pub(crate) struct Sending(Arc<Shared>);

impl Slow {
    /// At most `threads_max` threads called `name`; `heads` is what they know of those that they swap.
    pub(crate) fn start(
        name: &'static str,
        threads_max: usize,
        layout: Layout,
        heads: Heads,
        reserve: Arc<Reserve>,
    ) -> io::Result<Slow> {
        let (sender, done) = channel();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            called: Condvar::new(),
            name,
            ground: Ground::new(layout, heads, reserve),
            doorbell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            done: sender,
            threads_max,
        });
        let slow = Slow { shared, done };
        // One at once: that there can be none is known at the start.
        slow.sending().thread(&mut slow.shared.state())?;
        Ok(slow)
    }

    /// The threads of a test.
    #[cfg(test)]
    pub(crate) fn for_test(threads_max: usize, layout: Layout) -> Slow {
        let reserve = Arc::new(Reserve::open(&layout).expect("an eventfd"));
        Slow::start("test", threads_max, layout, Heads::default(), reserve).expect("a thread")
    }

    /// Rung whenever a job is done.
    pub(crate) fn doorbell(&self) -> &EventFd {
        &self.shared.doorbell
    }

    pub(crate) fn send(&self, line: Line, token: usize, job: Job) {
        self.sending().queue(line, Some(token), job);
    }

    pub(crate) fn sending(&self) -> Sending {
        Sending(Arc::clone(&self.shared))
    }

    /// The room that is set aside for metadata.
    pub(crate) fn reserve(&self) -> &Reserve {
        &self.shared.ground.reserve
    }

    /// Steps done so far of jobs that consist of many calls.
    pub(crate) fn steps(&self) -> u64 {
        self.shared.ground.steps.load(Ordering::Relaxed)
    }

    pub(crate) fn next_done(&self) -> Option<(usize, Done)> {
        self.done.try_recv().ok()
    }
}

impl Sending {
    /// Has `job` done behind those of its line.
    pub(crate) fn send(&self, line: Line, job: Job) {
        self.queue(line, None, job);
    }

    fn queue(&self, line: Line, token: Option<usize>, job: Job) {
        let mut state = self.0.state();
        if let Some(jobs) = state.lines.get_mut(&line) {
            // Somebody works at it, or it is among those that are ready.
            return jobs.push_back((token, job));
        }
        state.lines.insert(line, VecDeque::from([(token, job)]));
        state.ready.push_back(line);
        if state.idle < state.ready.len()
            && state.running < self.0.threads_max
            && let Err(error) = self.thread(&mut state)
        {
            tracing::warn!("{}: no further thread: {error}", self.0.name);
        }
        drop(state);
        self.0.called.notify_one();
    }

    fn thread(&self, state: &mut State) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new()
            .name(self.0.name.to_owned())
            .spawn(move || shared.work())?;
        state.threads.retain(|thread| !thread.is_finished());
        state.threads.push(thread);
        state.running += 1;
        Ok(())
    }
}

impl Drop for Slow {
    /// Waits for what is being done, and does what waits.
    fn drop(&mut self) {
        let threads = {
            let mut state = self.shared.state();
            state.ended = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.called.notify_all();
        for thread in threads {
            // It has no reason to panic; if it did, its jobs have no answers, which the process notices elsewhere.
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectRequest};

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
        let mut jobs: VecDeque<Queued> = ops
            .into_iter()
            .map(job)
            .enumerate()
            .map(|(token, job)| (Some(token), job))
            .collect();
        jobs.push_back((Some(4), Job::Names(Lineage(1))));
        assert_eq!(take_pool_syncs(&mut jobs), [1, 3]);
        let left: Vec<usize> = jobs.iter().filter_map(|(token, _)| *token).collect();
        assert_eq!(left, [0, 2, 4]);
    }

    /// Waits for what is done next: its token.
    fn next(slow: &Slow) -> usize {
        let (token, done) = slow.done.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(matches!(done, Done::Replied(Ok(_))), "{done:?}");
        token
    }

    #[test]
    fn a_call_that_hangs_keeps_its_own_line_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let slow = Slow::for_test(THREADS_MAX, layout);
        let hang = |line, token| {
            let (let_go, told) = channel();
            slow.send(line, token, Job::Wait(told));
            let_go
        };
        // Swaps and files of as many volumes as there are threads for, less one thread.
        let mut held = Vec::new();
        for number in 1..THREADS_MAX / 2 {
            let lineage = Lineage(number as u128);
            held.push(hang(Line::Swaps(lineage), 1000));
            held.push(hang(Line::Files(lineage), 1000));
        }
        let line = Line::Swaps(Lineage(1));
        let names = |lineage| Job::Names(lineage);
        slow.send(line, 1, names(Lineage::CATALOGUE));
        std::fs::create_dir_all(slow.shared.ground.layout.lineage(Lineage(99))).unwrap();
        for token in 2..20 {
            slow.send(Line::Swaps(Lineage(99)), token, names(Lineage(99)));
            assert_eq!(next(&slow), token);
        }
        // What waits behind a call is done when that has returned, and then the line is as any other.
        std::fs::create_dir_all(slow.shared.ground.layout.lineage(Lineage::CATALOGUE)).unwrap();
        held.clear();
        let mut tokens: Vec<usize> = (0..THREADS_MAX - 1).map(|_| next(&slow)).collect();
        tokens.sort_unstable();
        assert_eq!(tokens.first(), Some(&1));
        slow.send(line, 2, names(Lineage(99)));
        assert_eq!(next(&slow), 2);
    }
}
