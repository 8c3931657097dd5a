//! Memory of guests: the regions that drivers added, and the segments of each request.
//!
//! A region's memory belongs to another process, which may write it at any time: bytes are copied once, and only the copy is used. Segments
//! are checked when a request is submitted. If a region is removed while a request uses it, the request fails.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::Segment;
use rustc_hash::FxHashMap;
use xseg::{Region, RegionId};

use crate::blocks::BLOCK_LEN;
use crate::segments::Parts;

/// A region that a driver has added.
#[derive(Debug)]
struct Known {
    region: Region,
    /// Whether the blocker has reported once that the region is ready.
    ready: bool,
}

/// A range of bytes of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestBytes {
    /// Slot of the request.
    pub(crate) request: u32,
    /// Offset from the request's first byte.
    pub(crate) skip: u64,
    pub(crate) len: u64,
}

/// The regions of all drivers, and the segments of all requests by their slot.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    regions: FxHashMap<u32, Known>,
    next: u32,
    /// The lists are kept for the next request of the slot.
    segments: Vec<Vec<Segment>>,
}

impl GuestMemory {
    /// For `requests` request slots.
    pub(crate) fn new(requests: u32) -> Self {
        GuestMemory {
            regions: FxHashMap::default(),
            next: 1,
            segments: vec![Vec::new(); requests as usize],
        }
    }

    /// An id that is not in use.
    pub(crate) fn fresh(&mut self) -> RegionId {
        loop {
            let id = self.next;
            self.next = self.next.checked_add(1).unwrap_or(1);
            if !self.regions.contains_key(&id) {
                return RegionId(id);
            }
        }
    }

    pub(crate) fn add(&mut self, id: RegionId, region: Region) {
        let ready = false;
        self.regions.insert(id.0, Known { region, ready });
    }

    pub(crate) fn contains(&self, id: RegionId) -> bool {
        self.regions.contains_key(&id.0)
    }

    /// Removes a region. Returns whether it existed.
    pub(crate) fn remove(&mut self, id: RegionId) -> bool {
        self.regions.remove(&id.0).is_some()
    }

    /// Whether the segments are in existing regions that the blocker has mapped, according to `is_ready`.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`]: the blocker has not mapped one of them yet. Any other error is final.
    pub(crate) fn check(
        &mut self,
        segments: &[Segment],
        is_ready: impl Fn(RegionId) -> bool,
    ) -> Result<(), ErrorCode> {
        for segment in segments {
            let known = self
                .regions
                .get_mut(&segment.region)
                .ok_or(ErrorCode::Invalid)?;
            let end = segment
                .offset
                .checked_add(u64::from(segment.len))
                .ok_or(ErrorCode::Invalid)?;
            if end > known.region.len() {
                return Err(ErrorCode::Invalid);
            }
            if !known.ready {
                known.ready = is_ready(RegionId(segment.region));
            }
            if !known.ready {
                return Err(ErrorCode::Unavailable);
            }
        }
        Ok(())
    }

    /// Sets the segments of the request in slot `request`.
    pub(crate) fn set_segments(&mut self, request: u32, segments: &[Segment]) {
        let kept = &mut self.segments[request as usize];
        kept.clear();
        kept.extend_from_slice(segments);
    }

