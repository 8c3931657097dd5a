//! Where an image comes from: a raw file, a device, or a pipe. Read once, front to back, holes left out.
//!
//! An image is begun with its size. A pipe has none before its end, so it goes through an unnamed temporary file first
//! (in `$TMPDIR`, without its zeros).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use archipelago_protocol::ids::{BLOCK_SIZE, SECTOR_SIZE, VOLUME_SIZE_MAX};
use archipelago_protocol::{Error, ErrorCode};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::interrupt::Interrupt;
use super::{progress, zeros};
use crate::output::Output;

/// Bytes that are taken from a pipe at once.
const PIPE_STEP: usize = 1 << 20;

/// A source and how far it was read.
#[derive(Debug)]
pub(super) struct Source {
    /// For messages.
    title: String,
    file: File,
    len: u64,
    position: u64,
    /// End of the data that `position` is in.
    data_end: u64,
    /// Of a regular file of somebody else's.
    version: Option<Version>,
}

/// What tells that a file was written: length, and the times of the last change of its content and of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    /// `None`: what is no regular file has no such times.
    fn of(file: &File) -> std::io::Result<Option<Version>> {
        let found = file.metadata()?;
        Ok(found.is_file().then(|| Version {
            len: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }))
    }
}

/// A piece that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it belongs.
    pub(super) offset: u64,
    /// Bytes of it, a multiple of 512: the last one is filled up with zeros.
    pub(super) len: usize,
}

/// `len` rounded up to whole sectors.
pub(super) fn whole_sectors(len: u64) -> u64 {
    len.next_multiple_of(SECTOR_SIZE)
}

impl Source {
    /// Opens `name`; `-` is the standard input.
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
        let mut file = if standard {
            let descriptor = std::io::stdin().as_fd().try_clone_to_owned();
            File::from(descriptor.map_err(failed)?)
        } else {
            File::open(name).map_err(failed)?
        };
        let refused = |why: String| Err(Error::new(ErrorCode::Invalid, format!("{title}: {why}")));
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
            Ok(begin) => return refused(format!("somebody has read its first {begin} bytes")),
            Err(error) => return Err(failed(error)),
        }
        // A device has no length in its metadata, but an end.
        let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if len == 0 {
            return refused("is empty".to_owned());
        }
        if len > VOLUME_SIZE_MAX {
            return refused(format!("{len} bytes are more than {VOLUME_SIZE_MAX}"));
        }
        Ok(Source {
            title,
            file,
            len,
            position: 0,
            data_end: 0,
            version,
        })
    }

    /// Bytes in all.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How far it was read.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Refuses what was written while it was read: it is neither what it was nor what it is now.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] saying how the file changed.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        let Some(before) = self.version else {
            return Ok(());
        };
        let now = Version::of(&self.file).map_err(|error| read_error(&self.title, &error))?;
        match now {
            Some(now) if now == before => Ok(()),
            Some(now) if now.len < before.len => Err(self.shorter()),
            Some(now) if now.len > before.len => {
                Err(self.changed(&format!("grew from {} to {} bytes", before.len, now.len)))
            }
            _ => Err(self.changed("was written to")),
        }
    }

    fn shorter(&self) -> Error {
        let now = self.file.metadata().map_or(0, |found| found.len());
        self.changed(&format!("shrank from {} to {now} bytes", self.len))
    }

    fn changed(&self, how: &str) -> Error {
        let message = format!(
            "{} {how} while it was imported: nothing was kept",
            self.title
        );
        Error::new(ErrorCode::InUse, message)
            .with_hint("import it when nobody writes to it, or import a copy or snapshot of it")
    }

    /// Reads the next piece into `buffer`, whose length is a multiple of a block. `None`: the end.
    pub(super) fn next(
        &mut self,
        buffer: &mut [u8],
        interrupt: &Interrupt,
    ) -> Result<Option<Piece>, Error> {
        interrupt.check()?;
        if self.position >= self.data_end {
            let data = data_after(&self.title, &self.file, self.position, self.len)?;
            let Some((start, end)) = data else {
                self.position = self.len;
                return Ok(None);
            };
            (self.position, self.data_end) = (start, end);
        }
        let offset = self.position;
        let rest = usize::try_from(self.data_end - offset).unwrap_or(usize::MAX);
        let part = rest.min(buffer.len());
        self.file
            .read_exact_at(&mut buffer[..part], offset)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => self.shorter(),
                _ => read_error(&self.title, &error),
            })?;
        self.position += part as u64;
        let whole = part.next_multiple_of(usize::try_from(SECTOR_SIZE).expect("512"));
        buffer[part..whole].fill(0);
        Ok(Some(Piece { offset, len: whole }))
    }
}

