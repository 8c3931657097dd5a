//! Where an image comes from: a file, a device, a pipe, or an address.
//!
//! An import begins with the size of the image. The size of a pipe is known only at its end, so a pipe is first copied to an unnamed
//! temporary file (in `$TMPDIR`, without its zeros); so is a download.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use archipelago_protocol::ids::VOLUME_SIZE_MAX;
use archipelago_protocol::{Error, ErrorCode};
use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::download;
use super::failures::read_error;
use super::interrupt::Interrupt;
use super::progress;
use super::spool::spool;
use crate::checksum::Checksum;
use crate::output::Output;

/// Bytes that are hashed at once.
const CHECKSUM_STEP: usize = 1 << 20;

/// A source.
#[derive(Debug)]
pub(super) struct Source {
    /// Its name in messages.
    title: String,
    file: File,
    /// Its path; `None` for a pipe.
    path: Option<PathBuf>,
    len: u64,
    /// Set for a regular file, which other programs may write.
    version: Option<Version>,
}

/// Detects that a file was written: its length, and the times of the last change of its content and of its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    /// `None` for a file that is not regular: it has no such times.
    pub(super) fn of(file: &File) -> std::io::Result<Option<Version>> {
        let found = file.metadata()?;
        Ok(found.is_file().then(|| Version {
            len: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }))
    }

    /// Length of `file`. For a device, whose metadata has no length, the position of its end.
    pub(super) fn len(mut file: &File) -> std::io::Result<u64> {
        file.seek(SeekFrom::End(0))
    }

    /// Refuses a file that was written while it was read: the copy is neither its former nor its present content.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`], with how the file changed.
    pub(super) fn check(before: Option<Version>, file: &File, title: &str) -> Result<(), Error> {
        let Some(before) = before else {
            return Ok(());
        };
        let now = Version::of(file).map_err(|error| read_error(title, &error))?;
        match now {
            Some(now) if now == before => Ok(()),
            Some(now) if now.len < before.len => Err(shorter(title, before.len, now.len)),
            Some(now) if now.len > before.len => Err(changed(
                title,
                &format!("grew from {} to {} bytes", before.len, now.len),
            )),
            _ => Err(changed(title, "was written to")),
        }
    }
}

impl Source {
    /// Opens `name`; `-` is the standard input, and what begins with `http://` or `https://` is downloaded.
    pub(super) fn open(
        name: &OsStr,
        interrupt: &Interrupt,
        output: Output,
    ) -> Result<Source, Error> {
        let standard = name == "-";
        let title = if standard {
            "standard input".to_owned()
        } else {
            name.display().to_string()
        };
        let failed = |error: std::io::Error| read_error(&title, &error);
        let refused = |why: String| Err(Error::new(ErrorCode::Invalid, format!("{title}: {why}")));
        let is_address = download::is_address(name);
        let mut file = if is_address {
            download::run(&title, interrupt, output)?
        } else if standard {
            let descriptor = std::io::stdin().as_fd().try_clone_to_owned();
            File::from(descriptor.map_err(failed)?)
        } else {
            File::open(name).map_err(failed)?
        };
        if file.metadata().map_err(failed)?.is_dir() {
            return refused("is a directory".to_owned());
        }
        // Before anything is read, and before the length is taken.
        let version = Version::of(&file).map_err(failed)?;
        match file.stream_position() {
            Err(error) if error.raw_os_error() == Some(Errno::ESPIPE as i32) => {
                file = spool(file, &title, interrupt, output)?;
            }
            Ok(0) => {}
            Ok(_) if is_address => {}
            Ok(begin) => {
                return refused(format!(
                    "its file offset is {begin}, not 0: another program has already read from it"
                ));
            }
            Err(error) => return Err(failed(error)),
        }
        let len = Version::len(&file).map_err(failed)?;
        if len == 0 {
            return refused("is empty".to_owned());
        }
        if len > VOLUME_SIZE_MAX {
            return refused(format!("{len} bytes are more than {VOLUME_SIZE_MAX}"));
        }
        let path = (!standard && !is_address).then(|| PathBuf::from(name));
        Ok(Source {
            title,
            file,
            path,
            len,
            version,
        })
    }

    /// Its name in messages.
    pub(super) fn title(&self) -> &str {
        &self.title
    }

    /// Its content.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Its path, if it has one.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Its length.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Refuses a source that was written while it was read.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`], with how the file changed.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        Version::check(self.version, &self.file, &self.title)
    }

    /// The source is shorter than it was.
    pub(super) fn shorter(&self) -> Error {
        let now = self.file.metadata().map_or(0, |found| found.len());
        shorter(&self.title, self.len, now)
    }

    /// Reads all of it, and refuses content with another checksum.
    ///
    /// # Errors
    /// [`ErrorCode::Damaged`], with the checksum of the content.
    pub(super) fn verify(
        &self,
        expected: &Checksum,
        interrupt: &Interrupt,
        output: Output,
    ) -> Result<(), Error> {
        let bar = progress::known(self.len, output);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHECKSUM_STEP];
        let mut at = 0;
        while at < self.len {
            interrupt.check()?;
            let left = usize::try_from(self.len - at).unwrap_or(usize::MAX);
            let part = &mut buffer[..left.min(CHECKSUM_STEP)];
            self.file
                .read_exact_at(part, at)
                .map_err(|error| match error.kind() {
                    ErrorKind::UnexpectedEof => self.shorter(),
                    _ => read_error(&self.title, &error),
                })?;
            hash.update(&part);
            at += part.len() as u64;
            bar.set_position(at);
        }
        bar.finish_and_clear();
        let digest = hash.finalize();
        if digest[..] == expected.0 {
            return Ok(());
        }
        let message = format!(
            "{} has the checksum sha256:{}, not sha256:{}",
            self.title,
            Checksum::hex(&digest),
            Checksum::hex(&expected.0)
        );
        Err(Error::new(ErrorCode::Damaged, message).with_hint(
            "nothing was imported; get the file again, or ask its publisher for the checksum",
        ))
    }
}

fn shorter(title: &str, before: u64, now: u64) -> Error {
    changed(title, &format!("shrank from {before} to {now} bytes"))
}

fn changed(title: &str, how: &str) -> Error {
    let message = format!("{title} {how} while it was imported: nothing was kept");
    Error::new(ErrorCode::InUse, message)
        .with_hint("import it when nobody writes to it, or import a copy or snapshot of it")
}
