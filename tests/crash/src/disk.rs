//! A disk as a guest has it: its ring and its requests in flight outlive the server, and a front end connects it again.
//!
//! What a virtual machine monitor does when its vhost-user server dies: it connects again, hands the in-flight region
//! back and starts the ring where it is. Nothing is submitted again by the guest; it only waits.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::disk::{Done, Op};
use archipelago_bench::waiting::{now, pause};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ring::{GUEST, Ring, USER};

/// VERSION_1, PROTOCOL_FEATURES, and FLUSH, CONFIG_WCE, DISCARD, WRITE_ZEROES of the block device: virtio 1.2, 5.2.3.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 9 | 1 << 11 | 1 << 13 | 1 << 14;
/// RO of the block device: it offers nothing that changes it.
const READ_ONLY: u64 = 1 << 5;
const READ_ONLY_FEATURES: u64 = 1 << 32 | 1 << 30 | READ_ONLY;
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(2);
/// Who rang, in the words of epoll.
const CALL: u64 = 0;
const ERROR: u64 = 1;
const SERVER: u64 = 2;

/// What the front end keeps over the death of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFlight {
    /// The region that says which requests a dead server had taken and not done (INFLIGHT_SHMFD).
    Tracked,
    /// Nothing, as a front end without that feature: the ring continues at the used index.
    Forgotten,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Something may be done.
    Rung,
    /// The server is gone: [`Disk::reconnect`].
    Disconnected,
    /// The timeout is over.
    Nothing,
}

/// A connection. Hung up when dropped.
struct Connection {
    _front_end: Frontend,
}

/// A disk with one queue. Each request uses one slot, and the slot's buffer until it is done.
pub struct Disk {
    socket: PathBuf,
    ring: Ring,
    kick: EventFd,
    call: EventFd,
    error: EventFd,
    epoll: Epoll,
    in_flight: InFlight,
    region: Option<(VhostUserInflight, File)>,
    connection: Option<Connection>,
    capacity: u64,
}

fn eventfd() -> Result<EventFd> {
    Ok(EventFd::new(EFD_NONBLOCK)?)
}

/// Until the last descriptor of the same file is closed.
fn watch(epoll: &Epoll, file: &impl AsRawFd, token: u64) -> Result<()> {
    let event = EpollEvent::new(EventSet::IN, token);
    Ok(epoll.ctl(ControlOperation::Add, file.as_raw_fd(), event)?)
}

impl Disk {
    /// A disk at `socket` with `slots` requests in flight at most, of at most `buffer_len` bytes each. Waits up to
    /// `timeout` for a server.
    ///
    /// # Errors
    /// If there is none, or it refuses.
    pub fn connect(
        socket: &Path,
        slots: usize,
        buffer_len: usize,
        in_flight: InFlight,
        timeout: Duration,
    ) -> Result<Disk> {
        let (call, error, epoll) = (eventfd()?, eventfd()?, Epoll::new()?);
        watch(&epoll, &call, CALL)?;
        watch(&epoll, &error, ERROR)?;
        let mut disk = Disk {
            socket: socket.to_owned(),
            ring: Ring::new(slots, buffer_len)?,
            kick: eventfd()?,
            call,
            error,
            epoll,
            in_flight,
            region: None,
            connection: None,
            capacity: 0,
        };
        disk.reconnect(timeout)?;
        Ok(disk)
    }

    /// Connects to the server's successor, for which it waits up to `timeout`: what is in flight stays in flight.
    ///
    /// # Errors
    /// If none comes, or it refuses.
    pub fn reconnect(&mut self, timeout: Duration) -> Result<()> {
        self.connection = None;
        let deadline = now() + timeout;
        loop {
            match self.shake_hands(timeout) {
                Ok(connection) => {
                    self.connection = Some(connection);
                    // The dead server may have asked not to be kicked.
                    return self.ring_kick();
                }
                Err(error) if now() > deadline => {
                    return Err(error.context(format!(
                        "no server at {} after {timeout:?}",
                        self.socket.display()
                    )));
                }
                // The socket of a dead server, or a server that died meanwhile.
                Err(_not_yet) => pause(RETRY),
            }
        }
    }

