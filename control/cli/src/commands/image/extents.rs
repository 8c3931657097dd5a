//! Where the data of a volume is, from its block status, which is requested page by page.
//!
//! Invariant: extents are in order and apart; what lies between them, and before the end of what is known, is a hole.

use std::collections::VecDeque;
use std::ops::Range;

use archipelago_protocol::status::{BlockState, StatusRun};

/// Holes shorter than this are read along: a request costs more than they do.
const GAP_MIN: u64 = 64 << 10;
/// With so many extents known, no further page is requested. A page has 256 extents at most, so 12 KiB of memory are enough.
const KNOWN_MAX: usize = 256;

/// The data of a volume that has not been read yet.
#[derive(Debug)]
pub(super) struct Extents {
    size: u64,
    /// Up to here the status is known.
    known: u64,
    /// The range of the block status request in flight.
    asked: Option<Range<u64>>,
    data: VecDeque<Range<u64>>,
}

impl Extents {
    /// The extents of a volume of `size` bytes, of which nothing is known yet.
    pub(super) fn new(size: u64) -> Self {
        Extents {
            size,
            known: 0,
            asked: None,
            data: VecDeque::new(),
        }
    }

    /// The range whose status is to be requested now, if any: [`Extents::learn`] follows.
    pub(super) fn question(&mut self) -> Option<Range<u64>> {
        if self.asked.is_some() || self.known == self.size || self.data.len() > KNOWN_MAX {
            return None;
        }
        self.asked = Some(self.known..self.size);
        self.asked.clone()
    }

    /// Bytes that the request in flight covers.
    pub(super) fn asked_len(&self) -> u64 {
        self.asked
            .as_ref()
            .map_or(0, |range| range.end - range.start)
    }

    /// The reply: runs that cover the requested range from its beginning on, in part or whole.
    pub(super) fn learn(&mut self, runs: &[StatusRun]) {
        self.asked = None;
        for run in runs {
            let (start, end) = (self.known, self.known + run.len);
            self.known = end;
            if run.state == BlockState::Hole {
                continue;
            }
            match self.data.back_mut() {
                Some(last) if start - last.end < GAP_MIN => last.end = end,
                _ => self.data.push_back(start..end),
            }
        }
    }

    /// Takes the next data, at most `len_max` bytes.
    pub(super) fn take(&mut self, len_max: usize) -> Option<(u64, usize)> {
        let first = self.data.front_mut()?;
        let start = first.start;
        let len = usize::try_from(first.end - start).map_or(len_max, |len| len.min(len_max));
        first.start += len as u64;
        if first.start == first.end {
            self.data.pop_front();
        }
        Some((start, len))
    }

    /// Whether all extents are known and taken.
    pub(super) fn is_done(&self) -> bool {
        self.known == self.size && self.data.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn run(len: u64, state: BlockState) -> StatusRun {
        StatusRun { len, state }
    }

    /// All that can be taken.
    fn taken(extents: &mut Extents) -> Vec<(u64, usize)> {
        std::iter::from_fn(|| extents.take(1 << 20)).collect()
    }

    #[test]
    fn data_is_taken_in_pieces_and_long_holes_are_left_out() {
        use BlockState::{Data, Hole};
        let mut extents = Extents::new(50 * MIB);
        assert_eq!(
            (extents.question(), extents.asked_len()),
            (Some(0..50 * MIB), 50 * MIB)
        );
        assert_eq!(extents.question(), None, "one at a time");
        extents.learn(&[
            run(MIB, Hole),
            run(MIB + 4096, Data),
            run(GAP_MIN - 512, Hole),
            run(512, Data),
            run(GAP_MIN, Hole),
            run(512, Data),
        ]);
        assert_eq!(
            taken(&mut extents),
            [
                (MIB, 1 << 20),
                (2 * MIB, 4096 + (64 << 10)),
                (2 * MIB + 4096 + 2 * GAP_MIN, 512),
            ]
        );
        assert!(!extents.is_done());
        let known = 2 * MIB + 4096 + 2 * GAP_MIN + 512;
        assert_eq!(extents.question(), Some(known..50 * MIB));
        // It goes on where the data of the page before ended; that is taken already.
        extents.learn(&[run(512, Data), run(50 * MIB - known - 512, Hole)]);
        assert_eq!(taken(&mut extents), [(known, 512)]);
        assert!(extents.is_done() && extents.question().is_none());
    }

    #[test]
    fn no_more_is_asked_for_than_can_be_used_soon() {
        let mut extents = Extents::new(1 << 40);
        let pair = [run(GAP_MIN, BlockState::Hole), run(512, BlockState::Data)];
        extents.question();
        extents.learn(&pair.repeat(KNOWN_MAX + 1));
        assert_eq!(extents.question(), None);
        assert_eq!(extents.take(100), Some((GAP_MIN, 100)));
        assert_eq!(extents.take(1000), Some((GAP_MIN + 100, 412)));
        assert!(extents.question().is_some());
    }
}
