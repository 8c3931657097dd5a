//! The io_uring glue.
//!
//! Invariants
//! - What a request points to (memory, vector, time) and its file are owned by its entry in the table of operations from
//!   before the request is pushed until its last completion has been seen.
//! - The ring is not given back before the table is empty; if that cannot be reached, the table is leaked.
//! - A ring that the kernel refuses to serve is leaked, with the table: what it has in the kernel may still complete.
//! - A slot of the table is reused only after the last completion of its request, so a completion's number is always
//!   that of the request it belongs to.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, TimeoutFlags, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::poll::{PollTimeout, poll};
use xseg::Span;

use crate::config::Config;
use crate::event::{Event, Queue};
use crate::failure::{Refusal, Refusals, RingFailure};
use crate::file::{Calls, File};
use crate::kept_files::KeptFiles;
use crate::load::{Kind, Load};
use crate::polling::Activity;
use crate::setup::set_up;
use crate::transfer::{Direction, address_of};
use crate::worker_limit::{Spare, WorkerLimit};
use crate::workers::{Workerless, start_first};

/// User data of requests whose completion nobody waits for.
const IGNORED: u64 = u64::MAX;
/// User data of the alarm that starts again what had no worker.
const START_AGAIN: u64 = u64::MAX - 1;
/// How often a request is tried again after EINTR or EAGAIN before the error is told.
const RETRIES_MAX: u8 = 64;
/// How often the end of the ring waits for outstanding requests, 100 ms each.
const DRAIN_WAITS_MAX: u32 = 300;
/// Vectors of addresses kept for reuse.
const VECTORS_KEPT_MAX: usize = 256;

/// Addresses of a scattered request, and what keeps them valid.
#[derive(Default)]
struct Vector {
    addresses: Vec<libc::iovec>,
    spans: Vec<Span>,
}

/// What a request needs to stay alive.
enum Keep {
    Nothing,
    Span(Span),
    Vector(Box<Vector>),
    Time { _time: Box<Timespec> },
    Watched { fd: OwnedFd, queued: Rc<Cell<bool>> },
}

impl Keep {
    /// Bytes of a read or write.
    fn bytes(&self) -> usize {
        match self {
            Keep::Span(span) => span.len(),
            Keep::Vector(vector) => vector.spans.iter().map(Span::len).sum(),
            Keep::Nothing | Keep::Time { .. } | Keep::Watched { .. } => 0,
        }
    }
}

struct Operation {
    queue: Queue,
    token: u64,
    kind: Kind,
    retries: u8,
    /// Tells this request from later ones in its slot.
    serial: u64,
    /// A watch that was cancelled: not armed again.
    cancelled: bool,
    entry: squeue::Entry,
    keep: Keep,
    _file: Option<File>,
}

pub(crate) struct Ring {
    /// Always there; an option so that a ring that cannot be drained can be leaked.
    ring: Option<IoUring>,
    operations: Vec<Option<Operation>>,
    free: Vec<u32>,
    load: Load,
    /// Requests that found the submission ring full.
    backlog: VecDeque<squeue::Entry>,
    #[expect(
        clippy::vec_box,
        reason = "the kernel reads them while the table may grow"
    )]
    vectors: Vec<Box<Vector>>,
    unsubmitted: usize,
    serial: u64,
    chunk: usize,
    kept_files: KeptFiles,
    worker_limit: WorkerLimit,
    workerless: Workerless,
    refusals: Refusals,
    /// The kernel has refused it for good.
    given_up: bool,
}

impl Ring {
    /// The ring of this thread. Falls back to fewer features on older kernels, and says so once.
    pub(crate) fn new(config: &Config) -> Result<Ring, RingFailure> {
        let entries = config.entries;
        let mut ring = set_up(entries)?;
        start_first(&mut ring)?;
        Ok(Ring {
            ring: Some(ring),
            operations: Vec::with_capacity(entries as usize),
            free: Vec::new(),
            load: Load::default(),
            backlog: VecDeque::new(),
            vectors: Vec::new(),
            unsubmitted: 0,
            serial: 0,
            chunk: config.submit_chunk.max(1),
            kept_files: KeptFiles::default(),
            worker_limit: WorkerLimit::default(),
            workerless: Workerless::default(),
            refusals: Refusals::default(),
            given_up: false,
        })
    }

    fn ring(&mut self) -> &mut IoUring {
        self.ring.as_mut().expect("taken only by drop")
    }

    pub(crate) fn load(&self) -> &Load {
        &self.load
    }

    /// What has been in the kernel since this was called before.
    pub(crate) fn activity(&mut self) -> Activity {
        self.load.activity()
    }

