//! Deletes files and gives space back. For threads that may block.
//!
//! Large files are shortened in steps before they are unlinked: to free many extents at once would block the file system for all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use archipelago_protocol::Lineage;
use archipelago_protocol::object::{ObjectKind, ObjectRequest};
use archipelago_runtime::{Clock, SystemClock};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::PollTimeout;
use nix::unistd::{Whence, lseek};

use crate::descriptors::retry_while_exhausted;
use crate::errors::Failed;
use crate::layout::{FileId, Layout};
use crate::names::files_of;
use crate::stall_detector::Progress;

/// A file is shortened by this much in each step of its deletion; holes cost nothing.
const DELETE_STEP: u64 = 8 << 20;
/// After each step of a deletion the thread pauses for this many times the duration of the step: others need the journal.
const DELETE_PAUSE: u32 = 3;

/// Offsets of the pieces of [`DELETE_STEP`] that hold data, in order.
fn pieces_with_data(file: &File) -> io::Result<Vec<u64>> {
    let mut pieces = Vec::new();
    let mut from = 0;
    loop {
        let signed = i64::try_from(from).map_err(io::Error::other)?;
        match lseek(file, signed, Whence::SeekData) {
            Ok(data) => {
                let piece =
                    u64::try_from(data).map_err(io::Error::other)? / DELETE_STEP * DELETE_STEP;
                pieces.push(piece);
                from = piece + DELETE_STEP;
            }
            // No data from here on.
            Err(Errno::ENXIO) => return Ok(pieces),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn delete_file(path: &Path, progress: &Progress) -> io::Result<()> {
    let file = match retry_while_exhausted(|| OpenOptions::new().write(true).open(path)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for piece in pieces_with_data(&file)?.into_iter().rev() {
        let before = SystemClock.now();
        file.set_len(piece)?;
        progress.step();
        let took = SystemClock.now().saturating_sub(before);
        let pause = PollTimeout::try_from(took * DELETE_PAUSE).unwrap_or(PollTimeout::ZERO);
        // A pause only: a signal that ends it early does no harm.
        let _paused = nix::poll::poll(&mut [], pause);
    }
    fs::remove_file(path)
}

/// Deletes the files of `lineage` that `which` selects.
pub(crate) fn delete(
    layout: &Layout,
    which: impl Fn(&FileId) -> bool,
    lineage: Lineage,
    progress: &Progress,
) -> io::Result<()> {
    for id in files_of(layout, lineage)?.into_iter().filter(which) {
        delete_file(&layout.file(id), progress)?;
        progress.step();
    }
    Ok(())
}

/// Deletes all files of `lineage`.
pub(crate) fn delete_lineage(
    layout: &Layout,
    lineage: Lineage,
    progress: &Progress,
) -> io::Result<()> {
    // The head goes last: as long as it exists, the deletion can be found and repeated.
    let is_no_head = |id: &FileId| id.object.kind != ObjectKind::Head;
    delete(layout, is_no_head, lineage, progress)?;
    delete(layout, |_| true, lineage, progress)?;
    match fs::remove_dir(layout.lineage(lineage)) {
        // Foreign files are left alone, and with them the directory.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives the space of a range back. A sync of the pool makes that durable; a sync of the object does not cover it.
pub(crate) fn punch(layout: &Layout, request: &ObjectRequest) -> Result<(), Failed> {
    let (id, offset) = FileId::locate(request.id, request.offset);
    let path = layout.file(id);
    let file = match retry_while_exhausted(|| OpenOptions::new().write(true).open(&path)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if request.len == 0 {
        return Ok(());
    }
    let signed = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = (signed(offset)?, signed(u64::from(request.len))?);
    fallocate(&file, flags, offset, len).map_err(io::Error::from)?;
    Ok(())
}
