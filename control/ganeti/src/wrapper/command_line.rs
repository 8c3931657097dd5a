//! QEMU's command line as Ganeti writes it, and its rewriting.
//!
//! A disk with our address takes two arguments, in Ganeti's order. Ganeti 3.0:
//!
//! ```text
//! -device virtio-blk-pci,id=disk-ID,bus=pci.0,addr=0xd,drive=disk-ID
//! -drive file=rbd:vhost_user/VOLUME,format=raw,if=none,aio=threads,cache=none,id=disk-ID,auto-read-only=off
//! ```
//!
//! and since 3.1:
//!
//! ```text
//! -device virtio-blk-pci,id=disk-ID,bus=pci.0,addr=0xd,drive=disk-ID,write-cache=on
//! -blockdev driver=raw,node-name=disk-ID,discard=ignore,cache.direct=on,cache.no-flush=off,file.driver=rbd,file.pool=vhost_user,file.image=VOLUME
//! ```
//!
//! The device becomes a vhost-user device at the same place of the same bus, and the drive becomes its socket. The guest's memory becomes
//! shared ([`super::memory`]). No other byte changes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use archipelago_protocol::{Error, ErrorCode, Name};

use super::arguments::positions_of;
use super::memory::share_memory;
use super::options::OptionList;

/// Prefix of the address of a disk that the wrapper rewrites: one that the parsers of both versions of Ganeti accept.
pub const DISK_PREFIX: &str = "rbd:vhost_user/";

/// QEMU's device of a disk that Ganeti calls paravirtual; it is replaced. Variants have the same ending: `-non-transitional`.
const DEVICE: &[u8] = b"virtio-blk-pci";
const VHOST_USER_DEVICE: &[u8] = b"vhost-user-blk-pci";
/// Properties of that device that a vhost-user device does not have.
const OF_DRIVE: [&str; 2] = ["drive", "write-cache"];

/// Where a volume is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Request queues that it offers.
    pub queues: u16,
}

/// The option that makes this version of QEMU connect again after the socket's process was restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    /// `reconnect`, in seconds: before version 9.2.
    Seconds,
    /// `reconnect-ms`: since version 9.2.
    Milliseconds,
}

/// A disk with our address.
#[derive(Debug)]
struct Disk {
    volume: Name,
    id: Vec<u8>,
    /// Index of the value of its `-drive` or `-blockdev` among the arguments.
    drive: usize,
    /// Index of the value of its `-device`.
    device: usize,
}

/// A command line.
#[derive(Debug)]
pub struct CommandLine {
    arguments: Vec<OsString>,
    disks: Vec<Disk>,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::Invalid, message)
}

impl CommandLine {
    /// The command line of `arguments`, without the program.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] for a disk with our address that cannot be a vhost-user device.
    pub fn parse(arguments: Vec<OsString>) -> Result<CommandLine, Error> {
        let mut disks = Vec::new();
        for option in ["drive", "blockdev"] {
            for at in positions_of(&arguments, option) {
                let list = OptionList::parse(&arguments[at]);
                let found = match option {
                    "drive" => of_drive(&list),
                    _ => of_block_device(&list),
                };
                if let Some((volume, id)) = found {
                    let volume = volume_name(volume)?;
                    let id = id.ok_or_else(|| not_paravirtual(&volume))?.to_vec();
                    let device = device(&arguments, &id, &volume)?;
                    let drive = at - 1;
                    disks.push(Disk {
                        volume,
                        id,
                        drive,
                        device,
                    });
                }
            }
        }
        Ok(CommandLine { arguments, disks })
    }

    /// The volumes of the disks with our address.
    pub fn volumes(&self) -> impl Iterator<Item = &Name> {
        self.disks.iter().map(|disk| &disk.volume)
    }

