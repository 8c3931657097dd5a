//! The pair of rings that is shared with the kernel, and the calls into it.
//!
//! Entries that find the submission ring full wait in a backlog, so that a push always succeeds. A ring that the kernel
//! refuses to serve for good is *given up*: no further calls are made.

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
    /// Always there; an option so that a ring that cannot be drained can be leaked.
    ring: Option<IoUring>,
    /// Entries that found the submission ring full.
    backlog: VecDeque<squeue::Entry>,
    /// Entries pushed since the last call.
    unsubmitted: usize,
    /// Entries that make a call.
    chunk: usize,
    refusals: Refusals,
    /// The kernel has refused it for good.
    given_up: bool,
}

impl Uring {
    /// The ring of this thread. Falls back to fewer features on older kernels, and logs that once.
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

    /// Pushes an entry, and submits once a chunk of them has come together.
    ///
    /// # Safety
    /// What `entry` points to stays valid, at its address, until its last completion.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: passed on to the caller.
        unsafe { self.enqueue(entry) };
        self.unsubmitted += 1;
        if self.unsubmitted >= self.chunk {
            self.submit();
        }
    }

    /// Puts an entry where the next call into the kernel takes it from.
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

    /// Hands what was pushed to the kernel, and lets it finish deferred work.
    pub(super) fn submit(&mut self) {
        while !self.given_up {
            match self.ring().submit() {
                Ok(_) => self.refusals.end(),
                // Too many completions wait, or no memory. What was not taken stays in the ring.
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

    /// The kernel has refused `io_uring_enter`: what was not taken stays for the next turn, if there is one.
    ///
    /// # Panics
    /// With a [`RingFailure`], if the refusal stays: nothing that this thread hosts can go on.
    fn refused(&mut self, error: io::Error) {
        match self.refusals.refused(error.raw_os_error()) {
            Refusal::Expected => {}
            Refusal::Again(pause) => {
                if let Ok(pause) = PollTimeout::try_from(pause)
                    && pause != PollTimeout::ZERO
                {
                    // Whatever ends it.
                    let _paused = poll(&mut [], pause);
                }
            }
            Refusal::Final => {
                self.given_up = true;
                // What unwinds already drops peers, and with them watches of a ring that has failed before.
                if !std::thread::panicking() {
                    std::panic::panic_any(RingFailure::new("io_uring_enter", error));
                }
            }
        }
    }

    /// Moves entries from the backlog into the submission ring; `false`: there was no room.
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

    /// Whether entries were pushed and not submitted.
    pub(super) fn has_pending(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring().submission().is_empty()
    }

    /// Whether the kernel completes nothing more before a call: it has deferred work, or completions that found no room.
    pub(super) fn has_kernel_work(&mut self) -> bool {
        let submission = self.ring().submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Submits what was pushed, and sleeps until something completes or `longest` has passed: one call into the kernel.
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

    /// The next completion that is there.
    pub(super) fn next_completion(&mut self) -> Option<cqueue::Entry> {
        let next = self.ring().completion().next();
        if next.is_some() {
            self.refusals.end();
        }
        next
    }

    /// Gives the ring never back; nothing may be called after it.
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
