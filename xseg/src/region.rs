//! Regions: memory that several peers can access, addressed by (region, offset).
//!
//! Invariants
//! - Another process, or a guest, may change the bytes at any time, so references into a region do not exist. Access is by copy
//!   ([`Region::read`], [`Region::write`], [`Region::fill`]) or by passing the address to the kernel.
//! - A [`Span`] keeps its mapping alive, so no address outlives it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::mapping::{Mapping, Scalar};

/// Number of a region in its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub u32);

impl RegionId {
    /// The channel's own memory, available from the first request on.
    pub const ARENA: RegionId = RegionId(0);
}

/// A place that is not in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {offset} are not inside a region of {region_len} bytes")]
pub struct OutOfRegion {
    /// Offset of the access.
    pub offset: u64,
    /// Length of the access.
    pub len: u64,
    /// Length of the region.
    pub region_len: u64,
}

/// A mapped piece of shared memory. Clones share the mapping.
#[derive(Clone)]
pub struct Region {
    mapping: Arc<Mapping>,
}

impl Region {
    /// New memory of `len` bytes that can be passed to another process (a memfd sealed against resizing).
    ///
    /// # Errors
    /// The error of `memfd_create`, `ftruncate` or `mmap`.
    pub fn anonymous(len: usize) -> std::io::Result<Region> {
        Ok(Region {
            mapping: Arc::new(Mapping::anonymous(len)?),
        })
    }

    /// Maps `len` bytes of `fd` at `file_offset`, readable and writable.
    ///
    /// # Errors
    /// The error of `mmap`; `InvalidInput` if the file is shorter than that.
    pub fn from_fd(fd: OwnedFd, file_offset: u64, len: usize) -> std::io::Result<Region> {
        Ok(Region {
            mapping: Arc::new(Mapping::from_fd(fd, file_offset, len)?),
        })
    }

