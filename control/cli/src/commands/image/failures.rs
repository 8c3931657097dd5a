//! I/O errors of files, as error messages for users.

use std::io::ErrorKind;

use archipelago_protocol::{Error, ErrorCode};

/// Why `title` cannot be read.
pub(super) fn read_error(title: &str, error: &std::io::Error) -> Error {
    let code = if error.kind() == ErrorKind::NotFound {
        ErrorCode::NotFound
    } else {
        ErrorCode::Io
    };
    Error::new(code, format!("{title}: {error}"))
}

/// Why `title` cannot be written.
pub(super) fn write_error(title: &str, error: &std::io::Error) -> Error {
    let code = match error.kind() {
        ErrorKind::StorageFull => ErrorCode::NoSpace,
        ErrorKind::NotFound => ErrorCode::NotFound,
        ErrorKind::IsADirectory => ErrorCode::Invalid,
        _ => ErrorCode::Io,
    };
    Error::new(code, format!("{title}: {error}"))
}