    /// Puts `fd` where it lives until the kernel has freed the ring, and closes it here.
    pub(crate) fn keep_file(&mut self, fd: OwnedFd) -> Result<(), RingFailure> {
        let ring = self.ring.as_ref().expect("taken only by drop");
        self.kept_files.keep(&ring.submitter(), fd)
    }

    /// Reads into or writes from `spans` in their order.
    pub(crate) fn transfer(
        &mut self,
        queue: &Queue,
        token: u64,
        file: &File,
        direction: Direction,
        spans: &[Span],
        offset: u64,
    ) {
        let fd = Fd(file.raw());
        let flags = direction.flags();
        let (entry, keep) = if let [span] = spans {
            let len = u32::try_from(span.len()).expect("a request is below 4 GiB");
            let address = span.address();
            let entry = match direction {
                Direction::Read => opcode::Read::new(fd, address, len).offset(offset).build(),
                Direction::Write { .. } => opcode::Write::new(fd, address, len)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
            };
            (entry, Keep::Span(span.clone()))
        } else {
            let mut vector = self.vectors.pop().unwrap_or_default();
            vector.spans.extend_from_slice(spans);
            vector.addresses.extend(spans.iter().map(address_of));
            let (first, count) = (vector.addresses.as_ptr(), vector.addresses.len());
            let count = u32::try_from(count).expect("at most 1024 spans");
            let entry = match direction {
                Direction::Read => opcode::Readv::new(fd, first, count).offset(offset).build(),
                Direction::Write { .. } => opcode::Writev::new(fd, first, count)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
            };
            (entry, Keep::Vector(vector))
        };
        let entry = match file.calls() {
            Calls::First => entry,
            Calls::Workers => entry.flags(squeue::Flags::ASYNC),
        };
        self.start(
            queue,
            token,
            Kind::of(direction),
            entry,
            keep,
            Some(file.clone()),
        );
    }

    /// Syncs the data of `file`, and what is needed to read it back.
    pub(crate) fn sync(&mut self, queue: &Queue, token: u64, file: &File) {
        let entry = opcode::Fsync::new(Fd(file.raw()))
            .flags(FsyncFlags::DATASYNC)
            .build();
        self.start(
            queue,
            token,
            Kind::Sync,
            entry,
            Keep::Nothing,
            Some(file.clone()),
        );
        // A sync is waited for, and runs on a worker: it gains nothing from a batch.
        self.submit();
    }

    /// Lets the kernel have `spare` workers more than it would: so many may be kept by calls that do not return.
    pub(crate) fn spare_workers(&mut self, spare: u32) {
        let ring = self.ring.as_ref().expect("taken only by drop");
        match self.worker_limit.set_spare(&ring.submitter(), spare) {
            Ok(Spare::Same) => {}
            Ok(Spare::More) => {
                // The kernel starts a worker when it is given something to do, not when it may have more.
                let nothing = opcode::Nop::new().build();
                let nothing = nothing.flags(squeue::Flags::ASYNC).user_data(IGNORED);
                self.push(nothing);
                self.submit();
            }
            // Older than 5.15: others wait for those that hang once there are too many of them.
            Err(error) => tracing::debug!(%error, "the limit of io_uring's workers"),
        }
    }

    pub(crate) fn timeout(&mut self, queue: &Queue, token: u64, deadline: Duration) {
        let time = Box::new(timespec(deadline));
        let entry = opcode::Timeout::new(&raw const *time)
            .flags(TimeoutFlags::ABS)
            .build();
        self.start(
            queue,
            token,
            Kind::Standing,
            entry,
            Keep::Time { _time: time },
            None,
        );
    }

    /// Watches `fd` until [`Ring::unwatch`]; number and serial of the watch.
    pub(crate) fn watch(&mut self, queue: &Queue, token: u64, fd: OwnedFd) -> (u32, u64) {
        let entry = watch_entry(&fd);
        let queued = Rc::new(Cell::new(false));
        let keep = Keep::Watched { fd, queued };
        let number = self.start(queue, token, Kind::Standing, entry, keep, None);
        (number, self.serial)
    }

    /// Ends the watch, unless it has ended by itself.
    pub(crate) fn unwatch(&mut self, (number, serial): (u32, u64)) {
        if let Some(Some(operation)) = self.operations.get_mut(number as usize)
            && operation.serial == serial
        {
            operation.cancelled = true;
            self.cancel(u64::from(number));
            self.submit();
        }
    }

