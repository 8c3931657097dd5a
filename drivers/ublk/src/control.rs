//! Devices: made, started, recovered, stopped, removed. For the privileged process; calls block.
//!
//! | a device is | becomes |
//! |---|---|
//! | made ([`Control::make`]) | served, by [`Device::start`] once a process serves its queue |
//! | served | stopped, by [`Device::stop`]; without a server, by the death of that process |
//! | without a server: requests wait | served, by [`Device::begin_recovery`], a process that serves its queue, [`Device::end_recovery`] |
//! | stopped | removed, by [`Device::remove`] |

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::{Error, ErrorCode, ServedVolume};
use archipelago_runtime::ublk::UblkControl;
use archipelago_runtime::ublk::abi::{
    DeviceInfo, Parameters, attribute, feature, parameter, state,
};
use nix::errno::Errno;

use crate::kernel::{ALTERNATIVES, Release};
use crate::layout::{BUFFER_LEN, DEPTH, RANGE_MAX};

/// Where the kernel lists devices.
const DEVICES: &str = "/sys/class/ublk-char";
/// Features that the kernel must have.
const NEEDED: u64 =
    feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE | feature::CMD_IOCTL_ENCODE;
/// Bytes of a logical block and of a volume's block, as powers of two.
const SECTOR_SHIFT: u8 = 9;
const BLOCK_SHIFT: u8 = 12;
/// The unit in which discards give space back.
const DISCARD_GRANULARITY: u32 = 1 << BLOCK_SHIFT;

/// The owner of a device. The kernel keeps the mark with the device, also after the death of its maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMark(u64);

impl DeviceMark {
    /// The mark of a volume, by its lineage, of the node whose identity is `node`.
    #[must_use]
    pub fn new(node: &[u8], lineage: u128) -> DeviceMark {
        let node = hash(node);
        let volume = hash(&lineage.to_le_bytes());
        DeviceMark(u64::from(node) << 32 | u64::from(volume))
    }

    /// Whether both marks are of one node.
    #[must_use]
    pub fn is_of_node(self, other: DeviceMark) -> bool {
        self.0 >> 32 == other.0 >> 32
    }
}

/// FNV-1a, of 32 bits; never 0, which means no owner.
fn hash(bytes: &[u8]) -> u32 {
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    hash.max(1)
}

/// The state of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// Not started, or stopped.
    Dead,
    /// Served, by a queue that this process opened.
    Served(u32),
    /// Its server has died: requests wait.
    Waits,
}

/// The kernel's ublk driver.
#[derive(Debug)]
pub struct Control {
    control: UblkControl,
    features: u64,
}

impl Control {
    /// Checks that this kernel supports devices, and opens the control device.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] or [`ErrorCode::Denied`], with what to use in place of ublk.
    pub fn open() -> Result<Control, Error> {
        if let Some(release) = Release::own() {
            release.check()?;
        }
        let control = UblkControl::open().map_err(|error| unusable(&error))?;
        let features = control.features().map_err(|error| no_features(&error))?;
        if features & NEEDED != NEEDED {
            return Err(too_old("a device could not outlive its server"));
        }
        Ok(Control { control, features })
    }

    /// Whether the size of a running device can be changed.
    #[must_use]
    pub fn resizes(&self) -> bool {
        self.features & feature::UPDATE_SIZE != 0
    }

    /// The device `number`, whether it exists or not.
    #[must_use]
    pub fn device(&self, number: u32) -> Device<'_> {
        Device {
            control: &self.control,
            number,
        }
    }

    /// The numbers of all devices, of any server.
    #[must_use]
    pub fn numbers() -> Vec<u32> {
        let names = std::fs::read_dir(DEVICES).into_iter().flatten().flatten();
        let mut numbers: Vec<u32> = names
            .filter_map(|entry| number_of(entry.file_name().to_str()?))
            .collect();
        numbers.sort_unstable();
        numbers
    }

    /// Makes the device `number` for `volume`.
    ///
    /// # Errors
    /// [`ErrorCode::Exists`] if another server has this number, [`ErrorCode::NoSpace`] if there are too many devices,
    /// [`ErrorCode::Io`] for the kernel's other errors.
    pub fn make(&self, number: u32, volume: &ServedVolume, mark: DeviceMark) -> Result<(), Error> {
        let mut info = DeviceInfo {
            queues: 1,
            depth: DEPTH,
            buffer_len: BUFFER_LEN,
            device: number,
            flags: NEEDED | self.features & feature::UPDATE_SIZE,
            mark: mark.0,
            ..DeviceInfo::default()
        };
        self.control
            .add(&mut info)
            .map_err(|error| not_made(number, &error))?;
        let made = DeviceInfo { ..info };
        let fits = made.queues == 1 && made.depth == DEPTH && made.buffer_len == BUFFER_LEN;
        let parameters = parameters(volume);
        let set = if fits {
            self.control.set_parameters(number, &parameters)
        } else {
            Err(io::Error::other(format!(
                "the kernel wants {} queues of {} requests of {} bytes",
                made.queues, made.depth, made.buffer_len
            )))
        };
        set.map_err(|error| {
            // The first failure is reported; a device that stays is found and removed by the next start.
            let _removed = self.control.delete_unopened(number);
            failed(number, "setting up", &error)
        })
    }
}

