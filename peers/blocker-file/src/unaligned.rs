//! A transfer whose place is not aligned: the blocks around it are read, changed and written.
//!
//! Runs on a thread that may block, while it uses the file alone. For contents of odd length; none of our own clients
//! sends such a request on the data path.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use archipelago_protocol::ErrorCode;
use xseg::Span;

use crate::errors::code_of;
use crate::reserve::Claim;
use crate::spans::{Direction, gather, scatter};

/// The transfer.
#[derive(Debug)]
pub(crate) struct UnalignedTransfer {
    pub(crate) file: File,
    pub(crate) direction: Direction,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Offsets, lengths and addresses must be multiples of this.
    pub(crate) unit: usize,
    pub(crate) memory: Vec<Span>,
    /// How much of the reserve the write may take if it finds no space.
    pub(crate) claim: Option<Claim>,
}

/// Zeros at an aligned address.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` bytes at an address that is a multiple of `unit`.
    pub(crate) fn new(len: usize, unit: usize) -> Self {
        let buffer = vec![0; len + unit];
        let start = buffer.as_ptr().align_offset(unit);
        AlignedBuffer { buffer, start, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..][..self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..][..self.len]
    }

    /// Reads the bytes of `file` from `offset` on. Zeros stay only beyond the end of the file: a shorter read must not be taken for the
    /// end.
    pub(crate) fn fill_from(&mut self, file: &File, offset: u64) -> io::Result<()> {
        let mut filled = 0;
        while filled < self.len {
            let rest = &mut self.bytes_mut()[filled..];
            match file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl UnalignedTransfer {
    pub(crate) fn run(&self) -> Result<(), ErrorCode> {
        let unit = self.unit as u64;
        let start = self.offset / unit * unit;
        let before = usize::try_from(self.offset - start).map_err(|_long| ErrorCode::Internal)?;
        let around = (before + self.len).next_multiple_of(self.unit);
        let mut buffer = AlignedBuffer::new(around, self.unit);
        let filled = buffer.fill_from(&self.file, start);
        filled.map_err(|error| code_of(&error))?;
        let blocks = buffer.bytes_mut();
        let place = before..before + self.len;
        match self.direction {
            Direction::Read => scatter(&blocks[place], &self.memory),
            Direction::Write => {
                blocks[place].copy_from_slice(&gather(&self.memory));
                self.file
                    .write_all_at(blocks, start)
                    .map_err(|error| code_of(&error))?;
            }
        }
        Ok(())
    }
}
