//! `create`: makes a new volume, empty or a clone, and attaches it.

use archipelago_api::types::{CloneVolume, CreateVolume, VolumeView};
use archipelago_protocol::{Error, ErrorCode, Name};

use super::attach;
use super::node::Node;
use super::ownership;
use crate::parameters::{Access, NewDisk};
use crate::settings::Settings;

/// From this version on, Ganeti rejects NBD URIs.
const NO_NBD_SINCE: (u32, u32) = (3, 1);

/// Makes `volume` of `size` bytes, and attaches it: Ganeti never removes a volume that was made but cannot be attached.
pub(super) fn create(
    node: &Node<'_>,
    volume: &Name,
    size: u64,
    disk: &NewDisk,
) -> Result<(), Error> {
    check_access(disk.access, node.settings())?;
    let volume = node.volume(volume);
    // Labelled when it is made: if the answer is lost, no later call reports the volume's owner.
    let labels = ownership::of_new(volume.name())?;
    let made = match &disk.origin {
        None => volume.create(&CreateVolume {
            name: volume.name().clone(),
            size,
            pool: disk.pool.clone(),
            object_size: disk.object_size,
            on_full: disk.on_full,
            labels,
        }),
        Some(origin) => {
            check_origin(&node.volume(origin).view()?, size, disk)?;
            let request = CloneVolume {
                name: volume.name().clone(),
                size: Some(size),
                on_full: disk.on_full,
                labels,
            };
            volume.clone_of(origin, &request)
        }
    };
    made.map_err(|error| match error.code {
        // Ganeti uses the same name again when it recreates the disks of an instance.
        ErrorCode::Exists => error.with_hint(format!(
            "its data stays; to begin with an empty disk, remove it first: archipelago volume remove {}",
            volume.name()
        )),
        _ => error,
    })?;
    let Err(cause) = attach::attach(&volume, disk.access) else {
        return Ok(());
    };
    Err(match volume.remove() {
        Ok(()) => Error {
            message: format!(
                "it cannot be attached, and was removed again: {}",
                cause.message
            ),
            ..cause
        },
        Err(error) => Error {
            message: format!(
                "it cannot be attached: {}; and it could not be removed again: {}",
                cause.message, error.message
            ),
            hint: format!("remove it: archipelago volume remove {}", volume.name()),
            ..cause
        },
    })
}

fn check_access(access: Access, settings: &Settings) -> Result<(), Error> {
    match settings.ganeti_version() {
        Some(version) if access == Access::Nbd && version >= NO_NBD_SINCE => {
            let (major, minor) = version;
            let message =
                format!("userspace=nbd: Ganeti {major}.{minor} does not support NBD URIs");
            Err(Error::new(ErrorCode::Unsupported, message)
                .with_hint("leave it out, for vhost-user, or use access=kernelspace"))
        }
        _ => Ok(()),
    }
}

/// Refuses parameters that a clone of `origin` cannot have.
fn check_origin(origin: &VolumeView, size: u64, disk: &NewDisk) -> Result<(), Error> {
    let name = &origin.entry.name;
    let refused = |message: String, hint: String| {
        Err(Error::new(ErrorCode::Invalid, message).with_hint(hint))
    };
    let needed = origin.entry.size.div_ceil(1 << 20);
    if size < origin.entry.size {
        return refused(
            format!(
                "the disk has {} MiB, its origin `{name}` {needed} MiB: a clone is never smaller",
                size >> 20
            ),
            format!("make the disk larger: size={needed}M"),
        );
    }
    if let Some(pool) = disk.pool.as_ref().filter(|pool| **pool != origin.pool) {
        let own = &origin.pool;
        return refused(
            format!(
                "a clone is in the pool of its origin: `{name}` is in `{own}`, not in `{pool}`"
            ),
            format!("leave pool= out, or import the image into `{pool}`"),
        );
    }
    let own = origin.entry.object_size;
    if let Some(asked) = disk.object_size.filter(|asked| *asked != own) {
        return refused(
            format!(
                "a clone has objects of its origin's size: {} bytes in `{name}`, not {}",
                own.bytes(),
                asked.bytes()
            ),
            "leave object-size= out".to_owned(),
        );
    }
    Ok(())
}
