//! NBD devices: their numbers, the node and volume of each, and the operations on them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_api::layout::Layout;
use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::{EndpointSpec, Error, ErrorCode, Lineage};
use caps::{CapSet, Capability};
use nix::errno::Errno;

use super::connection::Connection;
use super::kernel::Kernel;
use crate::daemon::block::calls::blocking;

/// Timeout of a call to the kernel.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The directory in which the kernel lists devices.
const BLOCKS: &str = "/sys/block";
/// Milliseconds after which the kernel checks whether an unanswered request was sent over a connection that has ended. So a request in
/// flight is delayed at most so much longer than the reconnection takes. If its connection has not ended, the request continues.
const LOOK_MS: &str = "1000";
/// The user map of a user namespace with all users: that of the host.
const ALL_USERS: [&str; 3] = ["0", "0", "4294967295"];

/// The attribute `name` of the device `number` in sysfs.
fn attribute(number: u32, name: &str) -> Option<String> {
    let path = format!("{BLOCKS}/nbd{number}/{name}");
    Some(fs::read_to_string(path).ok()?.trim_end().to_owned())
}

/// Path of the device `number`.
pub(super) fn path_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{number}"))
}

/// Numbers of the existing devices, in use or not.
pub(super) fn numbers() -> Vec<u32> {
    let names = fs::read_dir(BLOCKS).into_iter().flatten().flatten();
    let number = |name: String| name.strip_prefix("nbd")?.parse().ok();
    names
        .filter_map(|entry| entry.file_name().into_string().ok().and_then(number))
        .collect()
}

/// A number that no attachment and no connected device has.
pub(crate) fn free_number(attached: impl Iterator<Item = u32>) -> u32 {
    let attached: Vec<u32> = attached.collect();
    // There are more numbers than devices and attachments, so one is free.
    (0..u32::MAX)
        .find(|number| !attached.contains(number) && attribute(*number, "pid").is_none())
        .unwrap_or(u32::MAX)
}

/// The endpoint of the device `number`, whose connection leads to `socket`.
pub(crate) fn endpoint(number: u32, socket: PathBuf) -> EndpointSpec {
    EndpointSpec::NbdDevice {
        device: number,
        path: path_of(number),
        socket,
    }
}

/// Whether this node can have NBD devices.
///
/// # Errors
/// [`ErrorCode::Unsupported`] with the reason.
pub(crate) async fn check() -> Result<(), Error> {
    let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_hosts = users.split_whitespace().eq(ALL_USERS);
    let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false);
    if !is_hosts || !may {
        let message = "NBD devices need CAP_SYS_ADMIN of the host itself";
        return Err(Error::new(ErrorCode::Unsupported, message));
    }
    blocking(CALL_TIMEOUT, |_goes_on| Kernel::open().map(drop)).await
}

/// The state of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceState {
    /// It does not exist, or is not connected.
    Free,
    /// It belongs to this node and this volume; its connection may have ended.
    Ours,
    /// It belongs to another node or program.
    Foreign,
}

/// The state of a device with these attributes in sysfs, for a node whose backend identifier would be `identifier`.
fn state_of(backend: Option<&str>, is_connected: bool, identifier: &str) -> DeviceState {
    match backend {
        Some(backend) if backend == identifier => DeviceState::Ours,
        None if !is_connected => DeviceState::Free,
        Some(_) | None => DeviceState::Foreign,
    }
}

/// A device that this node has created, or will create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnDevice {
    number: u32,
    /// The kernel stores it as the backend identifier.
    identifier: String,
}

/// The prefix of the identifiers of the node at `layout`: it differs from that of a node in another container with the same path.
pub(super) fn prefix(layout: &Layout) -> String {
    let state = fs::metadata(layout.state());
    let (device, inode) = state.map_or((0, 0), |found| (found.dev(), found.ino()));
    let run = layout.run().display();
    format!("archipelago:{device:x}:{inode:x}:{run}:")
}

/// Whether the device `number` belongs to a node whose identifiers begin with `prefix`.
pub(super) fn is_of_node(number: u32, prefix: &str) -> bool {
    attribute(number, "backend").is_some_and(|backend| backend.starts_with(prefix))
}

impl OwnDevice {
    /// The device `number` of the volume `lineage` of the node at `layout`.
    pub(crate) fn new(layout: &Layout, lineage: Lineage, number: u32) -> OwnDevice {
        OwnDevice {
            number,
            identifier: format!("{}{lineage}", prefix(layout)),
        }
    }

    /// Its path.
    pub(super) fn path(&self) -> PathBuf {
        path_of(self.number)
    }

    /// Its state.
    pub(super) fn state(&self) -> DeviceState {
        let backend = attribute(self.number, "backend");
        let is_connected = attribute(self.number, "pid").is_some();
        state_of(backend.as_deref(), is_connected, &self.identifier)
    }

    fn failed(&self, what: &str, errno: Errno) -> Error {
        let code = match errno {
            Errno::EBUSY => ErrorCode::Exists,
            Errno::EPERM => ErrorCode::Denied,
            _ => ErrorCode::Io,
        };
        let path = self.path();
        Error::new(code, format!("{what} {}: {errno}", path.display()))
    }

