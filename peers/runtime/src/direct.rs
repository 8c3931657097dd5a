//! How a file system supports `O_DIRECT` on one of its files.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// What direct I/O on a file needs, as `statx` reports it (`STATX_DIOALIGN`, Linux 6.1). Both are 0 where a file can be opened with
/// `O_DIRECT` but is still accessed through the page cache: so it is on ext4 with `data=journal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectIo {
    /// Addresses are multiples of this.
    pub memory_alignment: u32,
    /// Offsets and lengths are multiples of this.
    pub offset_alignment: u32,
}

/// Asks the file system; `None` if the kernel or the file system does not report it.
///
/// # Errors
/// The error of `statx`.
pub fn direct_io(file: impl AsFd) -> io::Result<Option<DirectIo>> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the path is a string with its terminator, the descriptor is borrowed for the call, and `found` has room for what is written.
    let done = unsafe {
        libc::statx(
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            found.as_mut_ptr(),
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every byte is zero or was written by the kernel, and every byte pattern is valid for numbers.
    let found = unsafe { found.assume_init() };
    let known = found.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(known.then_some(DirectIo {
        memory_alignment: found.stx_dio_mem_align,
        offset_alignment: found.stx_dio_offset_align,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignments_are_powers_of_two_or_both_nothing() {
        let file = tempfile::tempfile().unwrap();
        match direct_io(&file).unwrap() {
            None => println!("skipped: the file system does not say"),
            Some(found) if found.offset_alignment == 0 => assert_eq!(found.memory_alignment, 0),
            Some(found) => {
                assert!(found.memory_alignment.is_power_of_two(), "{found:?}");
                assert!(found.offset_alignment.is_power_of_two(), "{found:?}");
            }
        }
    }

    #[test]
    fn what_is_no_file_system_says_nothing() {
        let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(direct_io(&end).unwrap(), None);
    }
}
