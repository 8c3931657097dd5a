//! The bytes of the disk that a source holds, in order, whatever its format.

use archipelago_protocol::Error;
use archipelago_protocol::ids::SECTOR_SIZE;

use super::decoded::DecodedReader;
use super::interrupt::Interrupt;
use super::layers::BackingFiles;
use super::piece::Piece;
use super::raw::RawReader;
use super::source::Source;
use crate::format::Format;

/// A source and the position in it.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    source: &'a Source,
    format: FormatReader<'a>,
}

#[derive(Debug)]
enum FormatReader<'a> {
    Raw(RawReader),
    Decoded(Box<DecodedReader<'a>>),
}

impl<'a> Reader<'a> {
    /// A reader of `source`, from its beginning.
    pub(super) fn open(
        source: &'a Source,
        format: Format,
        backing: BackingFiles,
        interrupt: &'a Interrupt,
    ) -> Result<Reader<'a>, Error> {
        let format = match format {
            Format::Raw => FormatReader::Raw(RawReader::default()),
            _ => FormatReader::Decoded(Box::new(DecodedReader::open(
                source, format, backing, interrupt,
            )?)),
        };
        Ok(Reader { source, format })
    }

    /// Bytes of the disk.
    pub(super) fn len(&self) -> u64 {
        match &self.format {
            FormatReader::Raw(_) => self.source.len(),
            FormatReader::Decoded(decoded) => decoded.len(),
        }
    }

    /// Bytes of the disk, rounded up to whole sectors.
    pub(super) fn size(&self) -> u64 {
        self.len().next_multiple_of(SECTOR_SIZE)
    }

    /// Puts the next piece into `buffer`, whose length is a multiple of a block and is kept. `None` at the end.
    pub(super) fn next(
        &mut self,
        buffer: &mut Vec<u8>,
        interrupt: &Interrupt,
    ) -> Result<Option<Piece>, Error> {
        match &mut self.format {
            FormatReader::Raw(raw) => raw.next(self.source, buffer, interrupt),
            FormatReader::Decoded(decoded) => decoded.next(buffer),
        }
    }

    /// Refuses a source that was written while it was read.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        self.source.check_unchanged()?;
        match &self.format {
            FormatReader::Raw(_) => Ok(()),
            FormatReader::Decoded(decoded) => decoded.check_unchanged(),
        }
    }
}
