//! The log file of a daemon in the background: at most [`LOG_LEN_MAX`] bytes and one predecessor, `.1`.
//!
//! The daemon and its data processes share one descriptor of the file, opened for appending, and data processes could not open another
//! file. So the file is copied and truncated, not renamed. A line that is written between the end of the copy and the truncation, within a
//! few microseconds, is lost. Only the daemon does this, once per second.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use archipelago_api::layout::{LOG_LEN_MAX, former_log};

/// Truncates the log at `path`, if it is this process's stderr and longer than [`LOG_LEN_MAX`]. Returns whether it was truncated.
///
/// # Errors
/// The error of keeping the predecessor; the log was truncated nevertheless.
pub(crate) fn rotate(path: &Path) -> io::Result<bool> {
    cut(path, std::io::stderr(), LOG_LEN_MAX)
}

fn cut(path: &Path, log: impl AsFd, len_max: u64) -> io::Result<bool> {
    let Ok(open) = nix::sys::stat::fstat(&log) else {
        return Ok(false);
    };
    // A file of another program, or one that was moved away, is not changed.
    let same = std::fs::metadata(path)
        .is_ok_and(|named| (named.dev(), named.ino()) == (open.st_dev, open.st_ino));
    let long = u64::try_from(open.st_size).is_ok_and(|len| len > len_max);
    if long && open.st_nlink == 0 {
        // The file was removed: it cannot be read any more, but still takes space.
        nix::unistd::ftruncate(&log, 0)?;
    }
    if !same || !long {
        return Ok(false);
    }
    let kept = keep(path, 2 * len_max);
    if kept.is_err() {
        // An incomplete copy, if the file system is full.
        let _removed = std::fs::remove_file(former_log(path));
    }
    nix::unistd::ftruncate(&log, 0)?;
    kept.map(|()| true)
}

/// Keeps the end of the log, at most `len_max` bytes.
fn keep(path: &Path, len_max: u64) -> io::Result<()> {
    let predecessor = former_log(path);
    match std::fs::remove_file(&predecessor) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut from = File::open(path)?;
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&predecessor)?;
    let len = from.metadata()?.len();
    from.seek(SeekFrom::Start(len.saturating_sub(len_max)))?;
    io::copy(&mut from.take(len_max), &mut to).map(|_len| ())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_long_log_is_cut_and_its_writers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        let other = File::options().append(true).open(dir.path().join("a.log"));
        let mut other = other.unwrap();
        for round in 0..3 {
            writeln!(log, "round {round}").unwrap();
            assert!(!cut(&path, &log, 100).unwrap(), "short");
            writeln!(other, "{}", "x".repeat(100)).unwrap();
            assert!(cut(&path, &log, 100).unwrap());
            let kept = std::fs::read_to_string(former_log(&path)).unwrap();
            assert!(kept.starts_with(&format!("round {round}\nxxx")), "{kept}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        }
        std::fs::remove_file(former_log(&path)).unwrap();
        std::fs::create_dir(former_log(&path)).unwrap();
        writeln!(other, "{}", "x".repeat(200)).unwrap();
        cut(&path, &log, 100).unwrap_err();
        assert_eq!(
            std::fs::metadata(&path).unwrap().len(),
            0,
            "cut all the same"
        );
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        writeln!(other, "{}", "x".repeat(200)).unwrap();
        assert!(!cut(&path, &log, 100).unwrap(), "somebody else's");
        assert_eq!(log.metadata().unwrap().len(), 201);
        std::fs::remove_file(dir.path().join("moved")).unwrap();
        assert!(!cut(&path, &log, 100).unwrap(), "nobody's");
        assert_eq!(log.metadata().unwrap().len(), 0);
    }
}
