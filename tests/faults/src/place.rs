//! Where the files of a life lie: in memory, if there is room, so that no test waits for the disk that it happens to run on.

use std::path::PathBuf;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// A file system in memory, on Linux.
const MEMORY: &str = "/dev/shm";
/// Room for the pools and nodes of all lives that run side by side: some 100 MiB each.
const ROOM_MIN: u64 = 4 << 30;

/// The directory for temporary files. What such a disk keeps over a power cut is the business of [`crate::disk`], not of the
/// file system below.
#[must_use]
pub fn directory() -> PathBuf {
    let has_room = statfs(MEMORY).is_ok_and(|found| {
        let room = found.blocks_available() * u64::try_from(found.block_size()).unwrap_or(0);
        found.filesystem_type() == TMPFS_MAGIC && room >= ROOM_MIN
    });
    if has_room {
        PathBuf::from(MEMORY)
    } else {
        std::env::temp_dir()
    }
}
