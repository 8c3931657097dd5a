//! The thread that serves one open file: takes what programs ask for, follows the channel, sleeps. Requests under way are `requests`.
//!
//! Invariants
//! - Jobs begin in the order in which they came. An open for more waits until nothing is under way.
//! - A channel that is not kept, or that others may have followed, fails all that came over it, before a new one is opened.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use archipelago_kept_volume::{Channel, Opener, Outage, Return};
use archipelago_protocol::{Access, ErrorCode};
use archipelago_runtime::SystemClock;
use archipelago_segment::VolumeClient;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::job::Job;
use crate::requests::Requests;

/// Bytes of a file, as all who use it see them.
pub(crate) type FileSize = Arc<AtomicU64>;

/// Milliseconds until a thread is asked for again that the kernel has refused.
const THREAD_RETRY_MS: u16 = 1000;

/// What the thread of an open file works on.
pub(crate) struct Worker {
    channel: Channel,
    size: FileSize,
    queue: Receiver<Job>,
    doorbell: Arc<EventFd>,
    /// Taken from the queue, not begun.
    waiting: VecDeque<Job>,
    requests: Requests<SystemClock>,
    /// Requests that failed.
    failures: u64,
}

impl Worker {
    /// Serves what comes through `queue`, whose sender rings `doorbell`; see [`IoThread::start`](crate::io_thread::IoThread::start).
    pub(crate) fn new(
        opener: Opener,
        size: FileSize,
        queue: Receiver<Job>,
        doorbell: Arc<EventFd>,
        wait_max: Duration,
    ) -> Worker {
        Worker {
            channel: Channel::new(opener),
            size,
            queue,
            doorbell,
            waiting: VecDeque::new(),
            requests: Requests::new(Outage::new(wait_max, SystemClock)),
            failures: 0,
        }
    }

    /// Serves until the queue has no sender any more, then closes the file.
    pub(crate) fn run(mut self) {
        let mut ending = false;
        loop {
            ending |= self.take_jobs();
            self.begin();
            self.requests.send(&mut self.channel);
            let changed = self.take_finished() || self.follow_channel();
            self.report_failures();
            if changed {
                continue;
            }
            let idle = self.requests.is_empty() && self.waiting.is_empty();
            if ending && idle {
                break;
            }
            // An open waits until nothing is in flight, which is so now.
            if self.channel.is_away() || !self.requests.is_empty() || self.waiting.is_empty() {
                self.sleep();
            }
        }
        if self.requests.has_unreported_loss() {
            let name = self.channel.name();
            tracing::error!(
                "`{name}`: written data was lost, and nobody has asked for a sync since"
            );
        }
        if let Err(error) = self.channel.close() {
            let name = self.channel.name();
            tracing::error!(
                "closing `{name}`: {error}: what was written since the last fsync may be lost"
            );
        }
    }

    /// Takes what is done; whether anything was.
    fn take_finished(&mut self) -> bool {
        let mut any = false;
        while let Some(finished) = self.channel.client().and_then(VolumeClient::next) {
            any = true;
            self.requests.finished(finished, &mut self.channel);
        }
        any
    }

    /// Follows the channel: its end, its return, the deadline of what waits for that. Whether anything has changed.
    fn follow_channel(&mut self) -> bool {
        if let Some(back) = self.channel.come_back(&self.doorbell) {
            self.came_back(back);
            return true;
        }
        if self.requests.have_waited_too_long() {
            let (name, limit) = (self.channel.name(), self.requests.outage().limit());
            let seconds = limit.as_secs();
            tracing::error!("`{name}` is away for {seconds} s: its requests fail until it is back");
            self.requests.fail_all();
            return true;
        }
        if self.channel.client().is_none_or(|client| !client.is_gone()) {
            return false;
        }
        let name = self.channel.name().clone();
        if self.channel.leave(&self.doorbell) {
            self.requests.channel_left();
            tracing::warn!("the channel of `{name}` has ended: its requests wait for the next one");
        } else {
            self.requests.channel_ended();
        }
        true
    }