/// Copies a pipe to an unnamed file, sparse.
fn spool(
    mut input: File,
    title: &str,
    interrupt: &Interrupt,
    output: Output,
) -> Result<File, Error> {
    let failed = |error: std::io::Error| {
        let code = if error.kind() == ErrorKind::StorageFull {
            ErrorCode::NoSpace
        } else {
            ErrorCode::Io
        };
        Error::new(code, format!("storing {title} in between: {error}"))
            .with_hint("$TMPDIR says where; it needs room for the data")
    };
    let file = tempfile::tempfile().map_err(failed)?;
    let mut buffer = vec![0; PIPE_STEP];
    let mut len = 0;
    let bar = progress::arrival(output);
    loop {
        let part = fill(&mut input, &mut buffer, title, interrupt)?;
        for range in zeros::data_ranges(&buffer[..part]) {
            let offset = len + range.start as u64;
            file.write_all_at(&buffer[range], offset).map_err(failed)?;
        }
        len += part as u64;
        bar.set_position(len);
        if len > VOLUME_SIZE_MAX {
            let text = format!("{title}: more than {VOLUME_SIZE_MAX} bytes");
            return Err(Error::new(ErrorCode::Invalid, text));
        }
        if part < buffer.len() {
            file.set_len(len).map_err(failed)?;
            bar.finish_and_clear();
            return Ok(file);
        }
    }
}

/// The first data at or after `position`, in whole blocks. `None`: only a hole.
fn data_after(
    title: &str,
    file: &File,
    position: u64,
    len: u64,
) -> Result<Option<(u64, u64)>, Error> {
    if position >= len {
        return Ok(None);
    }
    let seek = |from: u64, whence: Whence| {
        let from = i64::try_from(from).map_err(|_too_far| Errno::EOVERFLOW)?;
        lseek(file, from, whence).map(|found| u64::try_from(found).unwrap_or(len))
    };
    let start = match seek(position, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        // No such thing here: all of it is data.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some((position, len))),
        Err(errno) => return Err(read_error(title, &errno.into())),
    };
    let end = seek(start, Whence::SeekHole).unwrap_or(len);
    let start = (start - start % BLOCK_SIZE).max(position);
    Ok(Some((
        start,
        end.next_multiple_of(BLOCK_SIZE).min(len).max(start + 1),
    )))
}

/// Reads until `buffer` is full or the pipe ends.
fn fill(
    input: &mut File,
    buffer: &mut [u8],
    title: &str,
    interrupt: &Interrupt,
) -> Result<usize, Error> {
    let mut filled = 0;
    while filled < buffer.len() {
        interrupt.wait_for(input.as_fd())?;
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(part) => filled += part,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(read_error(title, &error)),
        }
    }
    Ok(filled)
}

fn read_error(title: &str, error: &std::io::Error) -> Error {
    let code = if error.kind() == ErrorKind::NotFound {
        ErrorCode::NotFound
    } else {
        ErrorCode::Io
    };
    Error::new(code, format!("{title}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_skipped_and_the_end_is_filled_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.write_all_at(&[7; 4096], 8 << 20).unwrap();
        file.write_all_at(&[9; 100], 16 << 20).unwrap();
        drop(file);
        let interrupt = Interrupt::new().unwrap();
        let mut source = Source::open(path.as_os_str(), &interrupt, Output::new(true)).unwrap();
        assert_eq!(source.len(), (16 << 20) + 100);
        let mut buffer = vec![1; 1 << 20];
        let mut seen = Vec::new();
        while let Some(piece) = source.next(&mut buffer, &interrupt).unwrap() {
            assert!(piece.len.is_multiple_of(512));
            if buffer[..piece.len].iter().any(|byte| *byte != 0) {
                seen.push((piece.offset, buffer[0], buffer[piece.len - 1]));
            }
        }
        assert_eq!(seen, [(8 << 20, 7, 7), (16 << 20, 9, 0)]);
    }
}
