//! A pool's directory: made once.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use archipelago_protocol::{Error, ErrorCode};

use crate::errors::failed;
use crate::layout::Layout;
use crate::{lock, owner};

/// The one version of the format so far.
const MARKER: &str =
    "# A pool of Archipelago. See docs/pool-format.md before you touch anything.\nversion = 1\n";
/// What `mkfs` leaves in the directory that a file system is mounted at; it stays there.
const LOST_AND_FOUND: &str = "lost+found";

/// Makes `directory` a pool. One that is a pool already is left as it is.
///
/// # Errors
/// [`ErrorCode::Exists`] if the directory holds something else, or what the file system says.
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
        // The marker comes last: with it the pool is whole.
        lock::reserve(&layout)?;
        owner::reserve(&layout)?;
        file.write_all(MARKER.as_bytes())?;
        file.sync_all()?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| {
        // Half a marker would be refused for ever, as one of an unknown version.
        let _gone = fs::remove_file(&marker);
        let _gone = fs::remove_file(layout.lock());
        let _gone = fs::remove_file(layout.owner(owner::Name::FIRST));
        let _gone = fs::remove_dir(layout.owners());
        failed("write", &marker, &error)
    })
}

/// Refuses a directory that is no pool, or one of an unknown version.
pub(crate) fn check_marker(layout: &Layout) -> Result<(), Error> {
    let path = layout.marker();
    let text = fs::read_to_string(&path).map_err(|error| {
        failed("read", &path, &error)
            .with_hint("`archipelago init` makes a pool; is the right directory configured?")
    })?;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("version = "));
    if version == Some("1") {
        return Ok(());
    }
    let message = format!(
        "`{}` has version {}, this program knows 1",
        path.display(),
        version.unwrap_or("none")
    );
    Err(Error::new(ErrorCode::Damaged, message)
        .with_hint("use the program that wrote the pool, or a newer one"))
}
