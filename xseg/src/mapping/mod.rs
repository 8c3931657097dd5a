//! Mapped shared memory: the only module of this crate with raw pointers.
//!
//! * [`Mapping`]: a mapped file, accessed by copy or by same-size atomics.
//! * [`OwnHalf`] and [`PeerHalf`]: control memory of a channel as words, by who may write it.
//! * `guard`: survives files that are truncated while they are mapped. `descriptors`: receives descriptors.
//!
//! Invariants
//! - A mapping is unmapped only when its last owner is dropped.
//! - Every access is checked against the private length, and is a bulk copy or an atomic access. Another process may write the same bytes
//!   at any time, so the only references into the memory are those to atomics.

mod descriptors;
mod guard;
mod halves;
mod scalar;

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

pub use descriptors::receive;
pub use guard::guard_against_truncation;
pub(crate) use halves::{OwnHalf, PeerHalf};
pub(crate) use scalar::Scalar;

/// Seals of memory that cannot be resized: no access to it can fault.
pub(crate) const SIZE_SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
/// Seals of control memory: it has a fixed size, and only the creator's existing mapping can write it.
pub(crate) const CONTROL_SEALS: i32 = SIZE_SEALS | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadWrite,
    ReadOnly,
}

/// A shared mapping of a file.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    access: Access,
    fd: OwnedFd,
    file_offset: u64,
    guard: Option<guard::Entry>,
}

