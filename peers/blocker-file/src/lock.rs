//! The lock of a pool: one process serves it at a time.
//!
//! Invariants
//! - A lock that does not exclude others is not accepted: it is tried before anything of the pool is read.
//! - The record in the file is for people, and for the trials of direct I/O in [`crate::access`]. It has a fixed length and is written in
//!   place, so that a start on a full file system needs no space; if it cannot be written, the lock holds nevertheless.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::Clock;
use nix::errno::Errno;
use nix::fcntl::FlockArg;
use nix::poll::PollTimeout;

use crate::access::{copies_on_write, overwrite_in_place};
use crate::errors::failed;
use crate::layout::{LOCK_LEN, Layout};

/// How often a held lock is tried again.
const LOCK_RETRY_MS: u16 = 5;

/// Opens the lock file; creates it if it does not exist.
fn open(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| failed("open", path, &error))
}

/// Tries once. The lock lives as long as the open file does; no guard releases it.
fn try_lock(file: &File) -> Result<(), Errno> {
    #[expect(
        deprecated,
        reason = "the guard of the newer call unlocks when it is dropped"
    )]
    nix::fcntl::flock(file.as_raw_fd(), FlockArg::LockExclusiveNonblock)
}

/// Locks the pool for this process, waiting until `deadline` for a dead predecessor's last writes.
pub(crate) fn take(layout: &Layout, clock: &dyn Clock, deadline: Duration) -> Result<File, Error> {
    let path = layout.lock();
    let mut file = open(&path)?;
    loop {
        match try_lock(&file) {
            Ok(()) => break,
            Err(Errno::EWOULDBLOCK) if clock.now() < deadline => {
                let _interrupted = nix::poll::poll(&mut [], PollTimeout::from(LOCK_RETRY_MS));
            }
            Err(Errno::EWOULDBLOCK) => {
                let mut holder = String::new();
                // A holder without a readable id is still a holder.
                let _unreadable = file.read_to_string(&mut holder);
                let message = format!(
                    "pool `{}` is in use by process {}",
                    layout.directory().display(),
                    holder.trim()
                );
                return Err(Error::new(ErrorCode::InUse, message).with_hint(
                    "stop the node that serves it; if that has ended, its last call on the file system has not returned: \
                     try again when the storage answers",
                ));
            }
            Err(errno) => {
                return Err(failed("lock", &path, &errno.into()).with_hint(NO_LOCKS));
            }
        }
    }
    prove(&path)?;
    if let Err(error) = file.write_all_at(&record(), 0) {
        tracing::warn!(
            "{}: the process id of the pool's server could not be written: {error}",
            path.display()
        );
    }
    Ok(file)
}

/// The remedy for a file system without locks.
const NO_LOCKS: &str = "two nodes could serve the pool at once: mount the file system with locks (NFS without `nolock` or \
                        `local_lock`, FUSE with a program that implements flock), or keep the pool on another one";

/// Proves that the lock on the file at `path`, which this process has, excludes others: a second one must be refused.
fn prove(path: &Path) -> Result<(), Error> {
    let second = open(path)?;
    match try_lock(&second) {
        Err(Errno::EWOULDBLOCK) => Ok(()),
        Err(errno) => Err(failed("lock", path, &errno.into()).with_hint(NO_LOCKS)),
        Ok(()) => Err(Error::new(
            ErrorCode::Unsupported,
            format!(
                "`{}` can be locked twice: flock excludes nobody on this file system ({})",
                path.display(),
                crate::access::file_system_name(path)
            ),
        )
        .with_hint(NO_LOCKS)),
    }
}

/// This process's id and a line feed, padded with blanks.
fn record() -> [u8; LOCK_LEN] {
    let mut record = [b' '; LOCK_LEN];
    let id = format!("{}\n", std::process::id());
    record[..id.len()].copy_from_slice(id.as_bytes());
    record[LOCK_LEN - 1] = b'\n';
    record
}

/// Makes the lock file of a new pool with its full length: then no start needs space for it.
pub(crate) fn reserve(layout: &Layout) -> std::io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(layout.lock())?;
    if copies_on_write(layout) {
        overwrite_in_place(&file, &layout.lock());
    }
    let mut record = [b' '; LOCK_LEN];
    record[LOCK_LEN - 1] = b'\n';
    file.write_all_at(&record, 0)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use archipelago_runtime::SystemClock;

    use super::*;

    #[test]
    fn the_record_has_one_length_and_names_its_writer_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        for before in ["", "1234567890123\n", "7\n"] {
            std::fs::write(layout.lock(), before).unwrap();
            let _held = take(&layout, &SystemClock, Duration::ZERO).unwrap();
            let text = std::fs::read_to_string(layout.lock()).unwrap();
            assert_eq!(text.len(), LOCK_LEN);
            assert_eq!(text.trim(), std::process::id().to_string());
        }
    }

    #[test]
    fn a_lock_that_can_be_taken_twice_is_refused_by_the_name_of_the_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        // Nobody holds it: as if the lock that was taken did not exclude.
        let error = prove(&layout.lock()).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unsupported);
        assert!(error.message.contains("can be locked twice"), "{error}");
        assert!(error.hint.contains("two nodes"), "{}", error.hint);
        let _held = take(&layout, &SystemClock, Duration::ZERO).unwrap();
        prove(&layout.lock()).unwrap();
        let error = take(&layout, &SystemClock, Duration::ZERO).unwrap_err();
        assert_eq!(error.code, ErrorCode::InUse);
    }
}