    /// Creates the device, with a connection to `socket`.
    ///
    /// # Errors
    /// [`ErrorCode::Exists`] if another program has taken the number, [`ErrorCode::Unsupported`] if the kernel or the host does not support
    /// it.
    pub(super) fn connect(&self, socket: &Path) -> Result<(), Error> {
        let connection = Connection::open(socket)?;
        let mut kernel = Kernel::open()?;
        let is_new = !Path::new(BLOCKS)
            .join(format!("nbd{}", self.number))
            .exists();
        let connected = kernel.connect(self.number, &self.identifier, &connection, is_new);
        connected.map_err(|errno| self.failed("connecting", errno))?;
        let prepared = self.prepare();
        if prepared.is_err() {
            let _left = kernel.disconnect(self.number);
        }
        prepared
    }

    /// Sets what is needed besides the connection, and checks the requirements.
    fn prepare(&self) -> Result<(), Error> {
        let unusable = |message: String| Err(Error::new(ErrorCode::Unsupported, message));
        if self.state() != DeviceState::Ours {
            let message = "this kernel keeps no identifiers of NBD devices: that takes Linux 5.14";
            return unusable(message.to_owned());
        }
        let path = self.path();
        if !path.exists() {
            let message = format!(
                "there is no {}: does the kernel manage /dev?",
                path.display()
            );
            return unusable(message);
        }
        let timeout = format!("{BLOCKS}/nbd{}/queue/io_timeout", self.number);
        fs::write(&timeout, LOOK_MS)
            .map_err(|error| Error::new(ErrorCode::Unsupported, format!("{timeout}: {error}")))
    }

    /// If the device has lost its connection, gives it a new one to `socket`, and the size of the export.
    ///
    /// # Errors
    /// The error of the endpoint or the kernel.
    pub(super) fn reconnect(&self, socket: &Path) -> Result<(), Error> {
        let connection = Connection::open(socket)?;
        let mut kernel = Kernel::open()?;
        let reconnected = kernel.reconnect(self.number, &self.identifier, &connection);
        reconnected.map_err(|errno| self.failed("connecting", errno))?;
        self.resize_to(&mut kernel, connection.export.size)
    }

    fn resize_to(&self, kernel: &mut Kernel, size: u64) -> Result<(), Error> {
        let sectors = attribute(self.number, "size").and_then(|sectors| sectors.parse().ok());
        // sysfs counts in sectors, whatever the block size of the device.
        if sectors.and_then(|sectors: u64| sectors.checked_mul(SECTOR_SIZE)) == Some(size) {
            return Ok(());
        }
        let resized = kernel.resize(self.number, &self.identifier, size);
        resized.map_err(|errno| self.failed("resizing", errno))
    }

    /// Sets the size of the device, if it exists, to that of its volume. The endpoint has the new size already.
    ///
    /// # Errors
    /// The kernel's error; the volume has its new size nevertheless.
    pub(crate) async fn resize(self, size: u64) -> Result<(), Error> {
        blocking(CALL_TIMEOUT, move |_goes_on| match self.state() {
            DeviceState::Ours => self.resize_to(&mut Kernel::open()?, size),
            // It will be created with the size that the volume has then.
            DeviceState::Free | DeviceState::Foreign => Ok(()),
        })
        .await
    }

    /// Disconnects the device, if it belongs to this attachment: its pending requests fail.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn disconnect(&self) -> Result<(), Error> {
        if self.state() != DeviceState::Ours {
            return Ok(());
        }
        let disconnected = Kernel::open()?.disconnect(self.number);
        disconnected.map_err(|errno| self.failed("disconnecting", errno))
    }

    /// The error that it belongs to another node or program.
    pub(super) fn foreign(&self) -> Error {
        let message = format!("{} belongs to somebody else", self.path().display());
        Error::new(ErrorCode::Exists, message)
            .with_hint("detach the volume, and attach it again: it gets another device")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_with_the_identifier_is_the_node_s_own() {
        use DeviceState::{Foreign, Free, Ours};
        let identifier = "archipelago:1:2:/run:ab";
        for (backend, is_connected, expected) in [
            (None, false, Free),
            (None, true, Foreign),
            (Some(identifier), true, Ours),
            // Its connection has ended.
            (Some(identifier), false, Ours),
            (Some("archipelago:1:2:/run:abc"), true, Foreign),
            (Some("archipelago:1:3:/run:ab"), true, Foreign),
            (Some(""), false, Foreign),
        ] {
            let found = state_of(backend, is_connected, identifier);
            assert_eq!(found, expected, "{backend:?}, {is_connected}");
        }
    }

    #[test]
    fn another_node_at_the_same_path_has_other_identifiers() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("node");
        let layout = Layout::new(Some(&root)).unwrap();
        let make = || fs::create_dir_all(layout.state()).unwrap();
        make();
        let first = prefix(&layout);
        assert_eq!(prefix(&layout), first);
        // Both are there, so no inode number is used again.
        fs::rename(&root, dir.path().join("former")).unwrap();
        make();
        assert_ne!(prefix(&layout), first);
        let lineage = Lineage(7);
        let own = OwnDevice::new(&layout, lineage, 3);
        assert!(own.identifier.starts_with(&prefix(&layout)), "{own:?}");
    }

    #[test]
    fn the_first_number_that_nobody_has_is_given() {
        // Beyond what a kernel makes when its module is loaded.
        let attached = || 0..4095;
        assert_eq!(free_number(attached()), 4095);
        assert_eq!(free_number(attached().skip(1).chain([0, 4095])), 4096);
    }
}
