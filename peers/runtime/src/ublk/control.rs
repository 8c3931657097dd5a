//! Commands on `/dev/ublk-control`. Each has its own ring, since its entries are twice as long as those of a reactor.
//!
//! Invariant: a call returns only when the kernel has completed the command or has never taken it. So the data that the command points to
//! outlives the command.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::abi::{ControlCommand, DeviceInfo, Parameters, control_op};

/// Interval at which a call checks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);
/// User data of the command, and of its cancellation.
const COMMAND: u64 = 1;
const CANCEL: u64 = 2;
/// Entries of the ring: for the command and its cancellation.
const ENTRIES: u32 = 4;
/// The command concerns no queue.
const NO_QUEUE: u16 = u16::MAX;

type ControlRing = IoUring<squeue::Entry128, cqueue::Entry>;

/// The data that a command points to.
enum Buffer<'a> {
    Nothing,
    Info(&'a mut DeviceInfo),
    Parameters(&'a mut Parameters),
    Features(&'a mut u64),
}

impl Buffer<'_> {
    /// Address and length.
    fn place(&mut self) -> (u64, usize) {
        match self {
            Buffer::Nothing => (0, 0),
            Buffer::Info(info) => (address_of(*info), size_of::<DeviceInfo>()),
            Buffer::Parameters(parameters) => (address_of(*parameters), size_of::<Parameters>()),
            Buffer::Features(features) => (address_of(*features), size_of::<u64>()),
        }
    }
}

/// The address as a number, for the kernel.
fn address_of<T>(place: &mut T) -> u64 {
    std::ptr::from_mut(place).expose_provenance() as u64
}

/// The control device. Calls need the capability `CAP_SYS_ADMIN`, and may block.
#[derive(Debug)]
pub struct UblkControl {
    file: File,
}

impl UblkControl {
    /// Path of the control device.
    pub const PATH: &'static str = "/dev/ublk-control";

    /// Opens the control device.
    ///
    /// # Errors
    /// The error of the file system: `ENOENT` without the kernel module `ublk_drv`.
    pub fn open() -> io::Result<UblkControl> {
        let file = OpenOptions::new().read(true).write(true).open(Self::PATH)?;
        Ok(UblkControl { file })
    }

    /// The features of this kernel: of [`feature`](super::abi::feature).
    ///
    /// # Errors
    /// The kernel's error: before 6.5 the command is unknown.
    pub fn features(&self) -> io::Result<u64> {
        let mut features = 0;
        let buffer = Buffer::Features(&mut features);
        self.call(control_op::GET_FEATURES, 0, 0, buffer)?;
        Ok(features)
    }

    /// The device `device`; `None` if it does not exist.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn info(&self, device: u32) -> io::Result<Option<DeviceInfo>> {
        let mut info = DeviceInfo::default();
        let buffer = Buffer::Info(&mut info);
        match self.call(control_op::GET_DEV_INFO, device, 0, buffer) {
            Ok(()) => Ok(Some(info)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a device; the kernel sets the values that it has chosen.
    ///
    /// # Errors
    /// The kernel's error: `EEXIST` if a device with this number exists.
    pub fn add(&self, info: &mut DeviceInfo) -> io::Result<()> {
        let device = info.device;
        self.call(control_op::ADD_DEV, device, 0, Buffer::Info(info))
    }

    /// Sets the parameters of a device that is not started.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn set_parameters(&self, device: u32, parameters: &Parameters) -> io::Result<()> {
        let mut parameters = *parameters;
        let buffer = Buffer::Parameters(&mut parameters);
        self.call(control_op::SET_PARAMS, device, 0, buffer)
    }

    /// Starts the block device, once requests have been fetched on every queue. `server`: the process that opened the device.
    ///
    /// # Errors
    /// The kernel's error: `EINVAL` (6.16.1, and from 6.17 on) if another process opened the device; `EINTR` or `ECANCELED` once `goes_on`
    /// is false.
    pub fn start(&self, device: u32, server: u32, goes_on: impl Fn() -> bool) -> io::Result<()> {
        let server = u64::from(server);
        self.call_while(control_op::START_DEV, device, server, goes_on)
    }

    /// Removes the block device. Waits for requests that have been fetched and not answered.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn stop(&self, device: u32) -> io::Result<()> {
        self.call(control_op::STOP_DEV, device, 0, Buffer::Nothing)
    }

    /// Removes the device; waits until its server has closed it.
    ///
    /// # Errors
    /// The kernel's error; as [`UblkControl::start`].
    pub fn delete(&self, device: u32, goes_on: impl Fn() -> bool) -> io::Result<()> {
        self.call_while(control_op::DEL_DEV, device, 0, goes_on)
    }

    /// Removes a device that nobody has open; this does not wait.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn delete_unopened(&self, device: u32) -> io::Result<()> {
        self.call(control_op::DEL_DEV, device, 0, Buffer::Nothing)
    }

    /// Prepares a device whose server has died for a new server.
    ///
    /// # Errors
    /// The kernel's error: `EBUSY` until the dead server has ended completely.
    pub fn start_recovery(&self, device: u32) -> io::Result<()> {
        let op = control_op::START_USER_RECOVERY;
        self.call(op, device, 0, Buffer::Nothing)
    }

    /// Passes the device's waiting requests to the new server, once it has fetched on every queue. `server`: as in [`UblkControl::start`].
    ///
    /// # Errors
    /// As for [`UblkControl::start`].
    pub fn end_recovery(
        &self,
        device: u32,
        server: u32,
        goes_on: impl Fn() -> bool,
    ) -> io::Result<()> {
        let op = control_op::END_USER_RECOVERY;
        self.call_while(op, device, u64::from(server), goes_on)
    }

    /// Changes the size of a running device.
    ///
    /// # Errors
    /// The kernel's error: before 6.16 the command is unknown.
    pub fn update_size(&self, device: u32, sectors: u64) -> io::Result<()> {
        let op = control_op::UPDATE_SIZE;
        self.call(op, device, sectors, Buffer::Nothing)
    }

    /// Sends a command that the kernel completes by itself.
    fn call(&self, op: u32, device: u32, data: u64, buffer: Buffer<'_>) -> io::Result<()> {
        self.carry_out(op, device, data, buffer, || true)
    }

    /// Sends a command that waits for a server. It is cancelled once `goes_on` is false.
    fn call_while(
        &self,
        op: u32,
        device: u32,
        data: u64,
        goes_on: impl Fn() -> bool,
    ) -> io::Result<()> {
        self.carry_out(op, device, data, Buffer::Nothing, goes_on)
    }

    fn carry_out(
        &self,
        op: u32,
        device: u32,
        data: u64,
        mut buffer: Buffer<'_>,
        goes_on: impl Fn() -> bool,
    ) -> io::Result<()> {
        let (address, len) = buffer.place();
        let command = ControlCommand {
            device,
            queue: NO_QUEUE,
            len: u16::try_from(len).map_err(io::Error::other)?,
            address,
            data,
            ..ControlCommand::default()
        };
        let mut ring: ControlRing = IoUring::builder().build(ENTRIES)?;
        let entry = opcode::UringCmd80::new(Fd(self.file.as_raw_fd()), op)
            .cmd(bytes_of(command))
            .build()
            .user_data(COMMAND);
        // SAFETY: the command points to `buffer`, which is borrowed until this returns, and this returns when the command has
        // completed or was not taken (`finish`). The kernel's ublk driver, which alone is behind the path that `open` opens,
        // touches `len` bytes there.
        let pushed = unsafe { ring.submission().push(&entry) };
        pushed.map_err(io::Error::other)?;
        let result = finish(&mut ring, goes_on)?;
        match result {
            0.. => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }
}

/// The command's result, once it has completed. When `goes_on` is false, the command is cancelled; its completion is awaited all the same.
///
/// # Errors
/// The error with which the kernel refused to take the command.
fn finish(ring: &mut ControlRing, goes_on: impl Fn() -> bool) -> io::Result<i32> {
    let look = Timespec::from(LOOK);
    let arguments = SubmitArgs::new().timespec(&look);
    let mut cancelled = false;
    loop {
        match ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) => {}
            // The command was not taken. Once the kernel has taken it, its completion is awaited whatever other error occurs.
            Err(error) if !cancelled && !ring.submission().is_empty() => return Err(error),
            Err(error) => tracing::debug!(%error, "waiting for a command of ublk"),
        }
        while let Some(completion) = ring.completion().next() {
            if completion.user_data() == COMMAND {
                return Ok(completion.result());
            }
        }
        if !cancelled && !goes_on() {
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::user_data(COMMAND)).build();
            let cancel = squeue::Entry128::from(cancel.user_data(CANCEL));
            // SAFETY: it points to nothing.
            let pushed = unsafe { ring.submission().push(&cancel) };
            // Without room, an entry of ours is still in the ring; the next round submits it.
            cancelled = pushed.is_ok();
        }
    }
}

/// The command as it is stored in the entry: 32 bytes, then zeros.
fn bytes_of(command: ControlCommand) -> [u8; 80] {
    // SAFETY: both have 32 bytes, and the structure has no padding.
    let head: [u8; 32] = unsafe { std::mem::transmute(command) };
    let mut bytes = [0; 80];
    bytes[..head.len()].copy_from_slice(&head);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_module_there_is_no_control_device() {
        if std::path::Path::new(UblkControl::PATH).exists() {
            return;
        }
        let error = UblkControl::open().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
