//! The attributes of a volume, a snapshot or an image, as `stat` returns them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use archipelago_protocol::catalogue::{Entry, Kind};
use fuser::{FileAttr, FileType};
use nix::time::{ClockId, clock_gettime};

use crate::nodes::{ROOT, number};

/// How long the kernel may cache attributes and names: commands of the node change them.
pub(crate) const TTL: Duration = Duration::from_secs(1);
/// The preferred size of a transfer.
const TRANSFER_LEN: u32 = 128 << 10;
/// Unit of `st_blocks`.
const STAT_BLOCK: u64 = 512;

/// The user and the group of all files in a mount.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

fn now() -> SystemTime {
    // The clock exists on every kernel; the call cannot fail otherwise.
    let since = clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, Duration::from);
    UNIX_EPOCH + since
}

impl Owner {
    fn attributes(self, number: u64, kind: FileType, perm: u16, time: SystemTime) -> FileAttr {
        FileAttr {
            ino: number,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: TRANSFER_LEN,
            flags: 0,
        }
    }

    /// The attributes of the directory.
    pub(crate) fn directory(self) -> FileAttr {
        FileAttr {
            nlink: 2,
            ..self.attributes(ROOT, FileType::Directory, 0o500, now())
        }
    }

    /// The attributes of `entry`. A volume may change at any time, so its times are the present. The space that it takes is not known: it
    /// is given as less than the size, so that tools look for holes, and more than zero.
    pub(crate) fn file(self, entry: &Entry) -> FileAttr {
        let (perm, time) = match entry.kind {
            Kind::Volume => (0o600, now()),
            _ => (0o400, UNIX_EPOCH + Duration::from_secs(entry.created)),
        };
        FileAttr {
            size: entry.size,
            blocks: (entry.size / STAT_BLOCK).min(1),
            ..self.attributes(number(entry.lineage), FileType::RegularFile, perm, time)
        }
    }
}