    /// One event with `token` when the descriptor of the watch can be written; at once if the watch has ended by itself.
    pub(crate) fn await_writable(
        &mut self,
        queue: &Queue,
        token: u64,
        (number, serial): (u32, u64),
    ) {
        let watched = self
            .operations
            .get(number as usize)
            .and_then(Option::as_ref);
        let descriptor = watched
            .filter(|operation| operation.serial == serial)
            .and_then(|operation| match &operation.keep {
                Keep::Watched { fd, .. } => Some(fd.as_raw_fd()),
                _ => None,
            });
        let Some(descriptor) = descriptor else {
            let ended = Event {
                token,
                result: i32::from(libc::POLLHUP),
            };
            queue.borrow_mut().push_back((ended, None));
            return;
        };
        let events = u32::try_from(libc::POLLOUT).expect("a mask is positive");
        let entry = opcode::PollAdd::new(Fd(descriptor), events).build();
        // The kernel takes the file with the entry, which goes to it before the descriptor is closed: a watch ends by a request
        // behind this one.
        self.start(queue, token, Kind::Standing, entry, Keep::Nothing, None);
    }

    /// The first command for a request of a ublk queue, as [`Ring::command`]. Never a reason to go to the kernel: a death between
    /// two calls would leave a queue that is served in part, which Linux 6.12 neither cancels nor recovers.
    pub(crate) fn first_command(
        &mut self,
        queue: &Queue,
        token: u64,
        file: &File,
        entry: squeue::Entry,
        buffer: &Span,
    ) {
        let (keep, file) = (Keep::Span(buffer.clone()), Some(file.clone()));
        let (_number, entry) = self.begin(queue, token, Kind::Command, entry, keep, file);
        self.enqueue(entry);
    }

    /// Gives the kernel a command of a ublk queue, which keeps `buffer` and `file` until it completes. It may do so at any time.
    pub(crate) fn command(
        &mut self,
        queue: &Queue,
        token: u64,
        file: &File,
        entry: squeue::Entry,
        buffer: &Span,
    ) {
        let (keep, file) = (Keep::Span(buffer.clone()), Some(file.clone()));
        self.start(queue, token, Kind::Command, entry, keep, file);
    }

    fn cancel(&mut self, number: u64) {
        let cancel = CancelBuilder::user_data(number);
        self.push(opcode::AsyncCancel2::new(cancel).build().user_data(IGNORED));
    }

    fn start(
        &mut self,
        queue: &Queue,
        token: u64,
        kind: Kind,
        entry: squeue::Entry,
        keep: Keep,
        file: Option<File>,
    ) -> u32 {
        let (number, entry) = self.begin(queue, token, kind, entry, keep, file);
        self.push(entry);
        number
    }