/// `ublkc7`: 7.
fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("ublkc")?.parse().ok()
}

/// The parameters of a volume's device.
fn parameters(volume: &ServedVolume) -> Parameters {
    let mut attributes = attribute::VOLATILE_CACHE | attribute::FUA;
    if volume.read_only {
        attributes |= attribute::READ_ONLY;
    }
    let ranges = RANGE_MAX / u32::try_from(SECTOR_SIZE).unwrap_or(512);
    let ranges = if volume.read_only { 0 } else { ranges };
    Parameters {
        len: u32::try_from(size_of::<Parameters>()).unwrap_or(u32::MAX),
        types: parameter::BASIC | parameter::DISCARD,
        attributes,
        logical_block_shift: SECTOR_SHIFT,
        physical_block_shift: BLOCK_SHIFT,
        io_opt_shift: u8::try_from(BUFFER_LEN.trailing_zeros()).unwrap_or(BLOCK_SHIFT),
        io_min_shift: BLOCK_SHIFT,
        sectors_max: BUFFER_LEN >> SECTOR_SHIFT,
        sectors: volume.size / SECTOR_SIZE,
        discard_granularity: DISCARD_GRANULARITY,
        discard_sectors_max: ranges,
        zeroes_sectors_max: ranges,
        discard_segments_max: 1,
        ..Parameters::default()
    }
}

/// A device by its number.
#[derive(Debug)]
pub struct Device<'a> {
    control: &'a UblkControl,
    number: u32,
}

