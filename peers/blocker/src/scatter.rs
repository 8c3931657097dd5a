//! The memory of a request: from numbers that a client wrote to validated spans.
//!
//! Invariants
//! - The scatter list is copied out of its region once; only the copy is validated and used.
//! - The result has exactly `len` bytes, each inside a region of this channel.

use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::object::{Memory, SCATTER_ENTRY_LEN, SCATTER_MAX};
use xseg::{RegionId, RegionTable, Span};

/// Room for one scatter list, reused for each request.
#[derive(Debug)]
pub(crate) struct ScatterBuffer {
    bytes: Vec<u8>,
}

impl ScatterBuffer {
    pub(crate) fn new() -> Self {
        ScatterBuffer {
            bytes: vec![0; usize::from(SCATTER_MAX) * SCATTER_ENTRY_LEN],
        }
    }

    /// Fills `spans` with the places of the `len` bytes of `memory`.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`]: an unknown region, a place outside of it, or a sum that is not `len`.
    pub(crate) fn resolve(
        &mut self,
        regions: &RegionTable,
        memory: &Memory,
        len: u32,
        spans: &mut Vec<Span>,
    ) -> Result<(), ErrorCode> {
        spans.clear();
        let region = regions
            .get(RegionId(memory.region))
            .ok_or(ErrorCode::Invalid)?;
        if memory.count == 0 {
            spans.push(
                region
                    .span(memory.offset, u64::from(len))
                    .map_err(|_outside| ErrorCode::Invalid)?,
            );
            return Ok(());
        }
        let list = self
            .bytes
            .get_mut(..usize::from(memory.count) * SCATTER_ENTRY_LEN)
            .ok_or(ErrorCode::Invalid)?;
        region
            .read(memory.offset, list)
            .map_err(|_outside| ErrorCode::Invalid)?;
        let mut sum = 0;
        for entry in list.chunks_exact(SCATTER_ENTRY_LEN) {
            let (id, piece, offset) = decode_entry(entry);
            sum += u64::from(piece);
            if sum > u64::from(len) {
                return Err(ErrorCode::Invalid);
            }
            let region = regions.get(RegionId(id)).ok_or(ErrorCode::Invalid)?;
            let span = region
                .span(offset, u64::from(piece))
                .map_err(|_outside| ErrorCode::Invalid)?;
            if !span.is_empty() {
                spans.push(span);
            }
        }
        if sum == u64::from(len) {
            Ok(())
        } else {
            Err(ErrorCode::Invalid)
        }
    }
}

fn decode_entry(entry: &[u8]) -> (u32, u32, u64) {
    let word =
        |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
    (
        word(0),
        word(4),
        u64::from(word(8)) | u64::from(word(12)) << 32,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use xseg::Region;

    fn entry(region: u32, len: u32, offset: u64) -> Vec<u8> {
        [
            &region.to_le_bytes()[..],
            &len.to_le_bytes(),
            &offset.to_le_bytes(),
        ]
        .concat()
    }

    fn table() -> RegionTable {
        let mut regions = RegionTable::default();
        assert!(regions.insert(RegionId::ARENA, Region::anonymous(65_536).unwrap()));
        assert!(regions.insert(RegionId(5), Region::anonymous(4096).unwrap()));
        regions
    }

    fn check(list: &[Vec<u8>], len: u32, expected: Result<usize, ErrorCode>) {
        let regions = table();
        regions
            .get(RegionId::ARENA)
            .unwrap()
            .write(1024, &list.concat())
            .unwrap();
        let memory = Memory {
            region: 0,
            count: u16::try_from(list.len()).unwrap(),
            offset: 1024,
        };
        let mut spans = Vec::new();
        let result = ScatterBuffer::new()
            .resolve(&regions, &memory, len, &mut spans)
            .map(|()| spans.len());
        assert_eq!(result, expected);
        if result.is_ok() {
            assert_eq!(spans.iter().map(Span::len).sum::<usize>(), len as usize);
        }
    }

    #[test]
    fn lists_hold_exactly_the_bytes_that_were_asked_for() {
        check(&[entry(5, 512, 0), entry(0, 512, 8192)], 1024, Ok(2));
        check(
            &[entry(5, 512, 0), entry(5, 0, 7), entry(0, 512, 8192)],
            1024,
            Ok(2),
        );
        check(
            &[entry(5, 512, 0), entry(0, 512, 8192)],
            1025,
            Err(ErrorCode::Invalid),
        );
        check(
            &[entry(5, 512, 0), entry(0, 512, 8192)],
            1023,
            Err(ErrorCode::Invalid),
        );
        check(
            &[entry(5, u32::MAX, 0), entry(5, 1, 0)],
            0,
            Err(ErrorCode::Invalid),
        );
    }

    #[test]
    fn places_outside_and_unknown_regions_are_refused() {
        check(&[entry(6, 512, 0)], 512, Err(ErrorCode::Invalid));
        check(&[entry(5, 512, 4096 - 511)], 512, Err(ErrorCode::Invalid));
        check(&[entry(5, 512, u64::MAX)], 512, Err(ErrorCode::Invalid));
        let regions = table();
        let mut buffer = ScatterBuffer::new();
        for memory in [
            Memory {
                region: 9,
                count: 0,
                offset: 0,
            },
            Memory {
                region: 0,
                count: 0,
                offset: 65_536 - 100,
            },
            Memory {
                region: 0,
                count: 2,
                offset: 65_536 - 31,
            },
            Memory {
                region: 0,
                count: SCATTER_MAX + 1,
                offset: 0,
            },
        ] {
            let result = buffer.resolve(&regions, &memory, 512, &mut Vec::new());
            assert_eq!(result, Err(ErrorCode::Invalid), "{memory:?}");
        }
    }
}
