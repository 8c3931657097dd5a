//! The space in a pool's file system, as the file system reports it.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

/// The space in a file system, as far as a process without privileges may use it: blocks reserved for root are neither free nor used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes free.
    pub free: u64,
    /// Bytes used.
    pub used: u64,
    /// Bytes in all, reserved ones included.
    pub total: u64,
    /// Inodes free, and in all; `None`: the file system does not limit them.
    pub inodes: Option<[u64; 2]>,
}

/// The space in the file system of `directory`. Blocks as long as that does.
///
/// # Errors
/// The error of the file system.
pub fn room(directory: &Path) -> io::Result<Room> {
    let found = statvfs(directory)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    Ok(Room {
        free: bytes(found.blocks_available()),
        used: bytes(found.blocks().saturating_sub(found.blocks_free())),
        total: bytes(found.blocks()),
        inodes: (found.files() > 0).then(|| [found.files_available(), found.files()]),
    })
}