    /// The parts of memory that hold `bytes`.
    pub(crate) fn parts(&self, bytes: RequestBytes) -> Parts<'_> {
        let segments = &self.segments[bytes.request as usize];
        Parts::new(segments, bytes.skip, bytes.len)
    }

    /// Number of bytes of the memory of the request in slot `request`.
    pub(crate) fn len(&self, request: u32) -> u64 {
        let segments = &self.segments[request as usize];
        segments.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Fills `bytes` with zeros.
    pub(crate) fn fill_zeros(&self, bytes: RequestBytes) -> Result<(), ErrorCode> {
        for part in self.parts(bytes) {
            self.region(part)?
                .fill(part.offset, u64::from(part.len), 0)
                .map_err(|_outside| ErrorCode::Invalid)?;
        }
        Ok(())
    }

    /// Writes `from` to `bytes`, which has the same length.
    pub(crate) fn write(&self, bytes: RequestBytes, mut from: &[u8]) -> Result<(), ErrorCode> {
        for part in self.parts(bytes) {
            let (now, rest) = from
                .split_at_checked(part.len as usize)
                .ok_or(ErrorCode::Internal)?;
            self.region(part)?
                .write(part.offset, now)
                .map_err(|_outside| ErrorCode::Invalid)?;
            from = rest;
        }
        if from.is_empty() {
            Ok(())
        } else {
            Err(ErrorCode::Invalid)
        }
    }

    /// Copies `bytes` into `into`, which has the same length.
    pub(crate) fn read(&self, bytes: RequestBytes, mut into: &mut [u8]) -> Result<(), ErrorCode> {
        for part in self.parts(bytes) {
            let (now, rest) = into
                .split_at_mut_checked(part.len as usize)
                .ok_or(ErrorCode::Invalid)?;
            self.region(part)?
                .read(part.offset, now)
                .map_err(|_outside| ErrorCode::Invalid)?;
            into = rest;
        }
        if into.is_empty() {
            Ok(())
        } else {
            Err(ErrorCode::Invalid)
        }
    }

    /// Copies `bytes`, which are fewer than a block, and passes the copy to `use_copy`.
    pub(crate) fn with_copy(
        &self,
        bytes: RequestBytes,
        use_copy: impl FnOnce(&[u8]),
    ) -> Result<(), ErrorCode> {
        let mut copy = [0; BLOCK_LEN];
        let len = usize::try_from(bytes.len).map_err(|_too_long| ErrorCode::Internal)?;
        let copy = copy.get_mut(..len).ok_or(ErrorCode::Internal)?;
        self.read(bytes, copy)?;
        use_copy(copy);
        Ok(())
    }

    fn region(&self, part: Segment) -> Result<&Region, ErrorCode> {
        let known = self.regions.get(&part.region).ok_or(ErrorCode::Invalid)?;
        Ok(&known.region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(region: u32, offset: u64, len: u32) -> Segment {
        Segment {
            region,
            offset,
            len,
        }
    }

    fn memory() -> GuestMemory {
        let guest = Region::anonymous(8192).unwrap();
        guest.fill(0, 4096, 1).unwrap();
        guest.fill(4096, 4096, 2).unwrap();
        let mut memory = GuestMemory::new(2);
        memory.add(RegionId(3), guest);
        memory
    }

    fn bytes(skip: u64, len: u64) -> RequestBytes {
        RequestBytes {
            request: 1,
            skip,
            len,
        }
    }

    #[test]
    fn segments_outside_of_what_is_there_are_refused() {
        let mut memory = memory();
        let check = |memory: &mut GuestMemory, segment, ready: bool| {
            memory.check(&[segment], |_| ready).err()
        };
        let invalid = Some(ErrorCode::Invalid);
        assert_eq!(check(&mut memory, segment(4, 0, 512), true), invalid);
        assert_eq!(check(&mut memory, segment(3, 8000, 512), true), invalid);
        assert_eq!(check(&mut memory, segment(3, u64::MAX, 512), true), invalid);
        let inside = segment(3, 0, 8192);
        let unavailable = Some(ErrorCode::Unavailable);
        assert_eq!(check(&mut memory, inside, false), unavailable);
        assert_eq!(check(&mut memory, inside, true), None);
        assert_eq!(check(&mut memory, inside, false), None, "asked once");
    }

    #[test]
    fn a_copy_is_whole_or_refused() {
        let mut memory = memory();
        memory.set_segments(1, &[segment(3, 4000, 96), segment(3, 4096, 512)]);
        let mut copy = [0; 200];
        memory.read(bytes(0, 200), &mut copy).unwrap();
        assert!(copy[..96].iter().all(|byte| *byte == 1));
        assert!(copy[96..].iter().all(|byte| *byte == 2));
        assert!(memory.read(bytes(0, 100), &mut copy).is_err());
        assert!(memory.read(bytes(0, 300), &mut copy).is_err());
        assert!(memory.read(bytes(600, 200), &mut copy).is_err());
        assert!(memory.remove(RegionId(3)));
        assert!(memory.read(bytes(0, 200), &mut copy).is_err());
    }
}
