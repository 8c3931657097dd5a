//! Buffers of a channel: pieces of its arena, each of one owner at a time.
//!
//! Invariants
//! - A [`Buffer`] is on the free list or has one owner: a request in flight owns the buffer that it names.
//! - The endpoint can write any of them at any time, so they are read and written by copy.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use archipelago_protocol::ErrorCode;
use archipelago_protocol::status::{STATUS_PAGE_MAX, StatusPage, StatusRun};
use xseg::Region;

/// Alignment of buffers: enough for direct I/O on any pool.
const ALIGNMENT: usize = 4096;
// A status fits into every buffer.
const _: () = assert!(STATUS_PAGE_MAX as usize <= ALIGNMENT);

struct Shared {
    region: Region,
    buffer_len: usize,
    free: Mutex<Vec<u32>>,
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The buffers of one channel. Clones share them; any thread may acquire one.
#[derive(Clone)]
pub struct Buffers {
    shared: Arc<Shared>,
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.shared.free().len();
        let mut debug = f.debug_struct("Buffers");
        debug.field("len", &self.shared.buffer_len);
        debug.field("free", &free).finish()
    }
}

impl Buffers {
    /// `buffer_len`, rounded up to the alignment.
    pub(crate) fn rounded(buffer_len: usize) -> usize {
        buffer_len.max(1).next_multiple_of(ALIGNMENT)
    }

    /// As many buffers of `buffer_len` bytes as fit into `region`.
    pub(crate) fn new(region: Region, buffer_len: usize) -> Buffers {
        let count = region.len() / buffer_len as u64;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Buffers {
            shared: Arc::new(Shared {
                region,
                buffer_len,
                free: Mutex::new((0..count).rev().collect()),
            }),
        }
    }

    /// Bytes of each buffer.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        self.shared.buffer_len
    }

    /// A free buffer, with any content. `None`: all are in use; a buffer is freed when its owner drops it.
    #[must_use]
    pub fn acquire(&self) -> Option<Buffer> {
        let index = self.shared.free().pop()?;
        Some(Buffer {
            shared: Arc::clone(&self.shared),
            index,
        })
    }
}

/// A piece of the arena, for the data of one request. Freed when it is dropped.
pub struct Buffer {
    shared: Arc<Shared>,
    index: u32,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Buffer").field(&self.index).finish()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.shared.free().push(self.index);
    }
}

impl Buffer {
    /// The offset in the arena of `len` bytes at `at`.
    fn place(&self, at: usize, len: usize) -> u64 {
        let end = at.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.shared.buffer_len),
            "the caller keeps to the buffer's {} bytes",
            self.shared.buffer_len
        );
        self.begin() + at as u64
    }

    /// The offset of the buffer in the arena.
    pub(crate) fn begin(&self) -> u64 {
        u64::from(self.index) * self.shared.buffer_len as u64
    }

    /// The arena and the buffer's place in it, for callers that let the kernel move the data: see [`Region::span`].
    #[must_use]
    pub fn memory(&self) -> (&Region, u64) {
        (&self.shared.region, self.begin())
    }

    /// Copies `data` to `at`.
    ///
    /// # Panics
    /// If it does not fit: the caller's mistake.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        let place = self.place(at, data.len());
        let written = self.shared.region.write(place, data);
        written.expect("buffers are inside the arena");
    }

    /// The result of a status of `range` bytes: consecutive runs from the requested offset on, one at least, and together at most `range`.
    /// For the rest a further status is requested behind them.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] if the page is not valid.
    pub fn status(&self, range: u64) -> Result<Vec<StatusRun>, ErrorCode> {
        let mut page = [0; STATUS_PAGE_MAX as usize];
        self.read(0, &mut page);
        let page = StatusPage::decode(&page, range)?;
        Ok(page.runs().collect())
    }

    /// Copies the bytes at `at` to `into`.
    ///
    /// # Panics
    /// If the buffer ends before: the caller's mistake.
    pub fn read(&self, at: usize, into: &mut [u8]) {
        let place = self.place(at, into.len());
        let read = self.shared.region.read(place, into);
        read.expect("buffers are inside the arena");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_one_owner_and_is_free_again_when_it_is_dropped() {
        let buffers = Buffers::new(Region::anonymous(3 * 4096).unwrap(), 4096);
        let mut all: Vec<Buffer> = std::iter::from_fn(|| buffers.acquire()).collect();
        assert_eq!(all.len(), 3);
        for (number, buffer) in (1..).zip(&mut all) {
            buffer.write(0, &[number; 4096]);
        }
        for (number, buffer) in (1..).zip(&all) {
            let mut last = [0];
            buffer.read(4095, &mut last);
            assert_eq!(last, [number]);
        }
        all.pop();
        assert!(buffers.acquire().is_some());
        drop(all);
        assert_eq!(buffers.shared.free().len(), 3);
    }

    #[test]
    #[should_panic(expected = "the caller keeps to the buffer's 4096 bytes")]
    fn a_copy_beyond_its_end_is_refused() {
        let buffers = Buffers::new(Region::anonymous(2 * 4096).unwrap(), 4096);
        buffers.acquire().unwrap().write(1, &[0; 4096]);
    }
}
