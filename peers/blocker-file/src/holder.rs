//! Which process has a pool open, found by the pool's lock: sockets and process ids may be lost or outdated.
//!
//! The lock is held by the open file, which outlives its process until the kernel has freed the process's ring: if the lock can be taken,
//! nothing of the pool is open any more.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::layout::Layout;

/// Longest content of a lock file that is read: a process id and what may follow.
const CONTENT_LEN_MAX: u64 = 4096;

/// The holder of a pool's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The process that opened the pool, which may have ended since; `None`: it has not written its id yet.
    pub pid: Option<u32>,
}

/// The holder of the lock of the pool in `directory`; `None` if nobody holds it. Blocks as long as the file system does.
///
/// # Errors
/// The error of the file system. A pool without a lock file has never been open.
pub fn holder(directory: &Path) -> io::Result<Option<Holder>> {
    let file = match File::open(Layout::new(directory).lock()) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Shared: two readers do not conflict, and a process that opens the pool meanwhile tries again.
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_free) => Ok(None),
        Err((file, Errno::EWOULDBLOCK)) => {
            let mut content = String::new();
            file.take(CONTENT_LEN_MAX).read_to_string(&mut content)?;
            let pid = content
                .lines()
                .next()
                .and_then(|line| line.trim().parse().ok());
            Ok(Some(Holder { pid }))
        }
        Err((_, errno)) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_says_who_has_the_pool_open() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()).unwrap(), None, "never opened");
        let path = Layout::new(dir.path()).lock();
        for (content, pid) in [("77\n", Some(77)), ("", None), ("78\nmore\n", Some(78))] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(holder(dir.path()).unwrap(), None, "{content:?}");
            let file = File::open(&path).unwrap();
            let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
            assert_eq!(holder(dir.path()).unwrap(), Some(Holder { pid }));
            drop(held);
            assert_eq!(holder(dir.path()).unwrap(), None, "{content:?}");
        }
    }
}
