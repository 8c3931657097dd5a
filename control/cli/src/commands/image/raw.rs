//! A raw source, read front to back, holes left out.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use archipelago_protocol::Error;
use archipelago_protocol::ids::{BLOCK_SIZE, SECTOR_SIZE};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::failures::read_error;
use super::interrupt::Interrupt;
use super::piece::Piece;
use super::source::Source;

/// The state of reading a raw source.
#[derive(Debug, Default)]
pub(super) struct RawReader {
    position: u64,
    /// End of the data that `position` is in.
    data_end: u64,
}

impl RawReader {
    /// Reads the next piece into `buffer`, whose length is a multiple of a block. `None`: the end.
    pub(super) fn next(
        &mut self,
        source: &Source,
        buffer: &mut [u8],
        interrupt: &Interrupt,
    ) -> Result<Option<Piece>, Error> {
        interrupt.check()?;
        let (title, file) = (source.title(), source.file());
        if self.position >= self.data_end {
            let Some((start, end)) = data_after(title, file, self.position, source.len())? else {
                self.position = source.len();
                return Ok(None);
            };
            (self.position, self.data_end) = (start, end);
        }
        let offset = self.position;
        let rest = usize::try_from(self.data_end - offset).unwrap_or(usize::MAX);
        let part = rest.min(buffer.len());
        file.read_exact_at(&mut buffer[..part], offset)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => source.shorter(),
                _ => read_error(title, &error),
            })?;
        self.position += part as u64;
        let whole = part.next_multiple_of(usize::try_from(SECTOR_SIZE).expect("512"));
        buffer[part..whole].fill(0);
        Ok(Some(Piece { offset, len: whole }))
    }
}

/// The first data at or after `position`, in whole blocks. `None`: only a hole follows.
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
        // The file system does not report holes: all of it is data.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Output;

    #[test]
    fn holes_are_skipped_and_the_end_is_filled_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.write_all_at(&[7; 4096], 8 << 20).unwrap();
        file.write_all_at(&[9; 100], 16 << 20).unwrap();
        drop(file);
        let interrupt = Interrupt::new().unwrap();
        let source = Source::open(path.as_os_str(), &interrupt, Output::new(true)).unwrap();
        assert_eq!(source.len(), (16 << 20) + 100);
        let mut reader = RawReader::default();
        let mut buffer = vec![1; 1 << 20];
        let mut seen = Vec::new();
        while let Some(piece) = reader.next(&source, &mut buffer, &interrupt).unwrap() {
            assert!(piece.len.is_multiple_of(512));
            if buffer[..piece.len].iter().any(|byte| *byte != 0) {
                seen.push((piece.offset, buffer[0], buffer[piece.len - 1]));
            }
        }
        assert_eq!(seen, [(8 << 20, 7, 7), (16 << 20, 9, 0)]);
    }
}
