//! A queue of a ublk device: its requests as the kernel shows them, and the commands that fetch and answer requests.
//!
//! Invariants
//! - The descriptors stay mapped, read-only, as long as the queue exists. The kernel writes the descriptor of a tag before the tag's
//!   command completes, and again only after the tag's next command.
//! - All commands of a queue are sent from one thread: the kernel refuses those of other threads.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use xseg::Span;

use super::abi::{Descriptor, QueueCommand, queue_op};
use crate::file::File;

/// Bytes of a page; the kernel maps whole pages.
const PAGE: usize = 4096;
/// The only queue of a device.
const QUEUE: u16 = 0;

/// The one queue of a device.
#[derive(Debug)]
pub struct UblkQueue {
    file: File,
    descriptors: NonNull<Descriptor>,
    depth: u16,
    buffer_len: usize,
}

impl UblkQueue {
    /// The queue of the device behind `fd`, which was created with depth `depth`, and whose longest read or write has `buffer_len` bytes.
    /// The kernel must have pages of 4 KiB, or round lengths to 4 KiB.
    ///
    /// # Errors
    /// The error of `mmap`: `EINVAL` if the device has another depth, or if another process mapped it after its creation or recovery.
    pub fn open(fd: OwnedFd, depth: u16, buffer_len: usize) -> io::Result<UblkQueue> {
        let len = mapping_len(depth).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a mapping at an address of the kernel's choice touches no memory of ours.
        let mapped = unsafe { mmap(None, len, ProtFlags::PROT_READ, flags, fd.as_fd(), 0) }?;
        Ok(UblkQueue {
            file: File::from(fd),
            descriptors: mapped.cast(),
            depth,
            buffer_len,
        })
    }

    /// Number of requests at a time.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// A copy of the request that the last command of `tag` fetched; `None` if there is no such tag.
    #[must_use]
    pub fn descriptor(&self, tag: u16) -> Option<Descriptor> {
        if tag >= self.depth {
            return None;
        }
        // SAFETY: the mapping has a descriptor for each tag below the depth, so this is inside.
        let place = unsafe { self.descriptors.add(usize::from(tag)) };
        // SAFETY: mapped as long as `self` lives, aligned since pages are, and every byte pattern is valid for numbers. The kernel writes
        // there only at other times; the read is volatile since the compiler does not know of these writes.
        Some(unsafe { place.as_ptr().read_volatile() })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Asks for a request of `tag`, whose data is in `buffer`.
    pub(crate) fn fetch(&self, tag: u16, buffer: &Span) -> squeue::Entry {
        self.entry(queue_op::FETCH, tag, 0, buffer)
    }

    /// Answers the request of `tag` with `result`, and asks for the next one.
    pub(crate) fn commit_and_fetch(&self, tag: u16, result: i32, buffer: &Span) -> squeue::Entry {
        self.entry(queue_op::COMMIT_AND_FETCH, tag, result, buffer)
    }

    /// # Panics
    /// If the buffer is shorter than the longest request: the kernel does not know the length of the buffer.
    fn entry(&self, op: u32, tag: u16, result: i32, buffer: &Span) -> squeue::Entry {
        assert!(buffer.len() >= self.buffer_len, "a buffer holds a request");
        let command = QueueCommand {
            queue: QUEUE,
            tag,
            result,
            address: buffer.address().expose_provenance() as u64,
        };
        // SAFETY: both have 16 bytes, and the structure has no padding.
        let bytes: [u8; 16] = unsafe { std::mem::transmute(command) };
        opcode::UringCmd16::new(Fd(self.file.raw()), op)
            .cmd(bytes)
            .build()
    }
}

impl Drop for UblkQueue {
    fn drop(&mut self) {
        let Some(len) = mapping_len(self.depth) else {
            return;
        };
        // SAFETY: mapped by `open` with this length, and no reference to it is left.
        let unmapped = unsafe { munmap(self.descriptors.cast(), len.get()) };
        debug_assert!(unmapped.is_ok(), "fd {}", self.file.as_fd().as_raw_fd());
    }
}

/// Bytes of the descriptors of a queue.
fn mapping_len(depth: u16) -> Option<NonZeroUsize> {
    let len = usize::from(depth) * size_of::<Descriptor>();
    NonZeroUsize::new(len.next_multiple_of(PAGE))
}