impl Device<'_> {
    /// Path of the block device `number`.
    #[must_use]
    pub fn path(number: u32) -> PathBuf {
        PathBuf::from(format!("/dev/ublkb{number}"))
    }

    /// The state and the mark of the device; `None` if it does not exist. The device of an unprivileged server is reported without a mark:
    /// it is not one of ours.
    ///
    /// # Errors
    /// [`ErrorCode::Io`] with the kernel's error.
    pub fn look(&self) -> Result<Option<(DeviceState, DeviceMark)>, Error> {
        let info = self.control.info(self.number);
        let info = match info {
            // A device of `UBLK_F_UNPRIVILEGED_DEV` needs another command.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
                return Ok(Some((DeviceState::Dead, DeviceMark(0))));
            }
            info => info.map_err(|error| failed(self.number, "looking at", &error))?,
        };
        Ok(info.map(|info| {
            let found = match info.state {
                state::LIVE => DeviceState::Served(u32::try_from(info.server).unwrap_or(0)),
                state::QUIESCED => DeviceState::Waits,
                _ => DeviceState::Dead,
            };
            (found, DeviceMark(info.mark))
        }))
    }

    /// Opens its queue, for the process that is to serve it. Only one process has it open at a time.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] while another process has it open, [`ErrorCode::Io`] otherwise.
    pub fn open_queue(&self) -> Result<OwnedFd, Error> {
        let path = format!("/dev/ublkc{}", self.number);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        opened.map(OwnedFd::from).map_err(|error| {
            let code = match error.raw_os_error() {
                Some(errno) if errno == Errno::EBUSY as i32 => ErrorCode::InUse,
                _ => ErrorCode::Io,
            };
            Error::new(code, format!("{path}: {error}"))
        })
    }

    /// Makes the block device appear, once the queue is served. `server` is the process that opened the queue: from Linux 6.17 on (6.16.1)
    /// others are refused, older kernels accept any. Abandoned when `goes_on` returns `false`.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if it was abandoned, [`ErrorCode::Io`] otherwise.
    pub fn start(&self, server: u32, goes_on: impl Fn() -> bool) -> Result<(), Error> {
        let started = self.control.start(self.number, server, goes_on);
        started.map_err(|error| given_up(self.number, "starting", &error))
    }

    /// Prepares a device without a server for the next one; `false` if requests of the dead server are left: the caller tries again.
    ///
    /// # Errors
    /// [`ErrorCode::Io`] with the kernel's error.
    pub fn begin_recovery(&self) -> Result<bool, Error> {
        let begun = self.control.start_recovery(self.number);
        begun
            .map(|()| true)
            .or_else(|error| not_begun(self.number, &error))
    }

    /// Sends the device's requests again, once the queue is served; as [`Device::start`].
    ///
    /// # Errors
    /// As [`Device::start`].
    pub fn end_recovery(&self, server: u32, goes_on: impl Fn() -> bool) -> Result<(), Error> {
        let ended = self.control.end_recovery(self.number, server, goes_on);
        ended.map_err(|error| given_up(self.number, "recovering", &error))
    }

    /// Sets the size of the device, which runs, in bytes.
    ///
    /// # Errors
    /// [`ErrorCode::Io`] with the kernel's error.
    pub fn resize(&self, size: u64) -> Result<(), Error> {
        let resized = self.control.update_size(self.number, size / SECTOR_SIZE);
        resized.map_err(|error| failed(self.number, "resizing", &error))
    }

    /// Removes the block device, even if it is in use.
    ///
    /// # Errors
    /// [`ErrorCode::Io`] with the kernel's error.
    pub fn stop(&self) -> Result<(), Error> {
        let stopped = self.control.stop(self.number);
        stopped.map_err(|error| failed(self.number, "stopping", &error))
    }

    /// Removes the device; waits until its server has closed the queue, as long as `goes_on` returns `true`.
    ///
    /// # Errors
    /// As [`Device::start`].
    pub fn remove(&self, goes_on: impl Fn() -> bool) -> Result<(), Error> {
        match self.control.delete(self.number, goes_on) {
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
            removed => removed.map_err(|error| given_up(self.number, "removing", &error)),
        }
    }
}

fn unusable(error: &io::Error) -> Error {
    let path = UblkControl::PATH;
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(
            ErrorCode::Unsupported,
            format!("this kernel has no ublk devices: there is no {path}"),
        )
        .with_hint(format!(
            "load its module if there is one (`modprobe ublk_drv`), or use the volume {ALTERNATIVES}"
        )),
        io::ErrorKind::PermissionDenied => Error::new(
            ErrorCode::Denied,
            format!("the node may not make ublk devices: {path}: {error}"),
        )
        .with_hint(format!(
            "run the node as root (CAP_SYS_ADMIN), or use the volume {ALTERNATIVES}"
        )),
        _ => Error::new(ErrorCode::Io, format!("{path}: {error}"))
            .with_hint(format!("use the volume {ALTERNATIVES}")),
    }
}

fn too_old(why: &str) -> Error {
    let message = format!("this kernel is too old for ublk devices, which need Linux 6.5: {why}");
    Error::new(ErrorCode::Unsupported, message).with_hint(format!("use the volume {ALTERNATIVES}"))
}

/// Why the kernel does not report its features.
fn no_features(error: &io::Error) -> Error {
    /// The kernel's internal number for an unknown command.
    const ENOTSUPP: i32 = 524;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => unusable(&io::ErrorKind::PermissionDenied.into()),
        Some(Errno::ENODEV | Errno::EINVAL | Errno::EOPNOTSUPP) => too_old(&error.to_string()),
        _ if error.raw_os_error() == Some(ENOTSUPP) => too_old("it does not know the question"),
        _ => unusable(error),
    }
}

/// The meaning of a refused recovery: `true` if it was begun before and nobody has served since (then Linux 6.12 returns `EINVAL`); `false`
/// if the dead server has not ended completely.
fn not_begun(number: u32, error: &io::Error) -> Result<bool, Error> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINVAL) => Ok(true),
        Some(Errno::EBUSY) => Ok(false),
        _ => Err(failed(number, "recovering", error)),
    }
}

