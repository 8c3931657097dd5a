//! `grow`: a larger volume, which a running guest sees over vhost-user at once.

use archipelago_api::types::{Attachment, EndpointKind};
use archipelago_protocol::{Error, ErrorCode};

use crate::volume::Volume;

/// Gives `volume` the size of `size` bytes.
pub(super) fn grow(volume: &Volume<'_>, size: u64) -> Result<(), Error> {
    let view = volume.view()?;
    let present = view.entry.size;
    if size < present {
        let present = present.div_ceil(1 << 20);
        let message = format!(
            "it has {present} MiB already and does not shrink to {} MiB",
            size >> 20
        );
        return Err(Error::new(ErrorCode::Invalid, message).with_hint(format!(
            "it was resized beside Ganeti, which takes over its size by: gnt-instance grow-disk --absolute INSTANCE N {present}M"
        )));
    }
    // Again also if it has the size: what was interrupted may not have reached the guest.
    match volume.resize(size) {
        Err(error) if error.code == ErrorCode::Unsupported => {
            grow_detached(volume, &view.attachments, size, &error)
        }
        resized => resized.map(|_resized| ()),
    }
}

/// The same for a device that keeps its size, as those of ublk do before Linux 6.16. Ganeti attaches a disk before it lets it grow,
/// also one of an instance that is stopped: `attachments` end meanwhile, if nobody uses them.
fn grow_detached(
    volume: &Volume<'_>,
    attachments: &[Attachment],
    size: u64,
    refusal: &Error,
) -> Result<(), Error> {
    volume.try_detach_all().map_err(|error| match error.code {
        ErrorCode::InUse => Error {
            message: format!("{}; {}", refusal.message, error.message),
            hint: "stop the instance, let the disk grow, and start the instance".to_owned(),
            ..error
        },
        _ => error,
    })?;
    let resized = volume.resize(size);
    for attachment in attachments {
        let kind = EndpointKind::of(&attachment.endpoint);
        match attachment.read_only {
            true => volume.attach_read_only(kind)?,
            false => volume.attach(kind)?,
        };
    }
    resized.map(|_resized| ())
}
