//! The pair of rings shared with the kernel, and the calls into the kernel.
//!
//! Entries that do not fit into the submission ring wait in a backlog, so a push always succeeds. A ring that the kernel refuses to serve
//! permanently is *given up*: no further calls are made.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue, squeue};
use nix::poll::{PollTimeout, poll};

use crate::config::Config;
use crate::failure::{Refusal, Refusals, RingFailure};
use crate::setup::set_up;
use crate::workers::start_first;

pub(super) struct Uring {
    /// `None` only after the ring was leaked, because it could not be drained.
    ring: Option<IoUring>,
    /// Entries that did not fit into the submission ring.
    backlog: VecDeque<squeue::Entry>,
    /// Entries pushed since the last call.
    unsubmitted: usize,
    /// Pushed entries that cause a call.
    chunk: usize,
    refusals: Refusals,
    /// The kernel has refused the ring permanently.
    given_up: bool,
}

impl Uring {
    /// The ring of this thread. Falls back to fewer features on older kernels, and logs this once.
    pub(super) fn new(config: &Config) -> Result<Uring, RingFailure> {
        let mut ring = set_up(config.entries)?;
        start_first(&mut ring)?;
        Ok(Uring {
            ring: Some(ring),
            backlog: VecDeque::new(),
            unsubmitted: 0,
            chunk: config.submit_chunk.max(1),
            refusals: Refusals::default(),
            given_up: false,
        })
    }

    fn ring(&mut self) -> &mut IoUring {
        self.ring.as_mut().expect("taken only by `leak`")
    }

    pub(super) fn submitter(&self) -> Submitter<'_> {
        let ring = self.ring.as_ref().expect("taken only by `leak`");
        ring.submitter()
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// Pushes an entry, and submits once a chunk of entries has been pushed.
    ///
    /// # Safety
    /// What `entry` points to must stay valid at its address until the last completion of the entry.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller guarantees it.
        unsafe { self.enqueue(entry) };
        self.unsubmitted += 1;
        if self.unsubmitted >= self.chunk {
            self.submit();
        }
    }

    /// Adds an entry that the next call submits.
    ///
    /// # Safety
    /// As [`Uring::push`].
    pub(super) unsafe fn enqueue(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.push_now(&entry) {
            self.backlog.push_back(entry);
        }
    }

    /// `false`: the submission ring is full.
    fn push_now(&mut self, entry: &squeue::Entry) -> bool {
        let mut submission = self.ring().submission();
        // SAFETY: `entry` came through `enqueue`, whose caller keeps what it points to.
        unsafe { submission.push(entry) }.is_ok()
    }

    /// Submits what was pushed to the kernel, and lets the kernel finish deferred work.
    pub(super) fn submit(&mut self) {
        while !self.given_up {
            match self.ring().submit() {
                Ok(_) => self.refusals.end(),
                // Too many completions wait, or memory is short. Entries that the kernel did not take stay in the ring.
                Err(error) => {
                    self.refused(error);
                    break;
                }
            }
            if self.backlog.is_empty() || !self.refill() {
                break;
            }
        }
        self.unsubmitted = 0;
    }

    /// The kernel refused `io_uring_enter`: entries that it did not take stay for the next turn, if there is one.
    ///
    /// # Panics
    /// With a [`RingFailure`], if the refusal is final: nothing that this thread hosts can continue.
    fn refused(&mut self, error: io::Error) {
        match self.refusals.refused(error.raw_os_error()) {
            Refusal::Expected => {}
            Refusal::Again(pause) => {
                if let Ok(pause) = PollTimeout::try_from(pause)
                    && pause != PollTimeout::ZERO
                {
                    // The result does not matter: the pause may end early.
                    let _paused = poll(&mut [], pause);
                }
            }
            Refusal::Final => {
                self.given_up = true;
                // A thread that unwinds drops peers and their watches, on a ring that has failed before.
                if !std::thread::panicking() {
                    std::panic::panic_any(RingFailure::new("io_uring_enter", error));
                }
            }
        }
    }

    /// Moves entries from the backlog into the submission ring; `false`: there was not room for all.
    fn refill(&mut self) -> bool {
        let mut moved = false;
        while let Some(entry) = self.backlog.pop_front() {
            if !self.push_now(&entry) {
                self.backlog.push_front(entry);
                break;
            }
            moved = true;
        }
        moved
    }

    /// Whether entries were pushed but not submitted.
    pub(super) fn has_pending(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring().submission().is_empty()
    }

    /// Whether the kernel needs a call before it completes more: it has deferred work, or completions that did not fit.
    pub(super) fn has_kernel_work(&mut self) -> bool {
        let submission = self.ring().submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Submits what was pushed, and sleeps until something completes or `longest` has passed, in one call into the kernel.
    pub(super) fn wait(&mut self, longest: Duration) {
        if !self.backlog.is_empty() {
            self.submit();
        }
        if self.given_up {
            return;
        }
        self.unsubmitted = 0;
        let time = timespec(longest);
        let arguments = SubmitArgs::new().timespec(&time);
        let result = self.ring().submitter().submit_with_args(1, &arguments);
        match result {
            Ok(_) => self.refusals.end(),
            Err(error) => self.refused(error),
        }
    }

    /// The next completion, if there is one.
    pub(super) fn next_completion(&mut self) -> Option<cqueue::Entry> {
        let next = self.ring().completion().next();
        if next.is_some() {
            self.refusals.end();
        }
        next
    }

    /// Never frees the ring; nothing may be called afterwards.
    pub(super) fn leak(&mut self) {
        std::mem::forget(self.ring.take());
    }

    /// Entries in the submission ring.
    #[cfg(test)]
    pub(super) fn submission_len(&mut self) -> usize {
        self.ring().submission().len()
    }
}

pub(super) fn timespec(time: Duration) -> Timespec {
    Timespec::new()
        .sec(time.as_secs())
        .nsec(time.subsec_nanos())
}