    /// The arguments for QEMU, with the disks connected to `endpoints`, which are in the order of [`CommandLine::volumes`]. Without disks
    /// of ours the arguments are unchanged.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if the guest's memory cannot be shared.
    pub fn rewrite(
        self,
        endpoints: &[Endpoint],
        reconnect: Reconnect,
    ) -> Result<Vec<OsString>, Error> {
        let CommandLine {
            mut arguments,
            disks,
        } = self;
        if disks.is_empty() {
            return Ok(arguments);
        }
        for (disk, endpoint) in disks.iter().zip(endpoints) {
            let channel = [b"archipelago-", disk.id.as_slice()].concat();
            let (key, interval) = match reconnect {
                Reconnect::Seconds => ("reconnect", "1"),
                Reconnect::Milliseconds => ("reconnect-ms", "1000"),
            };
            let socket = OptionList::new(b"socket")
                .with("id", &channel)
                .with("path", endpoint.socket.as_os_str().as_bytes())
                .with(key, interval.as_bytes());
            arguments[disk.drive] = "-chardev".into();
            arguments[disk.drive + 1] = socket.render();
            let device = OptionList::parse(&arguments[disk.device]);
            let variant = device.name().and_then(|name| name.strip_prefix(DEVICE));
            let name = [VHOST_USER_DEVICE, variant.unwrap_or_default()].concat();
            let has_queues = device.get("num-queues").is_some();
            let mut device = device
                .renamed(&name)
                .without(&OF_DRIVE)
                .with("chardev", &channel);
            if !has_queues {
                // By default QEMU uses a queue for each processor of the guest, and fails if that is more than the endpoint offers.
                device = device.with("num-queues", endpoint.queues.to_string().as_bytes());
            }
            arguments[disk.device] = device.render();
        }
        share_memory(arguments)
    }
}

/// Volume and id of a `-drive` with our address. Without an id no device refers to it.
fn of_drive(list: &OptionList) -> Option<(&[u8], Option<&[u8]>)> {
    let volume = list.get("file")?.strip_prefix(DISK_PREFIX.as_bytes())?;
    let id = list.get("id").filter(|_| list.has("if", "none"));
    Some((volume, id))
}

/// Volume and name of a `-blockdev` with our address.
fn of_block_device(list: &OptionList) -> Option<(&[u8], Option<&[u8]>)> {
    let (pool, _) = DISK_PREFIX.strip_prefix("rbd:")?.split_once('/')?;
    let is_ours = list.has("file.driver", "rbd") && list.has("file.pool", pool);
    let volume = list.get("file.image").filter(|_| is_ours)?;
    Some((volume, list.get("node-name")))
}

fn volume_name(bytes: &[u8]) -> Result<Name, Error> {
    let text = std::str::from_utf8(bytes);
    let name = text.map_err(|_binary| invalid("a disk has an address that is not UTF-8"))?;
    name.parse()
}

fn not_paravirtual(volume: &Name) -> Error {
    let message = format!("volume `{volume}`: only a paravirtual disk can be one of vhost-user");
    invalid(message)
        .with_hint("gnt-instance modify -H disk_type=paravirtual INSTANCE, or access=kernelspace")
}

/// Index of the value of the one `-device` whose drive is `id`.
fn device(arguments: &[OsString], id: &[u8], volume: &Name) -> Result<usize, Error> {
    let of_disk = |at: &usize| {
        let device = OptionList::parse(&arguments[*at]);
        device.get("drive") == Some(id)
    };
    let devices: Vec<usize> = positions_of(arguments, "device").filter(of_disk).collect();
    let [device] = devices.as_slice() else {
        return Err(not_paravirtual(volume));
    };
    let list = OptionList::parse(&arguments[*device]);
    let variant = list.name().and_then(|name| name.strip_prefix(DEVICE));
    match variant {
        Some([] | [b'-', ..]) => Ok(*device),
        _ => Err(not_paravirtual(volume)),
    }
}

/// The reconnect option for the version that `qemu --version` prints.
#[must_use]
pub fn reconnect_of(version: &OsStr) -> Reconnect {
    let text = version.to_string_lossy();
    let after = text.split_once("version ").map_or("", |(_, rest)| rest);
    let mut numbers = after.split(|character: char| !character.is_ascii_digit());
    let mut number = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
    match (number(), number()) {
        (Some(major), Some(minor)) if (major, minor) >= (9, 2) => Reconnect::Milliseconds,
        _ => Reconnect::Seconds,
    }
}

#[cfg(test)]
mod tests;
