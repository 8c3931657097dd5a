//! How files of a pool can be accessed: what the file system reports, and what it accepts.
//!
//! Invariant: these checks need no free space. They use the lock file, whose length is fixed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use archipelago_protocol::Error;
use archipelago_protocol::control::PoolAccess;
use archipelago_runtime::{Calls, Durability, Source, direct_io};
use nix::fcntl::OFlag;
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC,
    OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs,
};

use crate::errors::failed;
use crate::layout::{LOCK_LEN, Layout};

/// Units of direct I/O that a pool can use, in the order in which they are tried.
const ALIGNMENTS: [u32; 2] = [512, 4096];

/// How files of the pool can be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Past the page cache, by io_uring; offsets, lengths and addresses are multiples of this.
    Direct { alignment: u32 },
    /// Through the page cache, by plain calls.
    Cached,
}

impl Access {
    /// Offsets, lengths and addresses are multiples of this.
    pub(crate) fn alignment(self) -> u32 {
        match self {
            Access::Direct { alignment } => alignment,
            Access::Cached => 1,
        }
    }
}

/// An access, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) access: Access,
    /// The same, as shown in the status.
    pub(crate) report: PoolAccess,
}

impl Found {
    fn direct(alignment: u32) -> Found {
        Found {
            access: Access::Direct { alignment },
            report: PoolAccess::Direct { alignment },
        }
    }

    fn cached(why: &str) -> Found {
        Found {
            access: Access::Cached,
            report: PoolAccess::Buffered {
                why: why.to_owned(),
            },
        }
    }
}

/// What is below the page cache. It determines how calls on the file system are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// Memory: calls only copy, and io_uring would pass them to its workers.
    Memory,
    /// A device: a call returns without waiting if it is asked to, or io_uring passes it to a worker.
    Device,
    /// Another process (FUSE): its kernel side waits, at least for a lock of the file, also if it is asked not to.
    Process,
}

impl Below {
    pub(crate) fn of(layout: &Layout) -> Below {
        match statfs(layout.directory()).map(|found| found.filesystem_type()) {
            Ok(TMPFS_MAGIC) => Below::Memory,
            Ok(FUSE_SUPER_MAGIC) => Below::Process,
            _ => Below::Device,
        }
    }

    /// Which thread makes the calls that go to the ring.
    pub(crate) fn calls(self) -> Calls {
        match self {
            Below::Memory | Below::Device => Calls::First,
            Below::Process => Calls::Workers,
        }
    }
}

/// Whether the pool's file system writes an overwritten block to another place, unless a file is set not to.
pub(crate) fn copies_on_write(layout: &Layout) -> bool {
    let found = statfs(layout.directory());
    found.is_ok_and(|found| found.filesystem_type() == BTRFS_SUPER_MAGIC)
}

/// Has `file`, which was just made, overwritten in place. Where that is refused, overwriting works too, but needs free space.
pub(crate) fn overwrite_in_place(file: &File, path: &Path) {
    if let Err(error) = archipelago_runtime::overwrite_in_place(file) {
        tracing::debug!("{}: overwriting in place: {error}", path.display());
    }
}

/// The file system that `path` is on, for messages.
pub(crate) fn file_system_name(path: &Path) -> String {
    match statfs(path).map(|found| found.filesystem_type()) {
        Ok(BTRFS_SUPER_MAGIC) => "btrfs".to_owned(),
        Ok(EXT4_SUPER_MAGIC) => "ext4".to_owned(),
        Ok(FUSE_SUPER_MAGIC) => "FUSE".to_owned(),
        Ok(NFS_SUPER_MAGIC) => "NFS".to_owned(),
        Ok(OVERLAYFS_SUPER_MAGIC) => "overlayfs".to_owned(),
        Ok(TMPFS_MAGIC) => "tmpfs".to_owned(),
        Ok(XFS_SUPER_MAGIC) => "xfs".to_owned(),
        Ok(other) => format!("type {:#x}", other.0),
        Err(errno) => format!("of unknown type: {errno}"),
    }
}

/// Magic numbers that `nix` does not have: from `linux/magic.h` and the file systems' own sources.
const F2FS: FsType = FsType(0xf2f5_2010);
const ZFS: FsType = FsType(0x2fc1_2fc1);
const BCACHEFS: FsType = FsType(0xca45_1a4e);
const JFS: FsType = FsType(0x3153_464a);
const NILFS: FsType = FsType(0x3434);
const REISERFS: FsType = FsType(0x5265_4973);
const RAMFS: FsType = FsType(0x8584_58f6);