fn not_made(number: u32, error: &io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EEXIST) => Error::new(
            ErrorCode::Exists,
            format!("/dev/ublkb{number} is another server's"),
        ),
        // `EACCES` is the error for the limit of the module's parameter.
        Some(Errno::ENOSPC | Errno::EMFILE | Errno::EACCES) => Error::new(
            ErrorCode::NoSpace,
            format!("the kernel makes no more ublk devices: {error}"),
        )
        .with_hint("detach one, or raise the parameter `ublks_max` of the module ublk_drv"),
        Some(Errno::EPERM) => unusable(&io::ErrorKind::PermissionDenied.into()),
        _ => failed(number, "making", error),
    }
}

fn failed(number: u32, what: &str, error: &io::Error) -> Error {
    Error::new(ErrorCode::Io, format!("{what} /dev/ublkb{number}: {error}"))
}

fn given_up(number: u32, what: &str, error: &io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINTR | Errno::ECANCELED) => Error::new(
            ErrorCode::Unavailable,
            format!(
                "{what} /dev/ublkb{number} was given up: its process has ended, or takes too long"
            ),
        ),
        _ => failed(number, what, error),
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::{Lineage, ObjectSize, OnFull};

    use super::*;

    fn volume(size: u64, read_only: bool) -> ServedVolume {
        ServedVolume {
            lineage: Lineage(1),
            size,
            object_size: ObjectSize::DEFAULT,
            read_only,
            serial: String::new(),
            on_full: OnFull::default(),
        }
    }

    #[test]
    fn a_device_has_a_cache_and_ranges_unless_it_is_read_only() {
        let written = parameters(&volume(513 * 512, false));
        assert_eq!(written.sectors, 513);
        assert_eq!(
            written.attributes,
            attribute::VOLATILE_CACHE | attribute::FUA
        );
        assert_eq!(written.discard_sectors_max, RANGE_MAX / 512);
        let read = parameters(&volume(512, true));
        assert_eq!(read.attributes & attribute::READ_ONLY, attribute::READ_ONLY);
        assert_eq!((read.discard_sectors_max, read.zeroes_sectors_max), (0, 0));
    }

    #[test]
    fn a_mark_names_the_node_and_the_volume() {
        let [one, other] = [b"/run/a", b"/run/b"];
        let mark = DeviceMark::new(one, 7);
        assert_eq!(mark, DeviceMark::new(one, 7));
        assert_ne!(mark, DeviceMark::new(one, 8));
        assert!(mark.is_of_node(DeviceMark::new(one, 8)));
        assert!(!mark.is_of_node(DeviceMark::new(other, 7)));
    }

    #[test]
    fn names_of_devices_are_read() {
        assert_eq!(number_of("ublkc12"), Some(12));
        for other in ["ublkb12", "ublkc", "ublkc-1", "control"] {
            assert_eq!(number_of(other), None);
        }
    }

    #[test]
    fn what_keeps_devices_away_is_said_with_other_ways() {
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied] {
            let error = unusable(&kind.into());
            assert!(error.message.contains("ublk"), "{error}");
            assert!(
                error.hint.contains("--nbd") && error.hint.contains("mount"),
                "{error}"
            );
        }
        for (errno, code) in [
            (Errno::ENOSPC, ErrorCode::NoSpace),
            (Errno::EACCES, ErrorCode::NoSpace),
            (Errno::EPERM, ErrorCode::Denied),
            (Errno::EEXIST, ErrorCode::Exists),
        ] {
            let error = io::Error::from_raw_os_error(errno as i32);
            assert_eq!(not_made(1, &error).code, code, "{errno}");
        }
    }

    #[test]
    fn a_kernel_that_is_too_old_is_told_from_one_that_has_no_memory() {
        for (errno, code) in [
            (Errno::ENODEV as i32, ErrorCode::Unsupported),
            (Errno::EINVAL as i32, ErrorCode::Unsupported),
            (Errno::EOPNOTSUPP as i32, ErrorCode::Unsupported),
            (524, ErrorCode::Unsupported),
            (Errno::EPERM as i32, ErrorCode::Denied),
            (Errno::ENOMEM as i32, ErrorCode::Io),
            (Errno::EMFILE as i32, ErrorCode::Io),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(no_features(&error).code, code, "{errno}");
        }
    }

    #[test]
    fn a_recovery_that_was_begun_before_goes_on_and_a_busy_one_waits() {
        let meaning = |errno: Errno| not_begun(1, &io::Error::from_raw_os_error(errno as i32));
        assert_eq!(meaning(Errno::EINVAL), Ok(true));
        assert_eq!(meaning(Errno::EBUSY), Ok(false));
        assert_eq!(meaning(Errno::ENODEV).unwrap_err().code, ErrorCode::Io);
    }
}
