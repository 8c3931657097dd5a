//! A file that gets its name only when it is whole and durable. If this process ends before that, no file is left, and a file that had the
//! name before is unchanged.
//!
//! File systems that cannot make a file without a name give it a temporary one; a kill leaves that file behind.

use std::fs::{File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;
use tempfile::NamedTempFile;

/// What temporary names begin with.
const PREFIX: &str = ".archipelago-export-";
/// The part of a mode that is copied from the replaced file: who may read, write, execute.
const MODE: u32 = 0o777;

#[derive(Debug)]
enum Content {
    Unnamed(File),
    Named(NamedTempFile),
}

/// A file without a name.
#[derive(Debug)]
pub(super) struct Draft {
    /// The name that it gets.
    path: PathBuf,
    content: Content,
}

impl Draft {
    /// An empty file that is to become `path`, or the target of a link there.
    ///
    /// # Errors
    /// If no file can be made there, or the present file may not be written.
    pub(super) fn new(path: &Path) -> std::io::Result<Draft> {
        let replaced = match std::fs::canonicalize(path) {
            Ok(path) => Some(path),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mode = match &replaced {
            // A user who may not write the file may not replace it either.
            Some(path) => {
                let there = OpenOptions::new().write(true).open(path)?;
                Some(there.metadata()?.permissions().mode() & MODE)
            }
            None => None,
        };
        let path = replaced.unwrap_or_else(|| path.to_owned());
        let directory = directory(&path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(mode.unwrap_or(0o666));
        let unnamed = options
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(directory);
        let content = match unnamed {
            Ok(file) => Content::Unnamed(file),
            // The file system has no files without a name: NFS, FUSE.
            Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {
                let mut builder = tempfile::Builder::new();
                let builder = builder.prefix(PREFIX);
                Content::Named(builder.tempfile_in(directory)?)
            }
            Err(error) => return Err(error),
        };
        let draft = Draft { path, content };
        if let Some(mode) = mode {
            draft.file().set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(draft)
    }

    /// What is written.
    pub(super) fn file(&self) -> &File {
        match &self.content {
            Content::Unnamed(file) => file,
            Content::Named(file) => file.as_file(),
        }
    }

    /// Makes the content durable, then the name.
    ///
    /// # Errors
    /// Then no file is left, and a former file keeps the name; unless only the directory could not be made durable.
    pub(super) fn publish(self) -> std::io::Result<()> {
        self.file().sync_all()?;
        let path = self.path;
        let directory = directory(&path);
        match self.content {
            Content::Named(file) => drop(file.persist(&path)?),
            Content::Unnamed(file) => {
                let from = format!("/proc/self/fd/{}", file.as_raw_fd());
                let link = |to: &Path| {
                    let follow = AtFlags::AT_SYMLINK_FOLLOW;
                    linkat(AT_FDCWD, from.as_str(), AT_FDCWD, to, follow)
                };
                match link(&path) {
                    Ok(()) => {}
                    // The former file is replaced, in one step.
                    Err(nix::errno::Errno::EEXIST) => {
                        let between = tempfile::Builder::new()
                            .prefix(PREFIX)
                            .make_in(directory, |to| link(to).map_err(Into::into))?;
                        between.persist(&path)?;
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        File::open(directory)?.sync_all()
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_has_no_name_before_it_is_published_and_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        for content in ["one", "two"] {
            let before = names();
            let draft = Draft::new(&path).unwrap();
            std::io::Write::write_all(&mut draft.file(), content.as_bytes()).unwrap();
            assert_eq!(names(), before);
            draft.publish().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), content.as_bytes());
            assert_eq!(names(), 1);
        }
        drop(Draft::new(&path).unwrap());
        assert_eq!(names(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn what_is_replaced_keeps_its_mode_and_the_links_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&path, b"one").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("target", &link).unwrap();
        let draft = Draft::new(&link).unwrap();
        std::io::Write::write_all(&mut draft.file(), b"two").unwrap();
        draft.publish().unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}
