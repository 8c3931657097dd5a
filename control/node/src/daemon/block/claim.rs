//! Checks that nobody else uses a device, before it is stopped.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use archipelago_protocol::{Error, ErrorCode};
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::users;

/// Opens the block device at `path`, which nobody else may have open.
///
/// # Errors
/// [`ErrorCode::InUse`] if it is open, mounted, or part of another device; [`ErrorCode::Io`] otherwise.
pub(crate) fn claim(path: &Path) -> Result<File, Error> {
    let claimed = open_alone(path)?;
    match users::of(path) {
        None => Ok(claimed),
        Some(user) => {
            let message = format!("{} is open: {user} uses it", path.display());
            Err(Error::new(ErrorCode::InUse, message)
                .with_hint("stop the program that uses it, then detach"))
        }
    }
}

/// Opens the device exclusively: this fails if it is mounted or part of another device.
fn open_alone(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(OFlag::O_EXCL.bits());
    options.open(path).map_err(|error| {
        let path = path.display();
        match error.raw_os_error() {
            Some(errno) if errno == Errno::EBUSY as i32 => Error::new(
                ErrorCode::InUse,
                format!("{path} is mounted, or part of another device"),
            )
            .with_hint("unmount it, or remove what is on top of it, then detach"),
            _ => Error::new(ErrorCode::Io, format!("{path}: {error}")),
        }
    })
}

/// Writes back the dirty pages of `device`, which is at `path`, from the host's page cache.
///
/// # Errors
/// [`ErrorCode::Io`] with the kernel's error.
pub(crate) fn write_back(device: &File, path: &Path) -> Result<(), Error> {
    device.sync_all().map_err(|error| {
        let message = format!("writing back {}: {error}", path.display());
        Error::new(ErrorCode::Io, message)
    })
}
