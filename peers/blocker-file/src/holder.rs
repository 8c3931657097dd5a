//! Who has a pool open, asked from outside: its lock knows, whatever became of sockets and process ids elsewhere.
//!
//! The lock is held by the open file, which outlives its process until the kernel has freed the process's ring: a lock that
//! can be taken says that nothing of the pool is open any more.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::layout::Layout;

/// Longest content of a lock file that is looked at: a process id and what may follow.
const CONTENT_LEN_MAX: u64 = 4096;

/// Whoever has a pool open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The process that opened it, which may have ended since; `None`: it has not said yet.
    pub pid: Option<u32>,
}

/// Who has the pool in `directory` open; `None`: nobody. Blocks as long as the file system does.
///
/// # Errors
/// What the file system says. A pool without a lock file has never been open.
pub fn holder(directory: &Path) -> io::Result<Option<Holder>> {
    let file = match File::open(Layout::new(directory).lock()) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Shared: two who look are not in each other's way, and whoever opens the pool meanwhile tries again.
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
