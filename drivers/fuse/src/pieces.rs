//! Cuts a range of bytes into requests that a volume supports: whole sectors, and sectors of which only a part changes.
//!
//! Invariant: the pieces of a range follow each other without gaps, and cover exactly the range.

use archipelago_protocol::ids::SECTOR_SIZE;

/// A piece of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Whole sectors.
    Whole {
        /// First byte: a multiple of 512.
        offset: u64,
        /// Bytes: a multiple of 512.
        len: u32,
    },
    /// A part of one sector.
    Part {
        /// First byte of the sector.
        sector: u64,
        /// First byte of the part, counted in the sector.
        begin: u32,
        /// Bytes of the part: less than a sector.
        len: u32,
    },
    /// A block status, from here to the end of the file.
    Status {
        /// First byte: a multiple of 512.
        offset: u64,
        /// Bytes.
        range: u64,
    },
    /// A flush: it has no range.
    Flush,
}

impl Piece {
    /// First byte of the range that it covers.
    pub(crate) fn offset(self) -> u64 {
        match self {
            Piece::Whole { offset, .. } | Piece::Status { offset, .. } => offset,
            Piece::Part { sector, begin, .. } => sector + u64::from(begin),
            Piece::Flush => 0,
        }
    }
}

/// The pieces of a range, from its beginning on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pieces {
    next: u64,
    end: u64,
    /// Most bytes of a piece: a multiple of 512.
    len_max: u32,
}

impl Pieces {
    /// The pieces of `len` bytes at `offset`, none longer than `len_max`.
    pub(crate) fn of(offset: u64, len: u64, len_max: u32) -> Pieces {
        debug_assert!(len_max > 0 && u64::from(len_max).is_multiple_of(SECTOR_SIZE));
        Pieces {
            next: offset,
            end: offset.saturating_add(len),
            len_max,
        }
    }

    /// Whether there is a piece that is part of a sector.
    pub(crate) fn cut_sectors(self) -> bool {
        let is_cut = |at: u64| !at.is_multiple_of(SECTOR_SIZE);
        self.next < self.end && (is_cut(self.next) || is_cut(self.end))
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.next >= self.end {
            return None;
        }
        let sector = self.next / SECTOR_SIZE * SECTOR_SIZE;
        let sector_end = sector + SECTOR_SIZE;
        let whole = (self.end - self.next) / SECTOR_SIZE * SECTOR_SIZE;
        let small = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let (piece, len) = if self.next == sector && whole > 0 {
            let len = small(whole).min(self.len_max);
            let offset = self.next;
            (Piece::Whole { offset, len }, len)
        } else {
            let len = small(self.end.min(sector_end) - self.next);
            let begin = small(self.next - sector);
            (Piece::Part { sector, begin, len }, len)
        };
        self.next += u64::from(len);
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn aligned_ranges_are_cut_by_length_and_others_at_their_ends() {
        let pieces = |offset, len| Pieces::of(offset, len, 1024).collect::<Vec<_>>();
        let whole = |offset, len| Piece::Whole { offset, len };
        assert_eq!(
            pieces(512, 2560),
            [whole(512, 1024), whole(1536, 1024), whole(2560, 512)]
        );
        let part = |sector, begin, len| Piece::Part { sector, begin, len };
        assert_eq!(pieces(513, 510), [part(512, 1, 510)]);
        assert_eq!(
            pieces(500, 1040),
            [part(0, 500, 12), whole(512, 1024), part(1536, 0, 4)]
        );
        assert_eq!(pieces(7, 0), []);
        assert!(!Pieces::of(512, 512, 512).cut_sectors());
        assert!(Pieces::of(512, 513, 512).cut_sectors());
        assert!(!Pieces::of(7, 0, 512).cut_sectors());
    }

    proptest! {
        #[test]
        fn the_pieces_of_a_range_cover_exactly_the_range(
            offset in 0_u64..10_000, len in 0_u64..10_000, sectors in 1_u32..5
        ) {
            let pieces = Pieces::of(offset, len, sectors * 512);
            let mut next = offset;
            for piece in pieces {
                prop_assert_eq!(piece.offset(), next);
                let len = match piece {
                    Piece::Whole { offset, len } => {
                        prop_assert!(offset % 512 == 0 && len % 512 == 0 && len <= sectors * 512);
                        len
                    }
                    Piece::Part { sector, begin, len } => {
                        prop_assert!(sector % 512 == 0 && begin + len <= 512 && len < 512);
                        prop_assert!(pieces.cut_sectors());
                        len
                    }
                    other => unreachable!("a range has no {other:?}"),
                };
                prop_assert!(len > 0);
                next += u64::from(len);
            }
            prop_assert_eq!(next, offset + len);
        }
    }
}
