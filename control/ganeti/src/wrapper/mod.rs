//! The wrapper that Ganeti calls as `kvm_path`: QEMU with vhost-user disks.
//!
//! Ganeti does not support vhost-user disks, but it passes an address in user space on to QEMU's command line. This program stands between
//! the two: it finds the disks whose address is [`DISK_PREFIX`] and a volume's name, asks the node for their sockets, and becomes QEMU,
//! with the same process id and the descriptors that Ganeti passed on. Without such a disk it asks nothing and changes nothing, so Ganeti's
//! probes (`--help`, `-machine ?`, `-device ?`) work.
//!
//! | file | content |
//! |---|---|
//! | `command_line` | which disks are rewritten, and how: a pure function |
//! | `memory` | shared memory of the guest |
//! | `arguments`, `options` | the syntax of QEMU's arguments |

mod arguments;
mod command_line;
mod memory;
mod options;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use archipelago_api::client::{Client, path_segment};
use archipelago_api::types::VolumeView;
use archipelago_protocol::{EndpointSpec, Error, ErrorCode, Name};

use crate::settings::Settings;

pub use command_line::{CommandLine, DISK_PREFIX, Endpoint, Reconnect, reconnect_of};

/// The wrapper's name.
pub const WRAPPER_NAME: &str = "archipelago-kvm";
/// The device that a disk becomes.
const VHOST_USER_DEVICE: &str = "vhost-user-blk-pci";
/// The hint if QEMU is not found.
const NAME_QEMU: &str = "name QEMU by `archipelago ganeti install --qemu FILE`";
/// The default QEMU binaries: the first one that exists is used.
const QEMU: [&str; 2] = ["/usr/bin/kvm", "/usr/bin/qemu-system-x86_64"];

/// Becomes QEMU with `arguments`; returns only if that fails.
#[must_use]
pub fn become_qemu(arguments: Vec<OsString>, settings: &Settings) -> Error {
    match command(arguments, settings) {
        Ok(mut command) => {
            let error = command.exec();
            let program = Path::new(command.get_program()).display();
            failed(format!("starting {program}: {error}")).with_hint(NAME_QEMU)
        }
        Err(error) => error,
    }
}

fn failed(message: String) -> Error {
    Error::new(ErrorCode::Unavailable, message)
}

fn command(arguments: Vec<OsString>, settings: &Settings) -> Result<Command, Error> {
    let program = qemu(settings)?;
    let line = CommandLine::parse(arguments)?;
    let volumes: Vec<&Name> = line.volumes().collect();
    let mut endpoints = Vec::new();
    let mut reconnect = Reconnect::Seconds;
    if !volumes.is_empty() {
        let client = Client::new(settings.layout()?);
        for volume in volumes {
            endpoints.push(endpoint(&client, volume)?);
        }
        reconnect = reconnect_of(&version(&program));
    }
    let mut command = Command::new(program);
    command.args(line.rewrite(&endpoints, reconnect)?);
    Ok(command)
}

/// Path of the QEMU binary.
fn qemu(settings: &Settings) -> Result<PathBuf, Error> {
    let found = || {
        QEMU.into_iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
    };
    let program = settings
        .qemu
        .clone()
        .or_else(found)
        .unwrap_or_else(|| PathBuf::from(QEMU[1]));
    let is_this = std::fs::canonicalize(&program)
        .ok()
        .zip(std::env::current_exe().ok())
        .is_some_and(|(program, this)| program == this);
    if is_this {
        let message = format!("{} is this wrapper, not QEMU", program.display());
        return Err(failed(message).with_hint(NAME_QEMU));
    }
    Ok(program)
}

/// Checks that QEMU exists, and supports the options that the wrapper adds.
///
/// # Errors
/// What is missing.
pub(crate) fn check_qemu(settings: &Settings) -> Result<(), Error> {
    let program = qemu(settings)?;
    let path = program.display();
    let output = Command::new(&program)
        .args(["-device", "help"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("{path}: {error}")).with_hint(NAME_QEMU))?;
    let devices = String::from_utf8_lossy(&output.stdout);
    if !devices.contains(VHOST_USER_DEVICE) {
        let message = format!("{path} has no device {VHOST_USER_DEVICE}");
        return Err(failed(message).with_hint(NAME_QEMU));
    }
    Ok(())
}

/// The version that QEMU prints; empty if it prints none.
fn version(program: &Path) -> OsString {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    output.map_or_else(
        |_failed| OsString::new(),
        |output| OsStr::from_bytes(&output.stdout).to_owned(),
    )
}

/// The endpoint at which `volume` is attached for a virtual machine.
fn endpoint(client: &Client, volume: &Name) -> Result<Endpoint, Error> {
    let path = format!("/v1/volumes/{}", path_segment(volume.as_str()));
    let view: VolumeView = client.get(&path).map_err(|error| Error {
        message: format!("volume `{volume}`: {}", error.message),
        ..error
    })?;
    let sockets = view.attachments.into_iter().map(|one| one.endpoint);
    let mut endpoints = sockets.filter_map(|endpoint| match endpoint {
        EndpointSpec::VhostUser { socket, queues } => Some(Endpoint { socket, queues }),
        _ => None,
    });
    endpoints.next().ok_or_else(|| {
        failed(format!("volume `{volume}` is not attached over vhost-user")).with_hint(
            "its instance's disks are not activated: gnt-instance activate-disks INSTANCE, or start it by Ganeti",
        )
    })
}
