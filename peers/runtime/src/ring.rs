//! Requests of a thread's io_uring, from their start to their last completion.
//!
//! Invariants
//! - The entry of a request in the table of operations owns what the request points to (memory, vector, time) and its file, from before the
//!   request is pushed until its last completion has been seen.
//! - The ring is not freed before the table is empty; if the table cannot be emptied, it is leaked.
//! - A ring that the kernel refuses to serve is leaked together with the table: its requests in the kernel may still complete.
//! - A slot of the table is reused only after the last completion of its request, so the number in a completion always belongs to the right
//!   request.

mod operation;
mod uring;

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, FsyncFlags, TimeoutFlags};
use io_uring::{cqueue, opcode, squeue};
use xseg::Span;

use crate::config::Config;
use crate::event::{Event, Queue};
use crate::failure::RingFailure;
use crate::file::{Calls, File};
use crate::kept_files::KeptFiles;
use crate::load::{Kind, Load};
use crate::polling::Activity;
use crate::transfer::{Direction, address_of};
use crate::worker_limit::{Spare, WorkerLimit};
use crate::workers::Workerless;

use operation::{Keep, Operation, Vector};
use uring::{Uring, timespec};

/// User data of requests whose completion is ignored.
const IGNORED: u64 = u64::MAX;
/// User data of the alarm after which requests that had no worker are started again.
const START_AGAIN: u64 = u64::MAX - 1;
/// How often a request is tried again after EINTR or EAGAIN before the error is reported.
const RETRIES_MAX: u8 = 64;
/// How often the end of the ring waits for outstanding requests, 100 ms each.
const DRAIN_WAITS_MAX: u32 = 300;
/// Vectors of addresses kept for reuse.
const VECTORS_KEPT_MAX: usize = 256;

pub(crate) struct Ring {
    uring: Uring,
    operations: Vec<Option<Operation>>,
    free: Vec<u32>,
    load: Load,
    #[expect(
        clippy::vec_box,
        reason = "the kernel reads them while the table may grow"
    )]
    vectors: Vec<Box<Vector>>,
    serial: u64,
    kept_files: KeptFiles,
    worker_limit: WorkerLimit,
    workerless: Workerless,
}

impl Ring {
    /// The ring of this thread. Falls back to fewer features on older kernels, and logs this once.
    pub(crate) fn new(config: &Config) -> Result<Ring, RingFailure> {
        Ok(Ring {
            uring: Uring::new(config)?,
            operations: Vec::with_capacity(config.entries as usize),
            free: Vec::new(),
            load: Load::default(),
            vectors: Vec::new(),
            serial: 0,
            kept_files: KeptFiles::default(),
            worker_limit: WorkerLimit::default(),
            workerless: Workerless::default(),
        })
    }

    pub(crate) fn load(&self) -> &Load {
        &self.load
    }

    /// A read or write of `bytes` begins outside the kernel.
    pub(crate) fn begin_elsewhere(&mut self, bytes: usize) {
        self.load.begin(Kind::Elsewhere, bytes);
    }

    /// A read or write outside the kernel has ended.
    pub(crate) fn end_elsewhere(&mut self) {
        self.load.end(Kind::Elsewhere);
    }

    /// Requests in the kernel or elsewhere, now and since the last call.
    pub(crate) fn activity(&mut self) -> Activity {
        self.load.activity()
    }

    /// Puts `fd` into the ring's file table, where it stays until the kernel has freed the ring, and closes the descriptor of this process.
    pub(crate) fn keep_file(&mut self, fd: OwnedFd) -> Result<(), RingFailure> {
        self.kept_files.keep(&self.uring.submitter(), fd)
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

    /// Syncs the data of `file`, and the metadata that is needed to read it back.
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
        // Somebody waits for a sync, and it runs on a worker: it gains nothing from a batch.
        self.submit();
    }

    /// Raises the kernel's limit of workers by `spare`: so many may be occupied by calls that do not return.
    pub(crate) fn spare_workers(&mut self, spare: u32) {
        let submitter = self.uring.submitter();
        match self.worker_limit.set_spare(&submitter, spare) {
            Ok(Spare::Same) => {}
            Ok(Spare::More) => {
                // The kernel starts a worker when it gets a request, not when the limit is raised.
                let nothing = opcode::Nop::new().build();
                let nothing = nothing.flags(squeue::Flags::ASYNC).user_data(IGNORED);
                self.push(nothing);
                self.submit();
            }
            // Before 5.15 there is no limit to raise: once too many calls hang, other calls wait for them.
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

    /// Watches `fd` until [`Ring::unwatch`]; returns the number and serial of the watch.
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

    /// One event with `token` when the descriptor of the watch becomes writable; at once if the watch has ended by itself.
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
        // The kernel takes the file when it takes the entry. That is before the descriptor is closed: a watch ends by a request that is
        // submitted after this one.
        self.start(queue, token, Kind::Standing, entry, Keep::Nothing, None);
    }

    /// The first command for a request of a ublk queue, as in [`Ring::command`]. It never causes a call into the kernel: if the process
    /// died between two calls, part of the queue would be served, and Linux 6.12 neither cancels nor recovers such a queue.
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
        // SAFETY: as in [`Ring::push`].
        unsafe { self.uring.enqueue(entry) };
    }

    /// Pushes a command of a ublk queue, which keeps `buffer` and `file` until it completes. The kernel may complete it at any time.
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

    /// Records a request; returns its number, and the entry to push.
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
        // SAFETY: whatever `entry` points to is owned by its slot in `operations` until its last completion (module
        // invariants), at an address that does not move: a mapping, a boxed time or the heap part of a vector; or by
        // `workerless`.
        unsafe { self.uring.push(entry) };
    }

    /// Submits what was pushed to the kernel, and lets the kernel finish deferred work.
    pub(crate) fn submit(&mut self) {
        self.uring.submit();
    }

    /// Submits what was pushed, if anything was.
    pub(crate) fn submit_pending(&mut self) {
        if self.has_pending() {
            self.submit();
        }
    }

    /// Whether requests were pushed but not submitted.
    pub(crate) fn has_pending(&mut self) -> bool {
        self.uring.has_pending()
    }

    /// Takes over completions; returns whether there were any. What was pushed may stay until the next call into the kernel.
    pub(crate) fn collect(&mut self) -> bool {
        if self.uring.has_kernel_work() {
            self.submit();
        }
        self.reap()
    }

    /// Submits what was pushed, and sleeps until something completes or `longest` has passed, in one call into the kernel.
    pub(crate) fn wait(&mut self, longest: Duration) {
        self.uring.wait(longest);
        self.reap();
    }

    /// Frees neither the ring nor what its requests point to.
    fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.operations));
        self.uring.leak();
    }

    fn reap(&mut self) -> bool {
        let mut any = false;
        loop {
            let Some(completion) = self.uring.next_completion() else {
                return any;
            };
            any = true;
            self.finish(&completion);
        }
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
        let operation = self.operations[slot].take().expect("borrowed above");
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

    /// Starts the requests again that had no worker.
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
    /// Waits for the requests in the kernel: they may still write into memory that the table owns.
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
                // A command ends when its device is stopped, or with the process; until then, what it points to must stay.
                if self.load.has_commands() {
                    self.leak();
                    return;
                }
                return self.kept_files.close(&self.uring.submitter());
            }
            // The failure is logged already, and a later call would fail too.
            if self.uring.is_given_up() {
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

#[cfg(test)]
mod tests;
