//! Messages of a front end, as the crate `vhost` parses them, turned into commands for the device.
//!
//! Runs on the thread of the connection; mapping memory and checking descriptors happens here.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use archipelago_runtime::{Clock, SystemClock};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tracing::{info, warn};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use xseg::Region;

use crate::back_channel::is_eventfd;
use crate::command::{Answer, Command, CommandChannel, Refusal};
use crate::config::{AttachConfig, RING_SIZE_MAX, WRITEBACK_AT, protocol_features};
use crate::dirty_log::DirtyLog;
use crate::inflight::queue_len;
use crate::memory::{GuestSlot, MEMORY_SLOTS_MAX};
use crate::queue::RingAddresses;
use crate::ring_check::RingCheck;
use crate::shared::{Shared, TRAILER_LEN};
use crate::stop::Stop;
use crate::throttle::Allowance;

/// Handles the messages of one front end.
#[derive(Debug)]
pub(crate) struct Handler {
    pub(crate) config: AttachConfig,
    pub(crate) shared: Arc<Shared>,
    pub(crate) device: CommandChannel,
    /// Set when a message was refused: the connection itself is intact then.
    pub(crate) refused: bool,
    /// Shared by all connections of the volume, which come one at a time.
    pub(crate) allowance: Arc<Allowance>,
    pub(crate) stop: Arc<Stop>,
    /// Whether the next start was counted already: with the connection, or with another ring.
    pub(crate) started: bool,
    pub(crate) check: RingCheck,
    /// Whether a problem of this connection was logged.
    pub(crate) warned: bool,
}

impl Handler {
    fn call(&mut self, command: Command) -> Result<Answer> {
        match self.device.call(command) {
            Some(Answer::Refused(refusal)) => Err(self.refuse(refusal)),
            Some(answer) => Ok(answer),
            None => Err(Error::BackendInternalError),
        }
    }

    fn change(&mut self, command: Command) -> Result<()> {
        self.call(command).map(drop)
    }

    fn refuse(&mut self, why: impl fmt::Display) -> Error {
        warn!(socket = %self.config.socket.display(), %why, "a message of the front end is refused");
        self.refused = true;
        Error::InvalidParam
    }

    fn index(&mut self, index: u32) -> Result<u16> {
        u16::try_from(index).map_err(|_too_large| self.refuse(Refusal::NoSuchQueue))
    }

    fn slot(&mut self, region: &VhostUserMemoryRegion, file: File) -> Result<GuestSlot> {
        let (guest, user) = (region.guest_phys_addr, region.user_addr);
        GuestSlot::map(guest, user, region.memory_size, file, region.mmap_offset)
            .map_err(|cause| self.refuse(format_args!("guest memory cannot be mapped: {cause}")))
    }

    /// Checks again after a change of memory: a problem may be solved.
    fn look_again(&mut self) {
        if self.shared.problem().is_some() {
            self.check.again(SystemClock.now());
        }
    }

