//! How objects are named and placed in a pool's directory.
//!
//! | file | content |
//! |---|---|
//! | `LL/LINEAGE/data-EPOCH-CHUNK` | blocks of one epoch, 64 GiB of volume: byte `o` of the volume is at `o % 64 GiB` |
//! | `LL/LINEAGE/head` | two slots, see `archipelago_blocker::slots` |
//! | `LL/LINEAGE/log-NUMBER` | a log, behind 4096 bytes for its token, see `archipelago_blocker::logs` |
//! | `LL/LINEAGE/pack-NUMBER` | map or catalogue pages |
//!
//! `LINEAGE` is 32 hexadecimal digits, `LL` its first two, the numbers are 16 (chunks: 8) hexadecimal digits, so that the
//! names sort as the numbers do.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use archipelago_protocol::Lineage;
use archipelago_protocol::object::{ObjectId, ObjectKind};

/// Bytes of volume in one container.
pub const CONTAINER_LEN: u64 = 1 << 36;
/// Bytes in front of a log in its file, for its token.
pub(crate) const LOG_HEADER_LEN: u64 = 4096;
/// Bytes of the lock file: the largest unit of direct I/O that a pool uses.
pub(crate) const LOCK_LEN: usize = 4096;

/// A file of a pool: an object, or one chunk of an epoch's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId {
    pub(crate) object: ObjectId,
    pub(crate) chunk: u64,
}

impl FileId {
    /// The file that holds byte `offset` of `object`, and the offset in it.
    pub(crate) fn locate(object: ObjectId, offset: u64) -> (FileId, u64) {
        if object.kind == ObjectKind::Data {
            (
                FileId {
                    object,
                    chunk: offset / CONTAINER_LEN,
                },
                offset % CONTAINER_LEN,
            )
        } else {
            let header = match object.kind {
                ObjectKind::Log => LOG_HEADER_LEN,
                _ => 0,
            };
            (FileId { object, chunk: 0 }, offset.saturating_add(header))
        }
    }

    fn name(&self) -> String {
        let number = self.object.number;
        match self.object.kind {
            ObjectKind::Data => format!("data-{number:016x}-{:08x}", self.chunk),
            ObjectKind::Head => "head".to_owned(),
            ObjectKind::Log => format!("log-{number:016x}"),
            ObjectKind::Pack => format!("pack-{number:016x}"),
            ObjectKind::Content => format!("content-{number:016x}"),
        }
    }
}

/// The paths of a pool.
#[derive(Debug, Clone)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// The layout of the pool in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Layout {
            directory: directory.to_path_buf(),
        }
    }

    /// The pool's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file that marks this directory as a pool, with its version.
    #[must_use]
    pub fn marker(&self) -> PathBuf {
        self.directory.join("pool.toml")
    }

    /// The file that the process which serves the pool locks.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }

    /// The file whose space is reserved for metadata.
    #[must_use]
    pub fn reserve(&self) -> PathBuf {
        self.directory.join("reserve")
    }

    /// The directory of the owner record.
    pub(crate) fn owners(&self) -> PathBuf {
        self.directory.join("owner")
    }

    /// The owner record with the name `name`.
    pub(crate) fn owner(&self, name: impl Display) -> PathBuf {
        self.owners().join(name.to_string())
    }

    /// The directory of the objects of `lineage`.
    #[must_use]
    pub fn lineage(&self, lineage: Lineage) -> PathBuf {
        let name = lineage.to_string();
        self.directory.join(&name[..2]).join(name)
    }

    pub(crate) fn file(&self, id: FileId) -> PathBuf {
        self.lineage(id.object.lineage).join(id.name())
    }
}

/// The file of `lineage` with the name `name`; `None` for a foreign file.
pub(crate) fn parse(lineage: Lineage, name: &str) -> Option<FileId> {
    let number = |text: &str, digits: usize| {
        let legal = text.len() == digits
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        legal.then(|| u64::from_str_radix(text, 16).ok()).flatten()
    };
    let id = |kind, number, chunk| {
        Some(FileId {
            object: ObjectId {
                lineage,
                kind,
                number,
            },
            chunk,
        })
    };
    if name == "head" {
        return id(ObjectKind::Head, 0, 0);
    }
    match name.split_once('-')? {
        ("data", rest) => {
            let (epoch, chunk) = rest.split_once('-')?;
            id(ObjectKind::Data, number(epoch, 16)?, number(chunk, 8)?)
        }
        ("log", rest) => id(ObjectKind::Log, number(rest, 16)?, 0),
        ("pack", rest) => id(ObjectKind::Pack, number(rest, 16)?, 0),
        ("content", rest) => id(ObjectKind::Content, number(rest, 16)?, 0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Epoch;

    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let lineage = Lineage(0xab << 120 | 7);
        for id in [
            ObjectId::data(lineage, Epoch(9)),
            ObjectId::head(lineage),
            ObjectId::log(lineage, 3),
            ObjectId::pack(lineage, u64::MAX),
        ] {
            let (file, offset) = FileId::locate(id, 3 * CONTAINER_LEN + 5);
            assert_eq!(parse(lineage, &file.name()), Some(file));
            let header = match id.kind {
                ObjectKind::Log => 4096,
                _ => 0,
            };
            let place = file.chunk * CONTAINER_LEN + offset;
            assert_eq!(place, 3 * CONTAINER_LEN + 5 + header);
        }
        let path = Layout::new(Path::new("/p")).file(FileId::locate(ObjectId::head(lineage), 0).0);
        assert_eq!(
            path,
            Path::new("/p/ab").join(lineage.to_string()).join("head")
        );
    }

    #[test]
    fn foreign_names_are_nobodys() {
        for name in [
            "",
            "head-1",
            "data-1-1",
            "log-",
            "log-000000000000000G",
            "notes.txt",
            "pack-00000000000000001",
        ] {
            assert_eq!(parse(Lineage(1), name), None, "{name}");
        }
    }
}
