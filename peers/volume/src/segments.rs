//! The memory of a request as a list of segments, and the scatter list that describes a part of it.

use archipelago_protocol::object::SCATTER_ENTRY_LEN;
use archipelago_protocol::volume::Segment;

/// The parts of memory that hold bytes `skip .. skip + left` of a request. Empty segments are left out.
#[derive(Debug, Clone)]
pub(crate) struct Parts<'a> {
    segments: &'a [Segment],
    skip: u64,
    left: u64,
}

impl<'a> Parts<'a> {
    /// The memory of `len` bytes from byte `skip` of the request on.
    pub(crate) fn new(segments: &'a [Segment], skip: u64, len: u64) -> Self {
        Parts {
            segments,
            skip,
            left: len,
        }
    }
}

impl Iterator for Parts<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        while self.left > 0 {
            let (segment, rest) = self.segments.split_first()?;
            let segment_len = u64::from(segment.len);
            if self.skip >= segment_len {
                self.skip -= segment_len;
                self.segments = rest;
                continue;
            }
            let len = (segment_len - self.skip).min(self.left);
            let part = Segment {
                region: segment.region,
                len: u32::try_from(len).expect("no longer than its segment"),
                offset: segment.offset + self.skip,
            };
            self.segments = rest;
            self.skip = 0;
            self.left -= len;
            return Some(part);
        }
        None
    }
}

/// An entry of a scatter list: region u32, length u32, offset u64, little-endian.
pub(crate) fn scatter_entry(part: Segment) -> [u8; SCATTER_ENTRY_LEN] {
    let mut entry = [0; SCATTER_ENTRY_LEN];
    entry[..4].copy_from_slice(&part.region.to_le_bytes());
    entry[4..8].copy_from_slice(&part.len.to_le_bytes());
    entry[8..].copy_from_slice(&part.offset.to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cut_segments_where_a_piece_begins_and_ends() {
        let segment = |region, len, offset| Segment {
            region,
            len,
            offset,
        };
        let segments = [
            segment(1, 100, 0),
            segment(2, 0, 7),
            segment(3, 700, 50),
            segment(4, 224, 9),
        ];
        let parts = |skip, len| Parts::new(&segments, skip, len).collect::<Vec<_>>();
        assert_eq!(parts(0, 1024), [segments[0], segments[2], segments[3]]);
        assert_eq!(parts(512, 512), [segment(3, 288, 462), segments[3]]);
        assert_eq!(parts(0, 512), [segments[0], segment(3, 412, 50)]);
        assert_eq!(parts(100, 700), [segments[2]]);
    }
}
