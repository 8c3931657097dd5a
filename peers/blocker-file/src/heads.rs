//! Small objects that are changed by swaps: two slots in a file, in the format of `archipelago_blocker::slots`.
//!
//! Invariants
//! - A swap is compared only with durable content. What existed when the process began is durable by the sync of its start, and later swaps
//!   are, unless one failed: then the slots are written and synced again before they are compared.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use archipelago_blocker::slots::{self, SLOTS_LEN, SlotsUnreadable, Swap};
use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::{ObjectId, ObjectReply, ObjectRequest, SWAP_LEN_MAX};
use rustc_hash::FxHashSet;
use xseg::Span;

use crate::access::overwrite_in_place;
use crate::descriptors::retry_while_exhausted;
use crate::errors::{Failed, code_of};
use crate::layout::{FileId, Layout};
use crate::names::sync_names;
use crate::spans::{gather, scatter};

/// The state of heads beside their files. One thread at a time swaps a head.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    /// Their last swap failed: their files may differ from the medium.
    doubtful: Mutex<FxHashSet<ObjectId>>,
    /// All other heads may, too: the sync at the start failed.
    suspect: bool,
    /// The file system copies on write: new heads are set to be overwritten in place.
    copy_on_write: bool,
}

impl Heads {
    /// Heads of a pool. `copy_on_write`: its file system copies on write.
    pub(crate) fn new(copy_on_write: bool) -> Self {
        Heads {
            copy_on_write,
            ..Heads::default()
        }
    }

    /// Heads of a pool whose sync at the start failed.
    pub(crate) fn suspect(copy_on_write: bool) -> Self {
        Heads {
            suspect: true,
            ..Heads::new(copy_on_write)
        }
    }

    /// Whether the file system copies on write.
    pub(crate) fn copies_on_write(&self) -> bool {
        self.copy_on_write
    }

    fn doubtful(&self) -> MutexGuard<'_, FxHashSet<ObjectId>> {
        // No code panics while the lock is held.
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn swap(
        &self,
        layout: &Layout,
        request: &ObjectRequest,
        memory: &[Span],
    ) -> Result<ObjectReply, Failed> {
        if request.len > SWAP_LEN_MAX {
            return Err(ErrorCode::Invalid.into());
        }
        let content = gather(memory);
        let reply = |result: Result<u32, ErrorCode>, version| {
            Ok(ObjectReply {
                values: [version, 0],
                ..result.map_or_else(ObjectReply::failed, ObjectReply::done)
            })
        };
        let current = self.current(layout, request.id)?;
        match slots::swap(current.as_ref(), request.offset, &content) {
            Swap::Done { version } => reply(Ok(0), version),
            Swap::Stale { version } => reply(Err(ErrorCode::Stale), version),
            Swap::Write {
                offset,
                slot,
                version,
            } => {
                if let Err(failed) = write(self, layout, request.id, offset, &*slot) {
                    self.doubtful().insert(request.id);
                    return Err(failed);
                }
                reply(Ok(0), version)
            }
        }
    }

    pub(crate) fn read_swapped(
        &self,
        layout: &Layout,
        request: &ObjectRequest,
        memory: &[Span],
    ) -> Result<ObjectReply, Failed> {
        let current = self
            .current(layout, request.id)?
            .ok_or(ErrorCode::NotFound)?;
        let len = u32::try_from(current.content.len()).map_err(|_too_long| ErrorCode::Damaged)?;
        if len > request.len {
            return Err(ErrorCode::Invalid.into());
        }
        scatter(&current.content, memory);
        Ok(ObjectReply {
            values: [current.version, 0],
            ..ObjectReply::done(len)
        })
    }

    fn current(&self, layout: &Layout, id: ObjectId) -> Result<Option<slots::Current>, Failed> {
        let path = layout.file(FileId::locate(id, 0).0);
        let Some(bytes) = read_slots(&path)? else {
            return Ok(None);
        };
        if self.suspect || self.doubtful().contains(&id) {
            // Written again: a sync alone would not write these pages, once the kernel has given up on them.
            write(self, layout, id, 0, &bytes[..])?;
            sync_names(layout, id.lineage)?;
            self.doubtful().remove(&id);
        }
        slots::decode(&bytes).map_err(|why| {
            tracing::error!("{}: {why}", path.display());
            let code = match why {
                SlotsUnreadable::Damaged(_) => ErrorCode::Damaged,
                SlotsUnreadable::Unsupported { .. } => ErrorCode::UnsupportedFormat,
            };
            code.into()
        })
    }
}

/// Writes `bytes` at `offset`, durably, with the file's name.
fn write(
    heads: &Heads,
    layout: &Layout,
    id: ObjectId,
    offset: u64,
    bytes: &[u8],
) -> Result<(), Failed> {
    let path = layout.file(FileId::locate(id, 0).0);
    let fresh = !path.exists();
    fs::create_dir_all(layout.lineage(id.lineage))?;
    let file = retry_while_exhausted(|| {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
    })?;
    if fresh && heads.copy_on_write {
        overwrite_in_place(&file, &path);
    }
    let len = file.metadata()?.len();
    if len < SLOTS_LEN as u64 {
        // Space for both slots before either is written: later swaps need none. A shorter file means zeros.
        let missing = usize::try_from(len).map_or(0, |len| SLOTS_LEN - len);
        file.write_all_at(&[0; SLOTS_LEN][..missing], len)?;
    }
    file.write_all_at(bytes, offset)?;
    file.sync_data().map_err(|error| Failed {
        code: code_of(&error),
        ..Failed::sync(&error)
    })?;
    if fresh {
        sync_names(layout, id.lineage)?;
    }
    Ok(())
}

/// The bytes of both slots, zeros where the file is shorter; `None` without a file.
fn read_slots(path: &Path) -> Result<Option<Box<[u8; SLOTS_LEN]>>, ErrorCode> {
    let mut file = match retry_while_exhausted(|| File::open(path)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(code_of(&error)),
    };
    let mut bytes = Vec::with_capacity(SLOTS_LEN);
    file.by_ref()
        .take(SLOTS_LEN as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| code_of(&error))?;
    let mut slots = Box::new([0; SLOTS_LEN]);
    slots[..bytes.len()].copy_from_slice(&bytes);
    Ok(Some(slots))
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Lineage;
    use archipelago_protocol::object::ObjectOp;

    use super::*;

    #[test]
    fn what_a_failed_swap_left_is_written_again_before_it_is_compared() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, heads) = (Layout::new(dir.path()), Heads::default());
        let id = ObjectId::head(Lineage(1));
        let path = layout.file(FileId::locate(id, 0).0);
        let swap = ObjectRequest::new(ObjectOp::CompareAndSwap, id);
        let read = ObjectRequest::new(ObjectOp::ReadSwapped, id);
        assert_eq!(
            heads.swap(&layout, &swap, &[]).map(|done| done.values[0]),
            Ok(1)
        );
        let changed = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        let age = |path: &Path| File::open(path).unwrap().set_modified(long_ago).unwrap();
        // A link that leads nowhere in its place: nothing is there to be read, and nothing can be written.
        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink(dir.path().join("nowhere/head"), &path).unwrap();
        assert!(heads.swap(&layout, &swap, &[]).is_err());
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        for written in [true, false] {
            age(&path);
            assert!(heads.read_swapped(&layout, &read, &[]).is_ok());
            assert_eq!(changed(&path) != long_ago, written);
        }
        let heads = Heads::suspect(false);
        age(&path);
        assert!(heads.read_swapped(&layout, &read, &[]).is_ok());
        assert!(changed(&path) != long_ago, "so is what a predecessor left");
    }
}