    fn shake_hands(&mut self, timeout: Duration) -> Result<Connection> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(timeout))?;
        let mut front_end = Frontend::from_stream(stream.try_clone()?, 1);
        front_end.set_owner()?;
        let offered = front_end.get_features()?;
        let features = match offered & READ_ONLY {
            0 => FEATURES,
            _ => READ_ONLY_FEATURES,
        };
        ensure!(
            offered & features == features,
            "features {offered:#x} lack some of {features:#x}"
        );
        let mut wanted = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG;
        if self.in_flight == InFlight::Tracked {
            wanted |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        }
        let offered = front_end.get_protocol_features()?;
        ensure!(offered.contains(wanted), "protocol features {offered:?}");
        front_end.set_protocol_features(wanted)?;
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        front_end.set_features(features)?;
        if self.in_flight == InFlight::Tracked {
            if self.region.is_none() {
                let asked = VhostUserInflight::new(0, 0, 1, self.ring.size());
                self.region = Some(front_end.get_inflight_fd(&asked)?);
            }
            let (region, file) = self.region.as_ref().context("asked for just now")?;
            front_end.set_inflight_fd(region, file.as_raw_fd())?;
        }
        let (fd, offset) = self.ring.memory().descriptor();
        front_end.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: self.ring.memory().len(),
            userspace_addr: USER,
            mmap_offset: offset,
            mmap_handle: fd.as_raw_fd(),
        }])?;
        let space = [0; 8];
        let flags = VhostUserConfigFlags::empty();
        let (_, config) = front_end.get_config(0, 8, flags, &space)?;
        let sectors = config.try_into().ok().map(u64::from_le_bytes);
        self.capacity = sectors.context("a short configuration space")? * 512;
        let size = self.ring.size();
        let addresses = self.ring.addresses();
        front_end.set_vring_num(0, size)?;
        // What a front end can know of a ring whose server died.
        front_end.set_vring_base(0, self.ring.used_index()?)?;
        front_end.set_vring_addr(
            0,
            &VringConfigData {
                queue_max_size: size,
                queue_size: size,
                flags: 0,
                desc_table_addr: addresses.descriptors,
                used_ring_addr: addresses.used,
                avail_ring_addr: addresses.avail,
                log_addr: None,
            },
        )?;
        front_end.set_vring_call(0, &self.call)?;
        front_end.set_vring_err(0, &self.error)?;
        front_end.set_vring_kick(0, &self.kick)?;
        front_end.set_vring_enable(0, true)?;
        watch(&self.epoll, &stream, SERVER)?;
        Ok(Connection {
            _front_end: front_end,
        })
    }

    /// Size of the disk in bytes when it was connected last.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Fills the buffer of `slot` from `data`.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn fill(&self, slot: usize, data: &[u8]) -> Result<()> {
        self.ring.fill(slot, data)
    }

    /// Copies the buffer of `slot` into `data`.
    ///
    /// # Errors
    /// If it is longer than a buffer.
    pub fn take(&self, slot: usize, data: &mut [u8]) -> Result<()> {
        self.ring.take(slot, data)
    }

    /// Queues a request; the server may sleep until [`Disk::kick`].
    ///
    /// # Errors
    /// If the request cannot be said.
    pub fn submit(&mut self, slot: usize, op: Op, offset: u64, len: usize) -> Result<()> {
        self.ring.submit(slot, op, offset, len)
    }

    /// Notifies the server of queued requests, if the server has asked for notifications.
    ///
    /// # Errors
    /// If the eventfd cannot be written.
    pub fn kick(&mut self) -> Result<()> {
        if self.ring.wants_kick()? {
            self.ring_kick()?;
        }
        Ok(())
    }

    fn ring_kick(&self) -> Result<()> {
        Ok(self.kick.write(1)?)
    }

    /// The next request that is done, if any is.
    ///
    /// # Errors
    /// If the used ring makes no sense.
    pub fn next_done(&mut self) -> Result<Option<Done>> {
        self.ring.next_done()
    }

    /// Sleeps until something may be done or the server is gone, at most for `timeout`.
    ///
    /// # Errors
    /// If the server calls the ring broken.
    pub fn wait(&mut self, timeout: Duration) -> Result<Waited> {
        if self.connection.is_none() {
            return Ok(Waited::Disconnected);
        }
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let mut events = [EpollEvent::default(); 3];
        let count = match self.epoll.wait(millis, &mut events) {
            Ok(0) => return Ok(Waited::Nothing),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error.into()),
        };
        let ready = |token: u64| events[..count].iter().any(|event| event.data() == token);
        ensure!(!ready(ERROR), "the server says that the ring is broken");
        if ready(SERVER) {
            self.connection = None;
            return Ok(Waited::Disconnected);
        }
        if ready(CALL) {
            // Taken once a wake-up; an eventfd that another wake-up emptied is no error.
            let _count = self.call.read();
        }
        Ok(Waited::Rung)
    }

    /// Does one request and waits for it, also for the server's successor; nothing else may be in flight.
    ///
    /// # Errors
    /// If it fails or is not done within `timeout`.
    pub fn run(&mut self, op: Op, offset: u64, len: usize, timeout: Duration) -> Result<()> {
        self.submit(0, op, offset, len)?;
        self.kick()?;
        let result = self.answer(timeout)?;
        ensure!(
            result == 0,
            "{op:?} of {len} bytes at {offset} failed with {result}"
        );
        Ok(())
    }

    /// The next request that is done, also by the server's successor; `None`: none is within `timeout`.
    ///
    /// # Errors
    /// If no successor comes within `reconnect`, or the server calls the ring broken.
    pub fn done_within(&mut self, timeout: Duration, reconnect: Duration) -> Result<Option<Done>> {
        let deadline = now() + timeout;
        loop {
            if let Some(done) = self.next_done()? {
                return Ok(Some(done));
            }
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return Ok(None);
            }
            // Waits are in whole milliseconds, rounded down: one more, so that a wait never ends before the deadline.
            match self.wait(left + Duration::from_millis(1))? {
                Waited::Rung | Waited::Nothing => {}
                Waited::Disconnected => self.reconnect(reconnect)?,
            }
        }
    }

    /// Waits for the one request in flight, also for the server's successor: 0, or a negative errno.
    ///
    /// # Errors
    /// If it is not done within `timeout`.
    pub fn answer(&mut self, timeout: Duration) -> Result<i32> {
        loop {
            if let Some(done) = self.next_done()? {
                return Ok(done.result);
            }
            match self.wait(timeout)? {
                Waited::Rung => {}
                Waited::Disconnected => self.reconnect(timeout)?,
                Waited::Nothing => bail!("nothing was completed within {timeout:?}"),
            }
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("socket", &self.socket)
            .field("connected", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}
