//! `attach`: shows a volume to this host, and says where.
//!
//! Ganeti calls it all the time, also for `gnt-instance info` of an instance that is stopped, and nobody calls detach after that. So the
//! same again is the same answer, and over vhost-user and NBD it takes nothing that another could want: the volume is opened by
//! whoever connects.

use std::fmt;
use std::path::{Path, PathBuf};

use archipelago_api::client::path_segment;
use archipelago_api::types::EndpointKind;
use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::{EndpointSpec, Error, ErrorCode};

use crate::parameters::Access;
use crate::volume::Volume;
use crate::wrapper::DISK_PREFIX;

/// What Ganeti reads: a block device or an empty line, then an address for each hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    device: Option<PathBuf>,
    /// What QEMU gets as its disk.
    address: Option<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device.as_deref().unwrap_or(Path::new(""));
        writeln!(f, "{}", device.display())?;
        match &self.address {
            Some(address) => writeln!(f, "kvm:{address}"),
            None => Ok(()),
        }
    }
}

/// Attaches `volume` for `access`. Snapshots are for backups, which read a block device whatever the access of the instance's disks is;
/// their address in user space is an NBD export, which tools can read.
pub(super) fn attach(volume: &Volume<'_>, access: Access) -> Result<Answer, Error> {
    let is_frozen = volume.view()?.entry.kind != Kind::Volume;
    let device = match is_frozen || access == Access::BlockDevice {
        true => Some(block_device(volume)?),
        false => None,
    };
    let address = match (access, is_frozen) {
        (Access::BlockDevice, _) => None,
        (Access::VhostUser, false) => {
            volume.attach(EndpointKind::VhostUser)?;
            Some(format!("{DISK_PREFIX}{}", volume.name()))
        }
        (Access::Nbd, false) | (_, true) => Some(nbd_address(volume)?),
    };
    Ok(Answer { device, address })
}

fn block_device(volume: &Volume<'_>) -> Result<PathBuf, Error> {
    let attachment = volume.attach(EndpointKind::Block)?;
    Ok(attachment.endpoint.path().to_owned())
}

fn nbd_address(volume: &Volume<'_>) -> Result<String, Error> {
    let attachment = volume.attach(EndpointKind::Nbd)?;
    let EndpointSpec::Nbd { socket, export } = &attachment.endpoint else {
        let message = "the node attached something else than an NBD export";
        return Err(Error::new(ErrorCode::Internal, message));
    };
    let socket = socket.to_str().ok_or_else(|| {
        let message = format!("{}: an address takes UTF-8 only", socket.display());
        Error::new(ErrorCode::Invalid, message)
    })?;
    // Slashes are legal in a query; Ganeti hands commas on to QEMU as they are.
    let socket = path_segment(socket).replace("%2F", "/");
    Ok(format!(
        "nbd+unix:///{}?socket={socket}",
        path_segment(export)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ganeti fails at the start of an instance, not before, if the answer is one empty line.
    #[test]
    fn an_answer_is_a_device_or_an_empty_line_and_then_the_address() {
        for (device, address, expected) in [
            (Some("/dev/loop0"), None, "/dev/loop0\n"),
            (None, Some("rbd:vhost_user/v"), "\nkvm:rbd:vhost_user/v\n"),
            (
                Some("/run/1.block"),
                Some("nbd+unix:///v?socket=/s"),
                "/run/1.block\nkvm:nbd+unix:///v?socket=/s\n",
            ),
        ] {
            let answer = Answer {
                device: device.map(PathBuf::from),
                address: address.map(str::to_owned),
            };
            assert_eq!(answer.to_string(), expected);
        }
    }
}