    /// Waits before the first start of a run, if there were too many starts.
    fn wait_to_start(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.stop.wait(self.allowance.start());
        }
    }

    /// Checks whether the guest's requests are visible, if that is due.
    pub(crate) fn check_rings(&mut self) {
        let now = SystemClock.now();
        if self.check.due().is_none_or(|due| now < due) {
            return;
        }
        let Some(Answer::Rings(seen)) = self.device.call(Command::Look) else {
            return;
        };
        let problem = self.check.look(seen, now);
        let before = self.shared.set_problem(problem);
        let socket = self.config.socket.display();
        match problem {
            Some(problem) if !std::mem::replace(&mut self.warned, true) => {
                warn!(%socket, volume = %self.config.volume.lineage, "{problem}");
            }
            None if before.is_some() => {
                info!(%socket, volume = %self.config.volume.lineage, "the guest's requests can be seen");
            }
            _ => {}
        }
    }

    /// An eventfd that can be signalled without blocking.
    fn signalable(&mut self, file: Option<File>) -> Result<Option<File>> {
        let Some(file) = file else { return Ok(None) };
        let unblocked = OFlag::O_NONBLOCK | OFlag::O_RDWR;
        if !is_eventfd(&file) || fcntl(file.as_fd(), FcntlArg::F_SETFL(unblocked)).is_err() {
            return Err(self.refuse("a descriptor is no eventfd"));
        }
        Ok(Some(file))
    }
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(Error::InvalidOperation(what))
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // Deprecated, and interpreted in different ways: GET_VRING_BASE and RESET_DEVICE stop rings.
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.shared.set_writeback(true);
        self.started = false;
        self.check = RingCheck::new();
        self.change(Command::Reset)
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.config.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.config.accepted_features();
        if unknown != 0 {
            return Err(self.refuse(Refusal::Features(unknown)));
        }
        self.change(Command::Features(features))
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.stop.wait(self.allowance.slots(table.len()));
        let mut slots = Vec::with_capacity(table.len());
        for (region, file) in table.iter().zip(files) {
            slots.push(self.slot(region, file)?);
        }
        self.change(Command::SetSlots(slots))?;
        self.look_again();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let index = self.index(index)?;
        let size = u16::try_from(num).unwrap_or(0);
        self.change(Command::RingSize(index, size))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        avail: u64,
        log: u64,
    ) -> Result<()> {
        let index = self.index(index)?;
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        // A limit far beyond any guest's memory, so that sums cannot overflow.
        let log = logged.then_some(log).filter(|log| *log < 1 << 56);
        self.change(Command::RingAddresses(
            index,
            RingAddresses {
                descriptors,
                avail,
                used,
                log,
            },
        ))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let index = self.index(index)?;
        let base = u16::try_from(base & 0xffff).unwrap_or(0);
        self.change(Command::RingBase(index, base))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let queue = self.index(index)?;
        self.started = false;
        self.check.stop(queue);
        match self.call(Command::StopRing(queue))? {
            Answer::Base(base) => Ok(VhostUserVringState::new(index, u32::from(base))),
            Answer::Done | Answer::Rings(_) | Answer::Refused(_) => {
                Err(Error::BackendInternalError)
            }
        }
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        match self.signalable(fd)? {
            Some(kick) => {
                self.wait_to_start();
                let now = SystemClock.now();
                self.check.start(u16::from(index), &kick, now);
                self.change(Command::Kick(u16::from(index), OwnedFd::from(kick)))
            }
            None => Err(self.refuse("a ring without an eventfd would have to be polled")),
        }
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = self.signalable(fd)?;
        self.change(Command::Call(u16::from(index), call))
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let error = self.signalable(fd)?;
        self.change(Command::Error(u16::from(index), error))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !protocol_features().bits() != 0 {
            return Err(self.refuse("protocol features that were not offered"));
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.config.queues))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.index(index)?;
        self.check.again(SystemClock.now());
        self.change(Command::Enable(index, enable))
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let space = self
            .config
            .space(self.shared.size(), self.shared.writeback());
        // Front ends ask for prefixes, or for more than is defined: zeros follow. The crate has limited the size.
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let take = usize::try_from(size).unwrap_or(0);
        let bytes = space.into_iter().chain(std::iter::repeat(0));
        Ok(bytes.skip(skip).take(take).collect())
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        match (offset, bytes) {
            (WRITEBACK_AT, [writeback @ (0 | 1)]) => {
                self.shared.set_writeback(*writeback == 1);
                Ok(())
            }
            _ => Err(self.refuse("only the write-cache byte can be written")),
        }
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        unsupported("no GPU")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported("no shared objects")
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (asked.num_queues, asked.queue_size);
        if queues > self.config.queues || size > RING_SIZE_MAX {
            return Err(self.refuse("an in-flight area for more than there can be"));
        }
        let len = queue_len(size) * u64::from(queues) + TRAILER_LEN;
        let made = usize::try_from(len)
            .map_err(std::io::Error::other)
            .and_then(Region::anonymous)
            .and_then(|region| region.descriptor().0.try_clone());
        match made {
            Ok(fd) => Ok((VhostUserInflight::new(len, 0, queues, size), File::from(fd))),
            Err(cause) => Err(self.refuse(format_args!("no in-flight area: {cause}"))),
        }
    }

    fn set_inflight_fd(&mut self, area: &VhostUserInflight, file: File) -> Result<()> {
        let (size, queues) = (area.queue_size, area.num_queues);
        let slot = GuestSlot::map(0, 0, area.mmap_size, file, area.mmap_offset)
            .map_err(|cause| self.refuse(format_args!("the in-flight area: {cause}")))?;
        self.change(Command::InFlight {
            region: slot.region,
            start: slot.start,
            queues,
            size,
        })
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MEMORY_SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        self.stop.wait(self.allowance.slots(1));
        let slot = self.slot(region, file)?;
        self.change(Command::AddSlot(slot))?;
        self.look_again();
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.change(Command::RemoveSlot {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            len: region.memory_size,
        })
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        unsupported("no device state")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("no device state")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported("no shared memory regions")
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        match DirtyLog::map(file, log.mmap_offset, log.mmap_size) {
            Ok(log) => self.change(Command::Log(log)),
            Err(cause) => Err(self.refuse(format_args!("the dirty log: {cause}"))),
        }
    }
}