/// Whether only processes of this host can have files of the file system of `path` open, so that a lock which excludes them excludes
/// everybody. `false` for an unknown file system.
pub(crate) fn is_of_one_host(path: &Path) -> bool {
    let Ok(found) = statfs(path) else {
        return false;
    };
    match found.filesystem_type() {
        // The upper directory of an overlay belongs to one mount.
        EXT4_SUPER_MAGIC
        | XFS_SUPER_MAGIC
        | BTRFS_SUPER_MAGIC
        | TMPFS_MAGIC
        | OVERLAYFS_SUPER_MAGIC => true,
        other => [F2FS, ZFS, BCACHEFS, JFS, NILFS, REISERFS, RAMFS].contains(&other),
    }
}

/// Whether `error` means only that direct I/O is not supported here: file systems report that in different ways.
fn refuses(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINVAL
                | libc::EOPNOTSUPP
                | libc::ENOSYS
                | libc::ENODEV
                | libc::ENXIO
                | libc::EIO
                | libc::ENOTTY
        )
    )
}

/// Whether `error` means that there is no space.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Finds out which access the file system accepts: by asking it, and by writing a part of the lock file in place. The caller holds the lock
/// and has written the file.
pub(crate) fn find(layout: &Layout, source: &Source) -> Result<Found, Error> {
    let found = attempt(&layout.lock(), source)
        .map_err(|error| failed("try direct I/O in", layout.directory(), &error))?;
    let directory = layout.directory().display();
    match found.access {
        Access::Direct { .. } => tracing::info!("pool {directory}: access: {}", found.report),
        Access::Cached => tracing::warn!("pool {directory}: access: {}", found.report),
    }
    Ok(found)
}

/// The access of a pool that is configured not to use `O_DIRECT`.
pub(crate) fn configured_cached() -> Found {
    Found::cached("`direct = false` in the configuration")
}

fn attempt(path: &Path, source: &Source) -> io::Result<Found> {
    let file = match OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
    {
        Ok(file) => file,
        Err(error) if refuses(&error) => {
            return Ok(Found::cached(&format!(
                "the file system refuses O_DIRECT: {error}"
            )));
        }
        Err(error) => return Err(error),
    };
    let reported = match direct_io(&file) {
        Ok(reported) => reported,
        Err(error) => {
            tracing::debug!("{}: statx: {error}", path.display());
            None
        }
    };
    let least = match reported {
        Some(reported) if reported.offset_alignment == 0 => {
            return Ok(Found::cached(
                "the file system accepts O_DIRECT but does not honour it",
            ));
        }
        Some(reported) => reported.offset_alignment.max(reported.memory_alignment),
        None => 0,
    };
    let memory = xseg::Region::anonymous(LOCK_LEN)?;
    let whole = file.metadata()?.len() >= LOCK_LEN as u64;
    let file = archipelago_runtime::File::from(file);
    let mut refused = None;
    for alignment in ALIGNMENTS {
        if alignment < least {
            continue;
        }
        let span = memory
            .span(0, u64::from(alignment))
            .map_err(io::Error::other)?;
        // It writes the bytes that were read: no other process writes them.
        let tried = source
            .read_now(&file, std::slice::from_ref(&span), 0)
            .and_then(|read| match read == span.len() {
                true => source.write_now(&file, &[span], 0, Durability::Later),
                false => Ok(read),
            });
        match tried {
            // A file that is too short is read without an error, whatever the alignment.
            Ok(_) if !whole && u64::from(alignment) < LOCK_LEN as u64 => {}
            Ok(_) => return Ok(Found::direct(alignment)),
            // It could be read with this alignment, and rewriting needs space (btrfs): the alignment is not the cause.
            Err(error) if is_full(&error) => return Ok(Found::direct(alignment)),
            Err(error) if refuses(&error) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Ok(Found::cached(&match refused {
        Some(error) => format!("direct I/O of up to {LOCK_LEN} bytes is refused: {error}"),
        None => format!("direct I/O needs units of {least} bytes, more than {LOCK_LEN}"),
    }))
}
