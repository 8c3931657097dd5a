//! Small files that are replaced whole: after a crash there is the old content or the new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

/// Replaces the content of `path` by `content`, durably when this returns. One writer at a time. The file keeps its owner and mode;
/// a new one is the daemon's alone.
///
/// # Errors
/// What the file system says; the old content is there then.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let parent = path
        .parent()
        .ok_or_else(|| io::Error::other("a file without a directory"))?;
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    if let Ok(found) = std::fs::metadata(path) {
        // As far as this process may: a daemon that is not root owns its files anyway.
        let _not_ours = fchown(&file, Some(found.uid()), Some(found.gid()));
        file.set_permissions(found.permissions())?;
    }
    file.write_all(content)?;
    file.sync_all()?;
    // Commit point: before the rename a crash leaves the old content, after it the new one.
    std::fs::rename(&fresh, path)?;
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_content_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.json");
        replace(&path, b"a longer first content").unwrap();
        replace(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn who_could_read_the_file_can_still() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
        replace(&path, b"new").unwrap();
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        replace(&path, b"changed").unwrap();
        assert_eq!(mode(), 0o644);
    }
}
