//! UNIX sockets of the node: private to its owner, and in place of what a dead process has left.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use archipelago_protocol::{Error, ErrorCode};

/// Listens at `path`, which only the owner may open. The caller holds the node's lock, so an old socket is nobody's.
///
/// # Errors
/// [`ErrorCode::Io`] naming the path.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed =
        |error: std::io::Error| Error::new(ErrorCode::Io, format!("{}: {error}", path.display()));
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Between bind and chmod the directory's 0700 keeps others out.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Removes a socket that no process listens to any more, if it exists.
pub(crate) fn unlink(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("{}: {error}", path.display());
        }
        Ok(()) | Err(_) => {}
    }
}
