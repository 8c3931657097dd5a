//! How a peer does I/O: it submits requests and collects events; no call blocks.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::Duration;

use xseg::Span;

use crate::event::{Event, Queue};
use crate::failure::RingFailure;
use crate::file::File;
use crate::ring::Ring;
use crate::transfer::{Direction, transfer_now};
use crate::ublk::UblkQueue;

/// Whether a write is durable when it completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Durable after a later sync.
    Later,
    /// Durable when completed (`RWF_DSYNC`).
    Now,
}

impl Durability {
    fn direction(self) -> Direction {
        Direction::Write {
            durable: self == Durability::Now,
        }
    }
}

/// A peer's access to its reactor's io_uring. Clones share one queue of events; each peer uses a source of its own.
///
/// The runtime keeps memory and file of a request alive until the request completes, also if the source is dropped.
#[derive(Clone)]
pub struct Source {
    ring: Rc<RefCell<Ring>>,
    queue: Queue,
}

impl Source {
    pub(crate) fn new(ring: &Rc<RefCell<Ring>>) -> Self {
        Source {
            ring: Rc::clone(ring),
            queue: Queue::default(),
        }
    }

    /// Reads into `spans`, in their order, from `offset` on. May be short, like `preadv`.
    pub fn read(&self, file: &File, spans: &[Span], offset: u64, token: u64) {
        let mut ring = self.ring.borrow_mut();
        ring.transfer(&self.queue, token, file, Direction::Read, spans, offset);
    }

    /// Writes `spans`, in their order, at `offset`. May be short, like `pwritev`.
    pub fn write(
        &self,
        file: &File,
        spans: &[Span],
        offset: u64,
        durability: Durability,
        token: u64,
    ) {
        let mut ring = self.ring.borrow_mut();
        ring.transfer(
            &self.queue,
            token,
            file,
            durability.direction(),
            spans,
            offset,
        );
    }

    /// `fdatasync` on a kernel worker.
    pub fn sync(&self, file: &File, token: u64) {
        self.ring.borrow_mut().sync(&self.queue, token, file);
    }

    /// Reads immediately, on this thread: for file systems where that only copies memory.
    ///
    /// # Errors
    /// The error of `preadv2`.
    pub fn read_now(&self, file: &File, spans: &[Span], offset: u64) -> io::Result<usize> {
        transfer_now(file, Direction::Read, spans, offset)
    }

    /// Writes immediately, on this thread: for file systems where that only copies memory.
    ///
    /// # Errors
    /// The error of `pwritev2`.
    pub fn write_now(
        &self,
        file: &File,
        spans: &[Span],
        offset: u64,
        durability: Durability,
    ) -> io::Result<usize> {
        transfer_now(file, durability.direction(), spans, offset)
    }

    /// An event with `token` whenever `fd` becomes readable or is hung up, until the watch is dropped. The watch is edge-triggered: read
    /// everything that is available. Several edges may be reported as one event.
    ///
    /// # Errors
    /// The error of `dup`.
    pub fn poll_readable(&self, fd: impl AsFd, token: u64) -> io::Result<Watch> {
        let fd: OwnedFd = fd.as_fd().try_clone_to_owned()?;
        let number = self.ring.borrow_mut().watch(&self.queue, token, fd);
        Ok(Watch {
            ring: Rc::downgrade(&self.ring),
            number,
        })
    }

    /// One event with `token` once the descriptor of `watch` is writable, or its other side has disconnected.
    pub fn poll_writable_once(&self, watch: &Watch, token: u64) {
        let mut ring = self.ring.borrow_mut();
        ring.await_writable(&self.queue, token, watch.number);
    }

    /// An event with `token` and result `-ETIME` when the system's monotonic clock reaches `deadline`.
    pub fn timeout(&self, deadline: Duration, token: u64) {
        self.ring.borrow_mut().timeout(&self.queue, token, deadline);
    }

    /// Asks the kernel for a request of `tag`, whose data goes through `buffer`. An event with `token` follows: with result 0 when there is
    /// a request, with [`ABORTED`](crate::ublk::abi::ABORTED) once the device is stopped. To be called only from the thread of this source.
    /// The commands of one turn are submitted in one call, as far as the ring has room.
    pub fn fetch(&self, queue: &UblkQueue, tag: u16, buffer: &Span, token: u64) {
        let entry = queue.fetch(tag, buffer);
        let mut ring = self.ring.borrow_mut();
        ring.first_command(&self.queue, token, queue.file(), entry, buffer);
    }

    /// Answers the request of `tag` with `result` (bytes, or a negative errno), and asks for the next one as [`Source::fetch`] does.
    pub fn commit_and_fetch(
        &self,
        queue: &UblkQueue,
        tag: u16,
        result: i32,
        buffer: &Span,
        token: u64,
    ) {
        let entry = queue.commit_and_fetch(tag, result, buffer);
        let mut ring = self.ring.borrow_mut();
        ring.command(&self.queue, token, queue.file(), entry, buffer);
    }

    /// Puts `fd` into the ring's file table, where it stays open until the kernel has finished every request of this ring, and closes the
    /// descriptor of this process. So a lock on the file outlives this process until the last write has ended.
    ///
    /// # Errors
    /// The error of io_uring, or of a full table.
    pub fn keep_until_ring_ends(&self, fd: OwnedFd) -> Result<(), RingFailure> {
        self.ring.borrow_mut().keep_file(fd)
    }

    /// Records that the threads of a library begin a read or write of `bytes`. The thread waits for it as for a request in the kernel, and
    /// polls only where that has paid; the end is an event of a watch.
    pub fn begin_elsewhere(&self, bytes: usize) {
        self.ring.borrow_mut().begin_elsewhere(bytes);
    }

    /// Records the end of a request that [`Source::begin_elsewhere`] recorded.
    pub fn end_elsewhere(&self) {
        self.ring.borrow_mut().end_elsewhere();
    }

    /// Raises the kernel's limit of workers of this ring by `spare`, so that other calls proceed while calls that do not return occupy
    /// theirs.
    pub fn spare_workers(&self, spare: u32) {
        self.ring.borrow_mut().spare_workers(spare);
    }

    /// The next event of this source.
    #[must_use]
    pub fn next(&self) -> Option<Event> {
        let (event, mark) = self.queue.borrow_mut().pop_front()?;
        if let Some(mark) = mark {
            mark.set(false);
        }
        Some(event)
    }

    /// Whether an event waits.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    /// Reads, writes and syncs in flight of the whole reactor.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.ring.borrow().load().in_flight()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("events", &self.queue.borrow().len())
            .finish_non_exhaustive()
    }
}

/// A descriptor that is watched; dropping the watch ends it. Events that had arrived before may still be reported.
#[must_use = "dropping it ends the watch"]
pub struct Watch {
    ring: Weak<RefCell<Ring>>,
    number: (u32, u64),
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.upgrade() {
            ring.borrow_mut().unwatch(self.number);
        }
    }
}