// SAFETY: the mapping is plain memory, not bound to a thread; all accesses go through raw copies that tolerate
// concurrent writers, which exist anyway in other processes.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`: `&Mapping` allows nothing that another process could not do at the same time.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A fresh memfd of `len` bytes, sealed against resizing, so that no access can fault.
    pub(crate) fn anonymous(len: usize) -> io::Result<Mapping> {
        let fd = memfd(len)?;
        add_seals(&fd, SIZE_SEALS | libc::F_SEAL_SEAL)?;
        Mapping::map(fd, 0, len, Access::ReadWrite)
    }

    /// A new memfd of `len` bytes that other processes cannot write: [`CONTROL_SEALS`].
    pub(crate) fn control(len: usize) -> io::Result<Mapping> {
        let mapping = Mapping::map(memfd(len)?, 0, len, Access::ReadWrite)?;
        add_seals(&mapping.fd, CONTROL_SEALS)?;
        Ok(mapping)
    }

    /// Maps the control memory that another process made, of exactly `len` bytes, for reading.
    pub(crate) fn control_of_peer(fd: OwnedFd, len: usize) -> io::Result<Mapping> {
        expect_sealed(&fd, CONTROL_SEALS, len)?;
        Mapping::map(fd, 0, len, Access::ReadOnly)
    }

    /// Maps bulk memory that another process made, of exactly `len` bytes and sealed against resizing.
    pub(crate) fn arena_of_peer(fd: OwnedFd, len: usize) -> io::Result<Mapping> {
        expect_sealed(&fd, SIZE_SEALS, len)?;
        Mapping::map(fd, 0, len, Access::ReadWrite)
    }

    /// Maps `len` bytes of `fd` from `file_offset` on.
    pub(crate) fn from_fd(fd: OwnedFd, file_offset: u64, len: usize) -> io::Result<Mapping> {
        Mapping::map(fd, file_offset, len, Access::ReadWrite)
    }

    fn map(fd: OwnedFd, file_offset: u64, len: usize, access: Access) -> io::Result<Mapping> {
        let end = (len as u64).checked_add(file_offset);
        let size = nix::sys::stat::fstat(&fd).map_err(io::Error::from)?.st_size;
        if len == 0 || end.is_none_or(|end| i64::try_from(end).map_or(true, |end| end > size)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the file is shorter than the region",
            ));
        }
        let offset = libc::off_t::try_from(file_offset).map_err(io::Error::other)?;
        let protection = match access {
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
            Access::ReadOnly => libc::PROT_READ,
        };
        // SAFETY: a fresh mapping at an address that the kernel chooses touches no memory of ours.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::other("mmap returned null"))?;
        // Only a file that can shrink can cause a fault.
        let guard = if seals(&fd).is_ok_and(|seals| seals & libc::F_SEAL_SHRINK != 0) {
            None
        } else {
            guard::register(base.as_ptr() as usize, len)
        };
        Ok(Mapping {
            base,
            len,
            access,
            fd,
            file_offset,
            guard,
        })
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn descriptor(&self) -> (&OwnedFd, u64) {
        (&self.fd, self.file_offset)
    }

    /// Whether the file was found truncated, and zeros replace a part of it.
    pub(crate) fn is_damaged(&self) -> bool {
        self.guard.as_ref().is_some_and(guard::Entry::is_damaged)
    }

    /// Address of byte `start`.
    #[inline]
    pub(crate) fn address(&self, start: usize) -> *mut u8 {
        assert!(start <= self.len, "checked by the region");
        // SAFETY: `start` is at most the length of the mapping, so the result stays in it or one past its end.
        unsafe { self.base.as_ptr().add(start) }
    }

    /// Copies `into.len()` bytes at `start` into `into`.
    #[inline]
    pub(crate) fn copy_out(&self, start: usize, into: &mut [u8]) {
        self.check(start, into.len());
        // SAFETY: source checked above; `into` is private memory of that length, so they cannot overlap. Another
        // process may write the source meanwhile: the bytes copied are then any mixture, which callers expect. That
        // such a race is harmless is the kernel's and the compiler's practice, not the language's promise.
        unsafe { ptr::copy_nonoverlapping(self.address(start), into.as_mut_ptr(), into.len()) }
    }

    /// Copies `from` to `start`.
    #[inline]
    pub(crate) fn copy_in(&self, start: usize, from: &[u8]) {
        self.check_writable(start, from.len());
        // SAFETY: as in `copy_out`, the other way round.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.address(start), from.len()) }
    }

    /// Sets `len` bytes at `start` to `value`.
    pub(crate) fn fill(&self, start: usize, len: usize, value: u8) {
        self.check_writable(start, len);
        // SAFETY: the range was checked above; races as in `copy_out`.
        unsafe { ptr::write_bytes(self.address(start), value, len) }
    }

    #[inline]
    fn check(&self, start: usize, len: usize) {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.len),
            "checked by the region"
        );
    }

    #[inline]
    fn check_writable(&self, start: usize, len: usize) {
        self.check(start, len);
        assert!(
            self.access == Access::ReadWrite,
            "only control memory of a peer is mapped read-only"
        );
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First the entry of the guard: right after the unmapping, another mapping may get the addresses.
        self.guard = None;
        // SAFETY: base and length are those of the mapping made in `map`; nobody can hold an address any more,
        // because spans and regions share ownership of `self`.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(result, 0, "unmapping what was mapped");
    }
}

fn memfd(len: usize) -> io::Result<OwnedFd> {
    let name = c"xseg";
    // SAFETY: `name` is a C string that outlives the call.
    let raw =
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let size = libc::off_t::try_from(len).map_err(io::Error::other)?;
    // SAFETY: a plain system call on a descriptor that we own.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

fn add_seals(fd: &impl AsFd, seals: i32) -> io::Result<()> {
    // SAFETY: a plain system call on a descriptor that is open while it is borrowed.
    if unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn seals(fd: &impl AsFd) -> io::Result<i32> {
    // SAFETY: a plain system call on a descriptor that is open while it is borrowed.
    let seals = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(seals)
    }
}

fn expect_sealed(fd: &OwnedFd, wanted: i32, len: usize) -> io::Result<()> {
    let refused = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidData, text.to_owned()));
    match seals(fd) {
        Ok(seals) if seals & wanted == wanted => {}
        Ok(_) => return refused("the memory lacks a seal"),
        Err(_not_sealable) => return refused("the memory is no memfd"),
    }
    let size = nix::sys::stat::fstat(fd).map_err(io::Error::from)?.st_size;
    if usize::try_from(size).ok() == Some(len) {
        Ok(())
    } else {
        refused("the memory is not as long as announced")
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
