//! The thread that serves one open file: takes what programs ask for, keeps the channel busy, answers.
//!
//! A thread for each open file: one whose storage hangs keeps nobody else waiting. What waits in the queue is bounded by the kernel's
//! limit of requests in flight, and by the programs that wait for theirs.
//!
//! Invariants
//! - Each request is answered once. When the channel of a volume that is kept ends, what was not answered is sent again over the next
//!   one, before anything newer; so is nothing else. Requests wait for that, in bounds ([`Outage`]), and fail then until it is back.
//! - A channel that is not kept, or that others may have followed, fails all that came over it, before a new one is opened.
//! - Writes that were lost fail the next flush.
//! - Requests that change the file are carried out together, but for one that changes a part of a sector: that one is alone.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use archipelago_protocol::{Access, ErrorCode};
use archipelago_runtime::SystemClock;
use archipelago_segment::{Finished, Request, SubmitError, VolumeClient};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::channel::{Channel, Return};
use crate::job::{Io, Job};
use crate::opener::{BUFFER_LEN, Opener};
use crate::operation::{Operation, Step};
use crate::outage::Outage;
use crate::pieces::Piece;
use crate::slab::Slab;

/// Milliseconds until a thread is asked for again that the kernel has refused.
const THREAD_RETRY_MS: u16 = 1000;

/// Bytes of a file, as all who use it see them.
pub(crate) type FileSize = Arc<AtomicU64>;

/// The queue of an open file. Its thread closes the file and ends when the last sender is dropped.
#[derive(Debug)]
pub(crate) struct IoThread {
    /// `None`: being dropped.
    jobs: Option<Sender<Job>>,
    doorbell: Arc<EventFd>,
}

impl IoThread {
    /// Starts the thread for what `opener` opens, whose requests wait for `wait_max` when its endpoint is away. Nothing is opened yet.
    ///
    /// # Errors
    /// What the kernel says: no descriptor, no thread.
    pub(crate) fn start(
        opener: Opener,
        size: FileSize,
        wait_max: Duration,
    ) -> std::io::Result<(IoThread, JoinHandle<()>)> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let doorbell = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (jobs, queue) = channel();
        let worker = Worker {
            channel: Channel::new(opener),
            size,
            queue,
            doorbell: Arc::clone(&doorbell),
            waiting: VecDeque::new(),
            begun: VecDeque::new(),
            operations: Slab::default(),
            steps: Slab::default(),
            unanswered: VecDeque::new(),
            changing: Changing::default(),
            outage: Outage::new(wait_max, SystemClock),
            unreported_loss: false,
            failures: 0,
        };
        let thread = std::thread::Builder::new().name("volume".to_owned());
        let thread = thread.spawn(move || worker.run())?;
        let jobs = Some(jobs);
        Ok((IoThread { jobs, doorbell }, thread))
    }

    /// Hands `job` over.
    pub(crate) fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread ends after its last sender only.
            let _sent = jobs.send(job);
            self.ring();
        }
    }

    fn ring(&self) {
        // A counter that is full is readable already.
        let _rung = self.doorbell.write(1);
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.jobs = None;
        self.ring();
    }
}

/// Operations under way that change the file.
#[derive(Debug, Default)]
struct Changing {
    count: usize,
    /// The one of them is alone.
    exclusive: bool,
}

impl Changing {
    fn may_begin(&self, exclusive: bool) -> bool {
        !self.exclusive && (self.count == 0 || !exclusive)
    }
}

/// A request in flight.
#[derive(Debug, Clone, Copy)]
struct Flight {
    operation: usize,
    piece: Piece,
    step: Step,
    /// A former channel has not answered it.
    resent: bool,
}

/// Whether a piece could be sent.
enum Sent {
    Yes,
    NoRoom,
    Gone,
}

struct Worker {
    channel: Channel,
    size: FileSize,
    queue: Receiver<Job>,
    doorbell: Arc<EventFd>,
    /// Taken from the queue, not begun.
    waiting: VecDeque<Job>,
    /// Operations of which some pieces have not begun.
    begun: VecDeque<usize>,
    operations: Slab<Operation>,
    /// By their tokens.
    steps: Slab<Flight>,
    /// In flight when the channel ended: sent again first.
    unanswered: VecDeque<Flight>,
    changing: Changing,
    outage: Outage,
    /// Acknowledged writes were lost and no flush has reported it: the next one fails.
    unreported_loss: bool,
    /// Operations that failed.
    failures: u64,
}

