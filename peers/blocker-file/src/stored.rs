//! What the objects of a pool occupy, as the pool's file system says.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use archipelago_protocol::object::ObjectKind;

use crate::layout::Layout;
use crate::names::{files_of, lineages};
use crate::stall_detector::Progress;

/// Unit of `st_blocks`, stat(2).
const UNIT: u64 = 512;

/// What the objects of a pool occupy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    /// Bytes of what volumes, snapshots and images hold.
    pub data: u64,
    /// Bytes of maps, logs, heads and the catalogue.
    pub metadata: u64,
}

/// Counts what the objects of the pool in `directory` occupy; looks at each of its files. `goes_on` is asked before each lineage, and ends
/// the count: `None`.
///
/// # Errors
/// What the file system says.
pub fn stored(directory: &Path, goes_on: impl Fn() -> bool) -> io::Result<Option<Stored>> {
    let layout = Layout::new(directory);
    let mut stored = Stored::default();
    for lineage in lineages(&layout, &Progress::default())? {
        if !goes_on() {
            return Ok(None);
        }
        for file in files_of(&layout, lineage)? {
            let occupied = match fs::metadata(layout.file(file)) {
                Ok(metadata) => metadata.blocks() * UNIT,
                // Deleted since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
            match file.object.kind {
                ObjectKind::Data | ObjectKind::Content => stored.data += occupied,
                ObjectKind::Head | ObjectKind::Log | ObjectKind::Pack => {
                    stored.metadata += occupied;
                }
            }
        }
    }
    Ok(Some(stored))
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::object::ObjectId;
    use archipelago_protocol::{Epoch, Lineage};

    use super::*;
    use crate::layout::FileId;

    #[test]
    fn data_and_metadata_are_told_apart_and_nothing_else_counts() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let lineage = Lineage(5);
        let nothing = stored(dir.path(), || true).unwrap();
        assert_eq!(nothing, Some(Stored::default()));
        fs::create_dir_all(layout.lineage(lineage)).unwrap();
        let write = |path: &Path, len: usize| {
            let file = fs::File::create(path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; len], 0).unwrap();
            file.sync_all().unwrap();
        };
        for (id, len) in [
            (ObjectId::data(lineage, Epoch(1)), 256 << 10),
            (ObjectId::data(lineage, Epoch(2)), 128 << 10),
            (ObjectId::head(lineage), 8 << 10),
            (ObjectId::log(lineage, 1), 64 << 10),
            (ObjectId::pack(lineage, 1), 32 << 10),
        ] {
            write(&layout.file(FileId::locate(id, 0).0), len);
        }
        write(&layout.lineage(lineage).join("notes.txt"), 1 << 20);
        write(&layout.reserve(), 1 << 20);
        let Some(found) = stored(dir.path(), || true).unwrap() else {
            panic!("nothing has ended the count");
        };
        // A file system may take a page more for a file.
        let is_about =
            |found: u64, expected: u64| (expected..expected + (16 << 10)).contains(&found);
        assert!(is_about(found.data, 384 << 10), "{found:?}");
        assert!(is_about(found.metadata, 104 << 10), "{found:?}");
        assert_eq!(stored(dir.path(), || false).unwrap(), None);
        let missing = stored(&dir.path().join("missing"), || true);
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