    fn came_back(&mut self, back: Return) {
        let name = self.channel.name();
        match back {
            Return::Live { size, lost } => {
                // The volume may have grown since the node has said this, and nobody has shrunk what this process keeps.
                // Relaxed: a number of its own, it orders nothing else.
                self.size.fetch_max(size, Ordering::Relaxed);
                let (away, count) = self.requests.channel_returned(lost);
                tracing::info!("`{name}` is back after {away:?}: {count} requests are sent again");
                if lost {
                    tracing::error!("`{name}`: written data was lost; the next sync fails");
                }
            }
            Return::Ended(error) => {
                tracing::error!(
                    "`{name}` is not served any more to who has it open: {error} ({})",
                    error.hint
                );
                self.requests.channel_ended();
                // Every request of those who wrote fails from now on; who opens the file anew has lost nothing.
                self.requests.forget_loss();
            }
        }
    }

    /// Takes what has come; whether nothing will come any more.
    fn take_jobs(&mut self) -> bool {
        // Nothing to read is fine.
        let _silenced = self.doorbell.read();
        loop {
            match self.queue.try_recv() {
                Ok(job) => self.waiting.push_back(job),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn sleep(&mut self) {
        let ready = match self.channel.client() {
            Some(client) => !client.prepare_sleep(),
            None => false,
        };
        if !ready {
            let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let (doorbell, longest) = (readable(self.doorbell.as_fd()), self.sleep_max());
            // A wait that a signal ends early is begun again.
            let _woken = match self.channel.descriptor() {
                Some(channel) => poll(&mut [doorbell, readable(channel)], longest),
                None => poll(&mut [doorbell], longest),
            };
        }
        if let Some(client) = self.channel.client() {
            client.wake();
        }
    }

    /// How long to sleep at most: until requests wait no more.
    fn sleep_max(&self) -> PollTimeout {
        match self.requests.outage().left() {
            _ if self.channel.wants_thread() => THREAD_RETRY_MS.into(),
            None | Some(Duration::ZERO) => PollTimeout::NONE,
            // Behind the moment, not a part of a millisecond before it. A longer sleep is cut, and begun again.
            Some(left) => {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        }
    }

    /// Begins what has come, in its order.
    fn begin(&mut self) {
        while let Some(job) = self.waiting.pop_front() {
            match job {
                Job::Open { access, reply } => {
                    if let Some(incarnation) = self.channel.serves(access) {
                        reply(Ok(incarnation));
                    } else if self.channel.is_away() && self.requests.outage().is_over_limit() {
                        reply(Err(ErrorCode::Unavailable));
                    } else if self.channel.is_away() || !self.requests.is_empty() {
                        return self.waiting.push_front(Job::Open { access, reply });
                    } else {
                        let opened = self.open(access);
                        let serves = opened.and_then(|()| {
                            let serves = self.channel.serves(access);
                            serves.ok_or(ErrorCode::Unavailable)
                        });
                        reply(serves);
                    }
                }
                Job::Io { incarnation, io }
                    if self.channel.incarnation() == Some(incarnation)
                        && !self.requests.outage().is_over_limit() =>
                {
                    // Relaxed: a number of its own, it orders nothing else.
                    let size = self.size.load(Ordering::Relaxed);
                    if let Some(io) = self.requests.begin(io, size) {
                        return self.waiting.push_front(Job::Io { incarnation, io });
                    }
                }
                Job::Io { io, .. } => {
                    self.report(ErrorCode::Unavailable);
                    io.fail(ErrorCode::Unavailable);
                }
            }
        }
    }

    fn open(&mut self, access: Access) -> Result<(), ErrorCode> {
        let opened = self.channel.open(access, &self.doorbell);
        if self.channel.is_away() {
            self.requests.channel_left();
        }
        match opened {
            Ok(size) => {
                // Relaxed: as above.
                self.size.store(size, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                let name = self.channel.name();
                tracing::warn!("opening `{name}`: {error} ({})", error.hint);
                Err(error.code)
            }
        }
    }

    fn report_failures(&mut self) {
        while let Some(code) = self.requests.next_failure() {
            self.report(code);
        }
    }

    /// Logs failures: the first, and then ever fewer.
    fn report(&mut self, code: ErrorCode) {
        self.failures += 1;
        if self.failures.is_power_of_two() {
            let (name, count) = (self.channel.name(), self.failures);
            tracing::error!(
                "`{name}`: a program got an error, failure {count} of this file: {code}"
            );
        }
    }
}