    /// Notes a request: its number, and what is to be pushed.
    fn begin(
        &mut self,
        queue: &Queue,
        token: u64,
        kind: Kind,
        entry: squeue::Entry,
        keep: Keep,
        file: Option<File>,
    ) -> (u32, squeue::Entry) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.operations.push(None);
            u32::try_from(self.operations.len() - 1).expect("fewer than 2^32 requests in flight")
        });
        let entry = entry.user_data(u64::from(number));
        self.load.begin(kind, keep.bytes());
        self.serial += 1;
        self.operations[number as usize] = Some(Operation {
            queue: Rc::clone(queue),
            token,
            kind,
            retries: 0,
            serial: self.serial,
            cancelled: false,
            entry: entry.clone(),
            keep,
            _file: file,
        });
        (number, entry)
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.enqueue(entry);
        self.unsubmitted += 1;
        if self.unsubmitted >= self.chunk {
            self.submit();
        }
    }

    /// Puts it where the next call into the kernel takes it from.
    fn enqueue(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.push_now(&entry) {
            self.backlog.push_back(entry);
        }
    }

    /// `false`: the submission ring is full.
    fn push_now(&mut self, entry: &squeue::Entry) -> bool {
        let mut submission = self.ring().submission();
        // SAFETY: whatever `entry` points to is owned by its slot in `operations` until its last completion (module
        // invariants), at an address that does not move: a mapping, a boxed time or the heap part of a vector.
        unsafe { submission.push(entry) }.is_ok()
    }

    /// Hands what was pushed to the kernel, and lets it finish deferred work.
    pub(crate) fn submit(&mut self) {
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

    /// Moves requests from the backlog into the submission ring; `false`: there was no room.
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

    /// Submits what was pushed, if anything was.
    pub(crate) fn submit_pending(&mut self) {
        if self.has_pending() {
            self.submit();
        }
    }

    /// Whether requests were pushed and not submitted.
    pub(crate) fn has_pending(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring().submission().is_empty()
    }

    /// Takes over what has completed; whether something had. What was pushed may stay for the next call into the kernel.
    pub(crate) fn collect(&mut self) -> bool {
        let submission = self.ring().submission();
        let has_work = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if has_work {
            self.submit();
        }
        self.reap()
    }

    /// Submits what was pushed, and sleeps until something completes or `longest` has passed: one call into the kernel.
    pub(crate) fn wait(&mut self, longest: Duration) {
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
        self.reap();
    }

    /// Gives back neither the ring nor what its requests point to.
    fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.operations));
        std::mem::forget(self.ring.take());
    }

    fn reap(&mut self) -> bool {
        let mut any = false;
        loop {
            let next = self.ring().completion().next();
            let Some(completion) = next else { break };
            any = true;
            self.finish(&completion);
        }
        if any {
            self.refusals.end();
        }
        any
    }

    fn finish(&mut self, completion: &cqueue::Entry) {
        let (number, result) = (completion.user_data(), completion.result());
        match number {
            IGNORED => return,
            START_AGAIN => return self.start_again(),
            _ => {}
        }
        let slot = usize::try_from(number).expect("numbers are indices");
        let operation = self.operations[slot]
            .as_mut()
            .expect("completions belong to requests");
        let event = Event {
            token: operation.token,
            result,
        };
        if let Keep::Watched { fd, queued } = &operation.keep {
            if result != -libc::ECANCELED && !queued.replace(true) {
                operation
                    .queue
                    .borrow_mut()
                    .push_back((event, Some(Rc::clone(queued))));
            }
            let ended = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
            if cqueue::more(completion.flags()) {
                return;
            }
            if result >= 0 && result & i32::from(ended) == 0 && !operation.cancelled {
                let entry = watch_entry(fd).user_data(number);
                self.push(entry);
                return;
            }
        } else {
            let again = [-libc::EINTR, -libc::EAGAIN].contains(&result);
            if again && operation.kind.is_call() && operation.retries < RETRIES_MAX {
                operation.retries += 1;
                let entry = operation.entry.clone();
                self.push(entry);
                return;
            }
            if Workerless::is_meant_by(result) && operation.kind.is_call() {
                let slot = u32::try_from(slot).expect("numbers are u32");
                if let Some(alarm) = self.workerless.add(slot) {
                    self.push(alarm.user_data(START_AGAIN));
                }
                return;
            }
            operation.queue.borrow_mut().push_back((event, None));
        }
        let operation = self.operations[slot].take().expect("looked at above");
        self.load.end(operation.kind);
        self.free
            .push(u32::try_from(slot).expect("numbers are u32"));
        if let Keep::Vector(mut vector) = operation.keep
            && self.vectors.len() < VECTORS_KEPT_MAX
        {
            vector.addresses.clear();
            vector.spans.clear();
            self.vectors.push(vector);
        }
    }

    /// Starts again what found no worker.
    fn start_again(&mut self) {
        let (slots, alarm) = self.workerless.on_alarm();
        for slot in slots {
            let operation = self.operations[slot as usize].as_ref();
            let entry = operation.expect("it was not completed").entry.clone();
            self.push(entry);
        }
        if let Some(alarm) = alarm {
            self.push(alarm.user_data(START_AGAIN));
        }
    }
}

impl Drop for Ring {
    /// Waits for what is in the kernel: it may still write into memory that goes with the table.
    fn drop(&mut self) {
        for number in 0..self.operations.len() {
            if let Some(operation) = &mut self.operations[number]
                && operation.kind == Kind::Standing
            {
                operation.cancelled = true;
                self.cancel(number as u64);
            }
        }
        for _ in 0..DRAIN_WAITS_MAX {
            self.submit();
            self.reap();
            if self.load.is_empty() {
                // A command ends when its device is stopped, or with the process: what it points to stays until then.
                if self.load.has_commands() {
                    self.leak();
                }
                return;
            }
            // Said already, and it will not get better.
            if self.given_up {
                self.leak();
                return;
            }
            self.wait(Duration::from_millis(100));
        }
        tracing::error!(load = ?self.load, "requests do not end: their memory is never given back");
        self.leak();
    }
}

fn watch_entry(fd: &OwnedFd) -> squeue::Entry {
    opcode::PollAdd::new(Fd(fd.as_raw_fd()), u32::from(libc::POLLIN.cast_unsigned()))
        .multi(true)
        .build()
}

fn timespec(time: Duration) -> Timespec {
    Timespec::new()
        .sec(time.as_secs())
        .nsec(time.subsec_nanos())
}

#[cfg(test)]
mod tests;
