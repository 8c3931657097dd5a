//! Makes a pool's directory.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use archipelago_protocol::error::{DAMAGED_HINT, UNSUPPORTED_FORMAT_HINT};
use archipelago_protocol::{Error, ErrorCode};

use crate::errors::failed;
use crate::layout::Layout;
use crate::{lock, owner};

/// The only version of the format so far, without incompatible features.
const MARKER: &str =
    "# A pool of Archipelago. See docs/pool-format.md before you touch anything.\nversion = 1\n";
/// The directory that `mkfs` makes in the root of a file system; it stays there.
const LOST_AND_FOUND: &str = "lost+found";

/// Makes `directory` a pool. A pool is left unchanged.
///
/// # Errors
/// [`ErrorCode::Exists`] if the directory holds something else; otherwise the error of the system.
pub fn create(directory: &Path) -> Result<(), Error> {
    let layout = Layout::new(directory);
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(|error| failed("make the directory", directory, &error))?;
    if layout.marker().exists() {
        return check_marker(&layout);
    }
    let unreadable = |error| failed("read", directory, &error);
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if name == LOST_AND_FOUND {
            continue;
        }
        let message = format!(
            "`{}` is not empty and not a pool: it holds `{}`",
            directory.display(),
            name.display()
        );
        return Err(Error::new(ErrorCode::Exists, message)
            .with_hint("choose an empty directory for the pool"));
    }
    let marker = layout.marker();
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&marker);
    let mut file = made.map_err(|error| failed("make", &marker, &error))?;
    let mut write = || -> std::io::Result<()> {
        // The marker comes last: with it the pool is complete.
        lock::reserve(&layout)?;
        owner::reserve(&layout)?;
        file.write_all(MARKER.as_bytes())?;
        file.sync_all()?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| {
        // A half-written marker would be refused for ever, as one of an unknown version.
        let _removed = fs::remove_file(&marker);
        let _gone = fs::remove_file(layout.lock());
        let _gone = fs::remove_file(layout.owner(owner::Name::FIRST));
        let _gone = fs::remove_dir(layout.owners());
        failed("write", &marker, &error)
    })
}

/// Refuses a directory that is not a pool, or a pool of an unknown version.
pub(crate) fn check_marker(layout: &Layout) -> Result<(), Error> {
    let path = layout.marker();
    let text = fs::read_to_string(&path).map_err(|error| {
        failed("read", &path, &error)
            .with_hint("`archipelago init` makes a pool; is the right directory configured?")
    })?;
    check_format(&text).map_err(|(code, why)| {
        let hint = match code {
            ErrorCode::UnsupportedFormat => UNSUPPORTED_FORMAT_HINT,
            _ => DAMAGED_HINT,
        };
        let message = format!("`{}` {why}", path.display());
        Error::new(code, message).with_hint(hint)
    })
}

/// Whether this program supports the format of a pool with this marker.
fn check_format(marker: &str) -> Result<(), (ErrorCode, String)> {
    let value = |key: &str| {
        let mut lines = marker.lines().filter_map(|line| line.split_once(" = "));
        lines.find_map(|(found, value)| (found == key).then_some(value))
    };
    let version = value("version").and_then(|version| version.parse::<u32>().ok());
    match version {
        Some(1) => {}
        Some(other) => {
            let why = format!("has version {other}, this program knows version 1");
            return Err((ErrorCode::UnsupportedFormat, why));
        }
        None => return Err((ErrorCode::Damaged, "names no version".to_owned())),
    }
    match value("incompatible") {
        None | Some("[]") => Ok(()),
        Some(features) => {
            let why =
                format!("has incompatible features that this program does not know: {features}");
            Err((ErrorCode::UnsupportedFormat, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_of_another_version_or_with_unknown_features_is_unsupported() {
        let check = |marker: &str| check_format(marker).map_err(|(code, _)| code);
        assert_eq!(check(MARKER), Ok(()));
        assert_eq!(check("version = 1\nincompatible = []\nlabel = x\n"), Ok(()));
        for unsupported in [
            "version = 2\n",
            "version = 1\nincompatible = [\"striped\"]\n",
            "incompatible = [\"striped\"]\nversion = 1\n",
        ] {
            let refused = check(unsupported);
            assert_eq!(refused, Err(ErrorCode::UnsupportedFormat), "{unsupported}");
        }
        for damaged in ["", "version = one\n", "versions = 1\n"] {
            assert_eq!(check(damaged), Err(ErrorCode::Damaged), "{damaged}");
        }
    }
}
