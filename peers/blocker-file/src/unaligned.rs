//! A transfer whose place the medium does not take: the blocks around it are read, changed and written.
//!
//! Runs on a thread that may wait, while nobody else uses the file. For contents of odd length; none of our own clients
//! sends such a request on the data path.

use std::fs::File;
use std::os::unix::fs::FileExt;

use archipelago_protocol::ErrorCode;
use xseg::Span;

use crate::errors::code_of;
use crate::reserve::Claim;
use crate::spans::{Direction, gather, scatter};

/// What is to be moved.
#[derive(Debug)]
pub(crate) struct UnalignedTransfer {
    pub(crate) file: File,
    pub(crate) direction: Direction,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Places, lengths and addresses that the medium takes are multiples of this.
    pub(crate) unit: usize,
    pub(crate) memory: Vec<Span>,
    /// What the write may take of the reserve if it finds no room.
    pub(crate) claim: Option<Claim>,
}

impl UnalignedTransfer {
    pub(crate) fn run(&self) -> Result<(), ErrorCode> {
        let unit = self.unit as u64;
        let start = self.offset / unit * unit;
        let before = usize::try_from(self.offset - start).map_err(|_long| ErrorCode::Internal)?;
        let around = (before + self.len).next_multiple_of(self.unit);
        // Room to begin at an address that the medium takes.
        let mut buffer = vec![0; around + self.unit];
        let skipped = buffer.as_ptr().align_offset(self.unit);
        let blocks = &mut buffer[skipped..][..around];
        // Up to the end of the file, beyond which there are zeros: a read that stops earlier must not pass for one.
        let mut filled = 0;
        while filled < around {
            let at = start + filled as u64;
            match self.file.read_at(&mut blocks[filled..], at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(code_of(&error)),
            }
        }
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
