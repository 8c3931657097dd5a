//! Foreign files in places of a pool where directories of lineages belong: left alone, skipped by listings, listed by the doctor.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use archipelago_protocol::Lineage;

/// Most of them that are listed.
const FOREIGN_MAX: usize = 100;

/// Files in `directory`, a pool, that have the name of a lineage's or a shard's directory; not all if there are many. Changes nothing.
///
/// # Errors
/// The error of the file system.
pub fn foreign(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for shard in fs::read_dir(directory)? {
        let shard = shard?;
        let name = shard.file_name();
        let is_shard = name.len() == 2 && name.to_str().is_some_and(is_hexadecimal);
        match is_shard {
            false => {}
            true if !shard.file_type()?.is_dir() => found.push(shard.path()),
            true => {
                for entry in fs::read_dir(shard.path())? {
                    let entry = entry?;
                    let name = entry.file_name();
                    let lineage = name.to_str().and_then(|name| name.parse::<Lineage>().ok());
                    if lineage.is_some() && !entry.file_type()?.is_dir() {
                        found.push(entry.path());
                    }
                }
            }
        }
        if found.len() >= FOREIGN_MAX {
            break;
        }
    }
    found.sort_unstable();
    found.truncate(FOREIGN_MAX);
    Ok(found)
}

fn is_hexadecimal(name: &str) -> bool {
    name.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[test]
    fn files_where_directories_belong_are_named_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        fs::create_dir_all(layout.lineage(Lineage(1))).unwrap();
        for name in ["pool.toml", "lock", "xy", "notes"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(foreign(dir.path()).unwrap(), Vec::<PathBuf>::new());
        let file = layout.lineage(Lineage(2));
        fs::write(&file, "").unwrap();
        let shard = dir.path().join("ab");
        fs::write(&shard, "").unwrap();
        assert_eq!(foreign(dir.path()).unwrap(), [file, shard]);
    }
}
