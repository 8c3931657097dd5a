//! `attach`: makes a volume accessible on this host, and prints its path and address.
//!
//! Ganeti calls it often, also for `gnt-instance info` of a stopped instance, and does not call detach after that. So a repeated attach
//! returns the same answer, and over vhost-user and NBD an attachment alone excludes nobody: the volume is opened when a client connects.

use std::fmt;
use std::path::{Path, PathBuf};

use archipelago_api::client::path_segment;
use archipelago_api::types::{Attachment, EndpointKind};
use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::{EndpointSpec, Error, ErrorCode};

use crate::parameters::Access;
use crate::volume::Volume;
use crate::wrapper::DISK_PREFIX;

/// What Ganeti reads: a block device or an empty line, then an address for each hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    device: Option<PathBuf>,
    /// The disk's address for QEMU.
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

/// Attaches `volume` for `access`. A snapshot serves backups, which read a block device whatever the access of the instance's disks is. Its
/// address in user space is an NBD export, which tools can read.
pub(super) fn attach(volume: &Volume<'_>, access: Access) -> Result<Answer, Error> {
    let is_frozen = volume.view()?.entry.kind != Kind::Volume;
    let shown = |kind| match is_frozen {
        true => volume.attach_read_only(kind),
        false => attach_for_writes(volume, kind),
    };
    let device = match is_frozen || access == Access::BlockDevice {
        true => Some(shown(EndpointKind::Block)?.endpoint.path().to_owned()),
        false => None,
    };
    let address = match (access, is_frozen) {
        (Access::BlockDevice, _) => None,
        (Access::VhostUser, false) => {
            shown(EndpointKind::VhostUser)?;
            Some(format!("{DISK_PREFIX}{}", volume.name()))
        }
        (Access::Nbd, false) | (_, true) => Some(nbd_address(&shown(EndpointKind::Nbd)?)?),
    };
    Ok(Answer { device, address })
}

/// Attaches `volume` as `kind`, and detaches an unused attachment of another kind first: Ganeti also attaches disks of stopped instances,
/// and does not detach them before a change of `access`. Read-only attachments were not made by Ganeti, and stay.
fn attach_for_writes(volume: &Volume<'_>, kind: EndpointKind) -> Result<Attachment, Error> {
    let refusal = match volume.attach(kind) {
        Err(error) if error.code == ErrorCode::InUse => error,
        attached => return attached,
    };
    let attachments = volume.view()?.attachments;
    let is_former = |one: &Attachment| !one.read_only && !kind.includes(&one.endpoint);
    if !attachments.iter().any(is_former) {
        return Err(refusal);
    }
    // The node refuses to end an attachment that is in use.
    volume.try_detach_all().map_err(|error| match error.code {
        ErrorCode::InUse => Error {
            message: format!("{}; {}", refusal.message, error.message),
            hint: format!("stop the instance first; {}", refusal.hint),
            ..error
        },
        _ => error,
    })?;
    volume.attach(kind)
}

fn nbd_address(attachment: &Attachment) -> Result<String, Error> {
    let EndpointSpec::Nbd { socket, export } = &attachment.endpoint else {
        let message = "the node attached something else than an NBD export";
        return Err(Error::new(ErrorCode::Internal, message));
    };
    let socket = socket.to_str().ok_or_else(|| {
        let message = format!("{}: an address takes UTF-8 only", socket.display());
        Error::new(ErrorCode::Invalid, message)
    })?;
    // Slashes are legal in a query; Ganeti passes commas on to QEMU unchanged.
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