impl Worker {
    fn run(mut self) {
        let mut ending = false;
        loop {
            ending |= self.take_jobs();
            self.begin();
            self.send_pieces();
            if self.take_finished() || self.follow_channel() {
                continue;
            }
            let idle = self.operations.is_empty() && self.waiting.is_empty();
            if ending && idle {
                break;
            }
            // An open waits until nothing is in flight, which is so now.
            if self.channel.is_away() || !self.operations.is_empty() || self.waiting.is_empty() {
                self.sleep();
            }
        }
        if self.unreported_loss {
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
            self.finished(finished);
        }
        any
    }

    /// Follows the channel: its end, its return, the deadline of what waits for that. Whether anything has changed.
    fn follow_channel(&mut self) -> bool {
        if let Some(back) = self.channel.come_back(&self.doorbell) {
            self.came_back(back);
            return true;
        }
        if self.outage.is_over_limit() && !(self.unanswered.is_empty() && self.begun.is_empty()) {
            let (name, seconds) = (self.channel.name(), self.outage.limit().as_secs());
            tracing::error!("`{name}` is away for {seconds} s: its requests fail until it is back");
            self.fail_all();
            return true;
        }
        if self.channel.client().is_none_or(|client| !client.is_gone()) {
            return false;
        }
        let name = self.channel.name().clone();
        if self.channel.leave(&self.doorbell) {
            self.outage.begin();
            tracing::warn!("the channel of `{name}` has ended: its requests wait for the next one");
        } else {
            self.outage.end();
            self.fail_all();
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
                self.unreported_loss |= lost;
                let count = self.unanswered.len();
                let away = self.outage.back(count);
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
                self.outage.end();
                self.fail_all();
                // Every request of those who wrote fails from now on; who opens the file anew has lost nothing.
                self.unreported_loss = false;
            }
        }
    }

    /// Fails everything that has begun; nothing is in flight.
    fn fail_all(&mut self) {
        let unanswered = std::mem::take(&mut self.unanswered);
        let begun = std::mem::take(&mut self.begun);
        for flight in &unanswered {
            if let Some(operation) = self.operations.get_mut(flight.operation) {
                operation.ended(Err(ErrorCode::Unavailable));
            }
        }
        let unanswered = unanswered.into_iter().map(|flight| flight.operation);
        for index in unanswered.chain(begun) {
            if let Some(operation) = self.operations.get_mut(index) {
                operation.give_up(ErrorCode::Unavailable);
            }
            self.answer_done(index);
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
        match self.outage.left() {
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
                    } else if self.channel.is_away() && self.outage.is_over_limit() {
                        reply(Err(ErrorCode::Unavailable));
                    } else if self.channel.is_away() || !self.operations.is_empty() {
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
                        && !self.outage.is_over_limit() =>
                {
                    if let Some(io) = self.begin_io(io) {
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
            self.outage.begin();
        }
        match opened {
            Ok(size) => {
                // Relaxed: a number of its own, it orders nothing else.
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

    /// Begins `io`; gives it back if it has to wait.
    fn begin_io(&mut self, io: Io) -> Option<Io> {
        // Relaxed: as above.
        let size = self.size.load(Ordering::Relaxed);
        if let Some(exclusive) = Operation::would_change(&io)
            && !self.changing.may_begin(exclusive)
        {
            return Some(io);
        }
        let operation = Operation::begin(io, size, BUFFER_LEN)?;
        if operation.changes() {
            self.changing.count += 1;
            self.changing.exclusive = operation.is_exclusive();
        }
        let index = self.operations.insert(operation);
        self.begun.push_back(index);
        None
    }

    /// Sends as many pieces as there is room for.
    fn send_pieces(&mut self) {
        if self.channel.is_away() || !self.send_unanswered() {
            return;
        }
        while let Some(&index) = self.begun.front() {
            let piece = self
                .operations
                .get_mut(index)
                .and_then(|one| one.next_piece());
            let Some(piece) = piece else {
                self.begun.pop_front();
                self.answer_done(index);
                continue;
            };
            match self.send_piece(index, piece, false) {
                Sent::Yes => {
                    if let Some(operation) = self.operations.get_mut(index) {
                        operation.began();
                    }
                }
                Sent::NoRoom => return,
                Sent::Gone => {
                    if let Some(operation) = self.operations.get_mut(index) {
                        operation.give_up(ErrorCode::Unavailable);
                    }
                }
            }
        }
    }

    /// Sends again what the former channel has not answered; whether all of it is sent.
    fn send_unanswered(&mut self) -> bool {
        while let Some(&Flight {
            operation, piece, ..
        }) = self.unanswered.front()
        {
            // It counts as in flight all the while.
            if !matches!(self.send_piece(operation, piece, true), Sent::Yes) {
                return false;
            }
            self.unanswered.pop_front();
        }
        true
    }

    fn send_piece(&mut self, index: usize, piece: Piece, resent: bool) -> Sent {
        let disconnected = match self.channel.is_kept() {
            // It waits, and is sent over the next channel.
            true => Sent::NoRoom,
            false => Sent::Gone,
        };
        let Some(client) = self.channel.live() else {
            return disconnected;
        };
        let Some(operation) = self.operations.get_mut(index) else {
            return Sent::Gone;
        };
        let mut buffer = None;
        if operation.needs_buffer(piece) {
            buffer = client.buffers().acquire();
            if buffer.is_none() {
                return Sent::NoRoom;
            }
        }
        let (step, request) = operation.request(piece, buffer);
        let flight = Flight {
            operation: index,
            piece,
            step,
            resent,
        };
        let token = self.steps.insert(flight);
        match client.submit(token as u64, request) {
            Ok(()) => Sent::Yes,
            Err(refused) => {
                self.steps.remove(token);
                match refused {
                    SubmitError::Full(_) => Sent::NoRoom,
                    SubmitError::Gone(_) => disconnected,
                }
            }
        }
    }

    /// A request of the channel is done.
    fn finished(&mut self, finished: Finished) {
        let token = usize::try_from(finished.token).unwrap_or(usize::MAX);
        let Some(flight) = self.steps.remove(token) else {
            return;
        };
        let mut result = finished.result;
        if result == Err(ErrorCode::Unavailable)
            && self.channel.live().is_none()
            && self.channel.is_kept()
        {
            return self.unanswered.push_back(flight);
        }
        if flight.piece == Piece::Flush && result.is_ok() && self.unreported_loss {
            self.unreported_loss = false;
            result = Err(ErrorCode::SyncFailed);
        }
        let Some(operation) = self.operations.get_mut(flight.operation) else {
            return;
        };
        if result.is_ok()
            && let Some(next) = operation.stepped(flight.piece, flight.step, finished.buffer)
        {
            match self.send_step(flight, next) {
                Ok(()) => return,
                // From its first step on.
                Err(_gone) if self.channel.is_kept() => return self.unanswered.push_back(flight),
                Err(code) => result = Err(code),
            }
        }
        if flight.resent {
            self.outage.answered();
        }
        if let Some(operation) = self.operations.get_mut(flight.operation) {
            operation.ended(result);
            // A seek goes on behind what it has seen.
            if operation.next_piece().is_some() && !self.begun.contains(&flight.operation) {
                self.begun.push_back(flight.operation);
            }
        }
        self.answer_done(flight.operation);
    }

    /// Sends the second step of a piece, for which the first has just made room.
    fn send_step(&mut self, flight: Flight, request: Request) -> Result<(), ErrorCode> {
        let client = self.channel.live().ok_or(ErrorCode::Unavailable)?;
        let step = Step::WriteSector;
        let token = self.steps.insert(Flight { step, ..flight });
        client.submit(token as u64, request).map_err(|_refused| {
            self.steps.remove(token);
            ErrorCode::Unavailable
        })
    }

    /// Answers operation `index` if it is done.
    fn answer_done(&mut self, index: usize) {
        let done = self
            .operations
            .get_mut(index)
            .is_some_and(|one| one.is_done());
        if !done || self.begun.contains(&index) {
            return;
        }
        let Some(operation) = self.operations.remove(index) else {
            return;
        };
        if operation.changes() {
            self.changing.count -= 1;
            self.changing.exclusive = false;
        }
        if let Some(code) = operation.failure() {
            self.report(code);
        }
        operation.answer();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_a_part_of_a_sector_is_alone_among_changes() {
        let changing = |count, exclusive| Changing { count, exclusive };
        for (before, whole, part) in [
            (changing(0, false), true, true),
            (changing(3, false), true, false),
            (changing(1, true), false, false),
        ] {
            assert_eq!(before.may_begin(false), whole, "{before:?}");
            assert_eq!(before.may_begin(true), part, "{before:?}");
        }
    }
}
