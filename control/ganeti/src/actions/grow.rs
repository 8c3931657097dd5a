//! `grow`: makes a volume larger; over vhost-user a running guest sees the new size at once.

use archipelago_api::types::{Attachment, EndpointKind};
use archipelago_protocol::{Error, ErrorCode};

use crate::volume::Volume;

/// Sets the size of `volume` to `size` bytes.
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
    // Repeated even if the volume has the size: an interrupted resize may not have reached the guest.
    match volume.resize(size) {
        Err(error) if error.code == ErrorCode::Unsupported => {
            grow_detached(volume, &view.attachments, size, &error)
        }
        resized => resized.map(|_resized| ()),
    }
}

/// Resizes a volume whose device cannot change its size, as those of ublk before Linux 6.16. Ganeti attaches a disk before it grows it,
/// also one of a stopped instance: `attachments` are detached for the resize, if they are not in use.
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
