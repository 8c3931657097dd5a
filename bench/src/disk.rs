//! A client of one vhost-user-blk socket: one queue, buffers in one shared region, completions by eventfd.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkQueue, VirtioBlkReqBuf, VirtioBlkTransport,
    VirtioFeatureFlags,
};
use xseg::Region;

/// Descriptors of a request: header, data, status (the client makes no indirect tables), and one to spare.
const DESCRIPTORS: usize = 4;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reads into the slot's buffer.
    Read,
    /// Writes the slot's buffer.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Writes zeroes.
    WriteZeroes {
        /// With the UNMAP flag.
        unmap: bool,
    },
}

/// A request that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// The slot it was submitted with.
    pub slot: usize,
    /// 0, or a negative errno.
    pub result: i32,
}

/// A connected disk. Each request uses one slot, and the slot's buffer until it is done.
pub struct Disk {
    // Dropped before `_transport`, whose memory it uses.
    queue: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    interrupt: Arc<EventFd>,
    buffers: Region,
    buffer_len: usize,
    capacity: u64,
    _transport: Box<VirtioBlkTransport>,
}

impl Disk {
    /// Connects to `socket` with `slots` requests in flight at most, of at most `buffer_len` bytes each.
    ///
    /// # Errors
    /// Whatever the server or the kernel refuses.
    pub fn connect(socket: &Path, slots: usize, buffer_len: usize) -> Result<Disk> {
        let features = VirtioFeatureFlags::VERSION_1
            | VirtioFeatureFlags::RING_EVENT_IDX
            | VirtioFeatureFlags::RING_INDIRECT_DESC;
        // FLUSH, BLK_SIZE, CONFIG_WCE, DISCARD, WRITE_ZEROES of the virtio block device, section 5.2.3.
        let block = 1 << 9 | 1 << 6 | 1 << 11 | 1 << 13 | 1 << 14;
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let front_end: VhostUser<_, VirtioBlkReqBuf> =
            VhostUser::new(path, features.bits() | block)
                .with_context(|| format!("connect to {path}"))?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(front_end);
        let entries = u16::try_from((slots * DESCRIPTORS).next_power_of_two())?;
        let mut queues = VirtioBlkQueue::setup_queues(transport.as_mut(), 1, entries)?;
        let queue = queues.pop().context("no queue was set up")?;
        let buffers = Region::anonymous(slots * buffer_len)?;
        let (fd, _) = buffers.descriptor();
        let address = buffers.span(0, buffers.len())?.address();
        transport.map_mem_region(address.addr(), slots * buffer_len, fd.as_raw_fd(), 0)?;
        let capacity = transport.get_config()?.capacity.to_native() * 512;
        Ok(Disk {
            queue,
            notifier: transport.get_submission_notifier(0),
            interrupt: transport.get_completion_fd(0),
            buffers,
            buffer_len,
            capacity,
            _transport: transport,
        })
    }

    /// Size of the disk in bytes when it was connected.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Fills the buffer of `slot` from `data`.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn fill(&self, slot: usize, data: &[u8]) -> Result<()> {
        ensure!(
            data.len() <= self.buffer_len,
            "{} bytes do not fit a buffer",
            data.len()
        );
        Ok(self.buffers.write((slot * self.buffer_len) as u64, data)?)
    }

    /// Copies the buffer of `slot` into `data`.
    ///
    /// # Errors
    /// If it is longer than a buffer.
    pub fn take(&self, slot: usize, data: &mut [u8]) -> Result<()> {
        ensure!(
            data.len() <= self.buffer_len,
            "{} bytes are more than a buffer",
            data.len()
        );
        Ok(self.buffers.read((slot * self.buffer_len) as u64, data)?)
    }

    /// Queues a request; the server may not see it before [`Disk::kick`].
    ///
    /// # Errors
    /// If the ring is full, or the request does not fit the protocol.
    pub fn submit(&mut self, slot: usize, op: Op, offset: u64, len: usize) -> Result<()> {
        let span = self
            .buffers
            .span((slot * self.buffer_len) as u64, self.buffer_len as u64)?;
        let address = span.address();
        match op {
            // SAFETY: the buffer belongs to `slot` alone, lives as long as `self`, and is only accessed by copy.
            Op::Read => unsafe { self.queue.read_raw(offset, address, len, slot)? },
            // SAFETY: as for reads.
            Op::Write => unsafe { self.queue.write_raw(offset, address, len, slot)? },
            Op::Flush => self.queue.flush(slot)?,
            Op::Discard => self.queue.discard(offset, len as u64, slot)?,
            Op::WriteZeroes { unmap } => {
                self.queue.write_zeroes(offset, len as u64, unmap, slot)?;
            }
        }
        Ok(())
    }

    /// Notifies the server of queued requests, if the server has asked for notifications.
    ///
    /// # Errors
    /// If the eventfd cannot be written.
    pub fn kick(&mut self) -> Result<()> {
        if self.queue.avail_notif_needed() {
            self.notifier.notify()?;
        }
        Ok(())
    }

    /// The next request that is done, if any is.
    pub fn next_done(&mut self) -> Option<Done> {
        self.queue.completions().next().map(|done| Done {
            slot: done.context,
            result: done.ret,
        })
    }

    /// Sleeps until something may be done, for `timeout` at most.
    ///
    /// # Errors
    /// If nothing was done in that time.
    pub fn wait(&mut self, timeout: Duration) -> Result<()> {
        self.queue.set_used_notif_enabled(true);
        if self.queue.completions().has_next() {
            return Ok(());
        }
        let poll_timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.interrupt.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, poll_timeout) {
            Ok(0) => bail!("nothing was completed within {timeout:?}"),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        self.queue.set_used_notif_enabled(false);
        match self.interrupt.read() {
            Ok(_) => Ok(()),
            // A server may have made the eventfd non-blocking, and another wake-up may have emptied it.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends one request and waits for its completion.
    ///
    /// # Errors
    /// If it fails or is not done within `timeout`.
    pub fn run(&mut self, op: Op, offset: u64, len: usize, timeout: Duration) -> Result<()> {
        self.submit(0, op, offset, len)?;
        self.kick()?;
        loop {
            if let Some(done) = self.next_done() {
                ensure!(
                    done.result == 0,
                    "{op:?} of {len} bytes at {offset} failed with {}",
                    done.result
                );
                return Ok(());
            }
            self.wait(timeout)?;
        }
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
