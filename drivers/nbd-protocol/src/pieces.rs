//! How a request is cut into pieces, each of which is one request to the volume.
//!
//! A request with data has a piece for each [`PIECE_MAX`] of it; a range of zeros has one for each [`RANGE_MAX`] of it; a flush has one,
//! and so has a block status, which may be answered for a part of its range.

use crate::command::Command;
use crate::offer::PIECE_MAX;

/// Most bytes of a range in one request to the volume, so that a request is a bounded amount of work for the mapper.
pub const RANGE_MAX: u32 = 1 << 30;

/// A part of the range of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// First byte of the export.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// The pieces of a request that are still to be cut.
#[derive(Debug, Clone, Copy)]
pub struct Pieces {
    command: Command,
    offset: u64,
    len: u32,
    /// Bytes that pieces cover; for a flush, 0.
    cut: u32,
    /// Whether every piece is cut.
    is_cut: bool,
}

impl Pieces {
    /// The pieces of a request for `len` bytes at `offset`.
    #[must_use]
    pub fn new(command: Command, offset: u64, len: u32) -> Self {
        Pieces {
            command,
            offset,
            len,
            cut: 0,
            is_cut: false,
        }
    }

    /// Bytes that the request is about.
    #[must_use]
    pub fn request_len(&self) -> u32 {
        self.len
    }

    /// Whether every piece is cut.
    #[must_use]
    pub fn are_cut(&self) -> bool {
        self.is_cut
    }

    /// The range of the next piece; `None` if all are cut.
    #[must_use]
    pub fn next_range(&self) -> Option<Range> {
        let max = match self.command {
            _ if self.is_cut => return None,
            Command::Flush => return Some(Range { offset: 0, len: 0 }),
            Command::Read | Command::Write { .. } => PIECE_MAX,
            Command::BlockStatus { .. } => u32::MAX,
            _ => RANGE_MAX,
        };
        Some(Range {
            offset: self.offset + u64::from(self.cut),
            len: (self.len - self.cut).min(max),
        })
    }

    /// Cuts the piece of [`Pieces::next_range`].
    pub fn cut(&mut self) {
        let Some(range) = self.next_range() else {
            debug_assert!(false, "a piece more than there are");
            return;
        };
        self.cut += range.len;
        self.is_cut = self.cut == self.len || self.command == Command::Flush;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(command: Command, len: u32) -> Vec<Range> {
        let mut pieces = Pieces::new(command, 4096, len);
        let mut ranges = Vec::new();
        while let Some(range) = pieces.next_range() {
            assert!(!pieces.are_cut());
            ranges.push(range);
            pieces.cut();
        }
        assert!(pieces.are_cut());
        ranges
    }

    #[test]
    fn pieces_cover_the_range_and_a_flush_has_one() {
        let range = |offset, len| Range { offset, len };
        let piece = u64::from(PIECE_MAX);
        assert_eq!(
            ranges(Command::Read, 2 * PIECE_MAX + 512),
            [
                range(4096, PIECE_MAX),
                range(4096 + piece, PIECE_MAX),
                range(4096 + 2 * piece, 512)
            ]
        );
        assert_eq!(
            ranges(Command::Write { durable: true }, 512),
            [range(4096, 512)]
        );
        assert_eq!(ranges(Command::Flush, 0), [range(0, 0)]);
        let status = Command::BlockStatus { one: false };
        assert_eq!(ranges(status, u32::MAX - 511).len(), 1);
        let trim = ranges(Command::Trim { durable: false }, u32::MAX - 511);
        assert_eq!(trim.len(), 4);
        let sum: u64 = trim.iter().map(|range| u64::from(range.len)).sum();
        assert_eq!(sum, u64::from(u32::MAX - 511));
    }
}
