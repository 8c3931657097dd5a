//! Small files that are created or changed atomically: after a crash, the content is the old or the new one, never a part.
//!
//! Unfinished content is in a file beside the target, whose name is that of [`unfinished`].

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Mode of a new file: access only for its owner.
const MODE: u32 = 0o600;

/// Creates `path` with all of `content`, durable when this returns, or does nothing. There may be several writers: one of them creates the
/// file.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`]; the error of the file system.
pub fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = beside(path, &format!("{}.new", std::process::id()));
    // Commit point. Unlike a rename, a link never replaces a file that another writer has created meanwhile.
    let created = write(&fresh, content, |_new| Ok(())).and_then(|()| fs::hard_link(&fresh, path));
    let removed = fs::remove_file(&fresh);
    created.and(removed)?;
    sync_directory_of(path)
}

/// Replaces the content of `path` by `content`, durable when this returns. There must be only one writer. The file keeps its owner and
/// mode; a new file is accessible only to its owner.
///
/// # Errors
/// The error of the file system; the content is then the old one, unless only the last step failed, which makes the new content durable.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with(path, content, |file| {
        let Ok(found) = fs::metadata(path) else {
            return Ok(());
        };
        // As far as this process may do this: if it is not root, the files are its own.
        let _not_ours = fchown(file, Some(found.uid()), Some(found.gid()));
        file.set_permissions(found.permissions())
    })
}

/// The same, with `mode` for the file, whatever the old mode and the umask.
///
/// # Errors
/// As for [`replace`].
pub fn replace_with_mode(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_with(path, content, |file| {
        file.set_permissions(Permissions::from_mode(mode))
    })
}

/// The file of new content for `path` until it is complete. If a crash leaves such a file, the next writer overwrites it.
#[must_use]
pub fn unfinished(path: &Path) -> PathBuf {
    beside(path, "new")
}

fn replace_with(
    path: &Path,
    content: &[u8],
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let fresh = unfinished(path);
    write(&fresh, content, prepare)?;
    // Commit point: before the rename, a crash leaves the old content; after it, the new one.
    fs::rename(&fresh, path)?;
    sync_directory_of(path)
}

/// Makes the file `fresh` durable; `prepare` is called with it while it is empty.
fn write(
    fresh: &Path,
    content: &[u8],
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(fresh)?;
    prepare(&file)?;
    file.write_all(content)?;
    file.sync_all()
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{extension}"));
    path.with_file_name(name)
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let named = |parent: &&Path| !parent.as_os_str().is_empty();
    let parent = path.parent().filter(named);
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_created_once_and_what_there_is_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.toml");
        create(&path, b"first").unwrap();
        let refused = create(&path, b"second").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(
            (names(dir.path()), mode(&path)),
            (vec!["file.toml".into()], MODE)
        );
    }

    #[test]
    fn the_content_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.json");
        replace(&path, b"a longer first content").unwrap();
        fs::write(unfinished(&path), b"what a crash has left, which is longer").unwrap();
        replace(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(dir.path()), ["file.json"]);
    }

    #[test]
    fn who_could_read_the_file_can_still() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        replace(&path, b"new").unwrap();
        assert_eq!(mode(&path), MODE);
        replace_with_mode(&path, b"for all", 0o644).unwrap();
        assert_eq!(mode(&path), 0o644);
        replace(&path, b"changed").unwrap();
        assert_eq!(mode(&path), 0o644);
    }
}
