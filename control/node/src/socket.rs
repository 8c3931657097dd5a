//! UNIX sockets of the node: they are private to its owner, and replace sockets that a dead process has left.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use archipelago_protocol::{Error, ErrorCode};

/// Listens at `path`, to which only the owner has access. The caller holds the node's lock, so an old socket is not in use.
///
/// # Errors
/// [`ErrorCode::Io`] with the path.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed =
        |error: std::io::Error| Error::new(ErrorCode::Io, format!("{}: {error}", path.display()));
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Between bind and chmod, the directory's mode 0700 excludes other users.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Removes a socket at which no process listens any more, if it exists.
pub(crate) fn unlink(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("{}: {error}", path.display());
        }
        Ok(()) | Err(_) => {}
    }
}
