//! Files that are overwritten in place on a file system that copies on write.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);

/// `FS_NOCOW_FL` of `linux/fs.h`; `chattr +C`.
const NO_COW: libc::c_int = 0x0080_0000;

/// Has the file system overwrite `file`, which must be empty, in place: without allocating new blocks, and without checksums.
///
/// # Errors
/// The error of the file system: most do not support this.
pub fn overwrite_in_place(file: impl AsFd) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // The kernel reads and writes an `int`, although the number of the call is that of a long (ioctl_iflags(2)): an int fits into a long.
    let mut flags: libc::c_long = 0;
    // SAFETY: the descriptor is borrowed for the call, and `flags` has room for what is written.
    unsafe { get_flags(fd, &raw mut flags) }?;
    let flags = flags | libc::c_long::from(NO_COW);
    // SAFETY: the descriptor is borrowed for the call, and `flags` is only read.
    unsafe { set_flags(fd, &raw const flags) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_copies_refuses() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        assert!(overwrite_in_place(&file).is_err());
    }
}
