//! Errors of the system, as error messages.

use std::io;
use std::path::Path;

use archipelago_protocol::{Error, ErrorCode};

/// Why something at `path` could not be made or removed.
pub(super) fn failed(path: &Path, error: &io::Error) -> Error {
    let message = format!("{}: {error}", path.display());
    let error_of = Error::new(ErrorCode::Io, message);
    match error.kind() {
        io::ErrorKind::PermissionDenied => error_of.with_hint("run this as root"),
        _ => error_of,
    }
}