    /// Length in bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Whether the region has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mapping.len() == 0
    }

    /// The descriptor and the offset in it; another process that maps them sees the same memory.
    #[must_use]
    pub fn descriptor(&self) -> (&OwnedFd, u64) {
        self.mapping.descriptor()
    }

    /// The `len` bytes at `offset`, for the kernel to read or write.
    ///
    /// # Errors
    /// [`OutOfRegion`] if any byte lies outside.
    pub fn span(&self, offset: u64, len: u64) -> Result<Span, OutOfRegion> {
        let start = self.place(offset, len)?;
        let rest = self.mapping.len() - start;
        let len = usize::try_from(len).map_or(rest, |len| len.min(rest));
        Ok(Span {
            mapping: Arc::clone(&self.mapping),
            start,
            len,
        })
    }

    /// The start of `len` bytes at `offset`, checked.
    #[inline]
    fn place(&self, offset: u64, len: u64) -> Result<usize, OutOfRegion> {
        let refused = OutOfRegion {
            offset,
            len,
            region_len: self.len(),
        };
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => usize::try_from(offset).map_err(|_too_large| refused),
            _ => Err(refused),
        }
    }

    #[inline]
    fn aligned_place(&self, offset: u64, size: usize) -> Result<usize, OutOfRegion> {
        let size = size as u64;
        if !offset.is_multiple_of(size) {
            return Err(OutOfRegion {
                offset,
                len: size,
                region_len: self.len(),
            });
        }
        self.place(offset, size)
    }

    #[inline]
    fn load<T: Scalar>(&self, offset: u64, order: Ordering) -> Result<T, OutOfRegion> {
        Ok(T::load(
            &self.mapping,
            self.aligned_place(offset, size_of::<T>())?,
            order,
        ))
    }

    #[inline]
    fn store<T: Scalar>(&self, offset: u64, value: T, order: Ordering) -> Result<(), OutOfRegion> {
        value.store(
            &self.mapping,
            self.aligned_place(offset, size_of::<T>())?,
            order,
        );
        Ok(())
    }

    /// Loads a little-endian `u16` as a unit; `order` is `Relaxed`, `Acquire` or `SeqCst`.
    ///
    /// # Errors
    /// [`OutOfRegion`] if it lies outside or `offset` is not a multiple of its size.
    #[inline]
    pub fn load_u16(&self, offset: u64, order: Ordering) -> Result<u16, OutOfRegion> {
        self.load(offset, order).map(u16::from_le)
    }

    /// Stores a little-endian `u16` as a unit; `order` is `Relaxed`, `Release` or `SeqCst`.
    ///
    /// # Errors
    /// [`OutOfRegion`] if it lies outside or `offset` is not a multiple of its size; nothing is stored then.
    #[inline]
    pub fn store_u16(&self, offset: u64, value: u16, order: Ordering) -> Result<(), OutOfRegion> {
        self.store(offset, value.to_le(), order)
    }

    /// Loads a little-endian `u32` as a unit; `order` is `Relaxed`, `Acquire` or `SeqCst`.
    ///
    /// # Errors
    /// [`OutOfRegion`] if it lies outside or `offset` is not a multiple of its size.
    #[inline]
    pub fn load_u32(&self, offset: u64, order: Ordering) -> Result<u32, OutOfRegion> {
        self.load(offset, order).map(u32::from_le)
    }

    /// Stores a little-endian `u32` as a unit; `order` is `Relaxed`, `Release` or `SeqCst`.
    ///
    /// # Errors
    /// [`OutOfRegion`] if it lies outside or `offset` is not a multiple of its size; nothing is stored then.
    #[inline]
    pub fn store_u32(&self, offset: u64, value: u32, order: Ordering) -> Result<(), OutOfRegion> {
        self.store(offset, value.to_le(), order)
    }

    /// Loads a little-endian `u64` as a unit; `order` is `Relaxed`, `Acquire` or `SeqCst`.
    ///
    /// # Errors
    /// [`OutOfRegion`] if it lies outside or `offset` is not a multiple of its size.
    #[inline]
    pub fn load_u64(&self, offset: u64, order: Ordering) -> Result<u64, OutOfRegion> {
        self.load(offset, order).map(u64::from_le)
    }

    /// Stores a little-endian `u64` as a unit; `order` is `Relaxed`, `Release` or `SeqCst`.
    ///
    /// # Errors
    /// [`OutOfRegion`] if it lies outside or `offset` is not a multiple of its size; nothing is stored then.
    #[inline]
    pub fn store_u64(&self, offset: u64, value: u64, order: Ordering) -> Result<(), OutOfRegion> {
        self.store(offset, value.to_le(), order)
    }

    /// Whether the file of the region was found truncated, and zeros replace a part of it: stop using the region. Only with
    /// [`guard_against_truncation`](crate::guard_against_truncation); without it the process ends.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.mapping.is_damaged()
    }

    /// Maps an arena that another process made.
    pub(crate) fn arena_of_peer(fd: OwnedFd, len: usize) -> std::io::Result<Region> {
        Ok(Region {
            mapping: Arc::new(Mapping::arena_of_peer(fd, len)?),
        })
    }

    /// Copies `into.len()` bytes at `offset` out of the region.
    ///
    /// # Errors
    /// [`OutOfRegion`] if any byte lies outside; nothing is copied then.
    #[inline]
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), OutOfRegion> {
        let start = self.place(offset, into.len() as u64)?;
        self.mapping.copy_out(start, into);
        Ok(())
    }

    /// Copies `from` into the region at `offset`.
    ///
    /// # Errors
    /// [`OutOfRegion`] if any byte lies outside; nothing is copied then.
    #[inline]
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), OutOfRegion> {
        let start = self.place(offset, from.len() as u64)?;
        self.mapping.copy_in(start, from);
        Ok(())
    }

    /// Sets `len` bytes at `offset` to `value`.
    ///
    /// # Errors
    /// [`OutOfRegion`] if any byte lies outside; nothing is changed then.
    pub fn fill(&self, offset: u64, len: u64, value: u8) -> Result<(), OutOfRegion> {
        let span = self.span(offset, len)?;
        self.mapping.fill(span.start, span.len, value);
        Ok(())
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// A checked part of a region, to be passed to the kernel. Keeps the mapping until it is dropped.
#[derive(Clone)]
pub struct Span {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Span {
    /// Address of the first byte: only for system calls, and valid while this span lives.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.mapping.address(self.start)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the span has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the span into `into`, which has the same length.
    ///
    /// # Panics
    /// If the lengths differ, which is an error of this program.
    pub fn read(&self, into: &mut [u8]) {
        assert_eq!(into.len(), self.len, "a span is copied whole");
        self.mapping.copy_out(self.start, into);
    }

    /// Copies `from`, which has the same length, into the span.
    ///
    /// # Panics
    /// If the lengths differ, which is an error of this program.
    pub fn write(&self, from: &[u8]) {
        assert_eq!(from.len(), self.len, "a span is copied whole");
        self.mapping.copy_in(self.start, from);
    }

    /// The part of the span with `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`OutOfRegion`] if any byte lies outside this span.
    pub fn part(&self, offset: usize, len: usize) -> Result<Span, OutOfRegion> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(Span {
                mapping: Arc::clone(&self.mapping),
                start: self.start + offset,
                len,
            }),
            _ => Err(OutOfRegion {
                offset: offset as u64,
                len: len as u64,
                region_len: self.len as u64,
            }),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span")
            .field("start", &self.start)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// The regions that the requests of one channel may name. A channel serves many guests, so looking up one guest's region must not search
/// through those of the others.
#[derive(Debug, Default, Clone)]
pub struct RegionTable {
    /// In the order of their numbers.
    regions: Vec<(RegionId, Region)>,
}

/// Most regions of one channel: 509 memory slots of a vhost-user front end for each of some 30 machines, and an arena.
pub const REGIONS_MAX: usize = 16_384;

impl RegionTable {
    /// The region with number `id`.
    #[must_use]
    pub fn get(&self, id: RegionId) -> Option<&Region> {
        let index = self.index(id).ok()?;
        Some(&self.regions[index].1)
    }

    /// The index of region `id`: where it is, or where it would be inserted.
    fn index(&self, id: RegionId) -> Result<usize, usize> {
        self.regions.binary_search_by_key(&id, |(known, _)| *known)
    }

    /// Inserts `region` as `id`, in place of an older one. `false`: the table is full.
    pub fn insert(&mut self, id: RegionId, region: Region) -> bool {
        match self.index(id) {
            Ok(index) => self.regions[index].1 = region,
            Err(_) if self.regions.len() >= REGIONS_MAX => return false,
            Err(index) => self.regions.insert(index, (id, region)),
        }
        true
    }

    /// Removes region `id`; spans of it stay valid.
    pub fn remove(&mut self, id: RegionId) -> Option<Region> {
        let index = self.index(id).ok()?;
        Some(self.regions.remove(index).1)
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_found_whatever_the_order_in_which_they_came_and_went() {
        let region = |len| Region::anonymous(len).unwrap();
        let mut table = RegionTable::default();
        let found = |table: &RegionTable, id| table.get(RegionId(id)).map(Region::len);
        for id in [9, 2, 7, 4] {
            assert!(table.insert(RegionId(id), region(id as usize * 4096)));
        }
        assert!(table.insert(RegionId(7), region(4096)), "in place of it");
        assert_eq!(
            table.remove(RegionId(2)).map(|region| region.len()),
            Some(8192)
        );
        assert!(table.remove(RegionId(3)).is_none());
        let lens = [2, 4, 7, 9, 10].map(|id| found(&table, id));
        assert_eq!(lens, [None, Some(16_384), Some(4096), Some(36_864), None]);
    }
}
