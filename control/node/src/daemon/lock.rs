//! One daemon per node: a daemon holds a lock on a file while it runs.
//!
//! The file contains the daemon's process id, and a second word once the daemon is ending. Another process that wants the lock waits for a
//! daemon that is ending, or that was killed and has not ended yet.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use archipelago_api::layout::{Layout, path_error};
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Clock, SystemClock};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Milliseconds between two attempts to get the lock.
const RETRY: u8 = 10;
/// Timeout for a daemon that is ending.
const ENDING_TIMEOUT: Duration = Duration::from_secs(10);
/// For so long, the daemon must look alive: just after a kill, its process does not show yet that it is ending.
const ALIVE_FOR: Duration = Duration::from_millis(300);
/// Room for any process id and [`ENDING`].
const RECORD_LEN: usize = 15;
/// The second word of the record of a daemon that is ending.
const ENDING: &str = "ending";

/// The lock of a node. Released when it is dropped, or when the process dies.
#[derive(Debug)]
pub(crate) struct NodeLock {
    file: Flock<std::fs::File>,
}

impl NodeLock {
    /// Takes the lock and records this process's id. Waits for a daemon that is ending.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] with the process that holds the lock.
    pub(crate) fn take(layout: &Layout) -> Result<NodeLock, Error> {
        let path = layout.lock();
        let failed = |error: std::io::Error| path_error(&path, &error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let began = SystemClock.now();
        let mut alive_since = None;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => break NodeLock { file: locked },
                Err((held, Errno::EWOULDBLOCK)) => file = held,
                Err((_, errno)) => return Err(failed(errno.into())),
            }
            let holder = Holder::read(&file).map_err(failed)?;
            let now = SystemClock.now();
            let given_up = if holder.is_ending() {
                alive_since = None;
                now >= began + ENDING_TIMEOUT
            } else {
                now >= *alive_since.get_or_insert(now) + ALIVE_FOR
            };
            if given_up {
                return Err(holder.in_use(layout));
            }
            rest();
        };
        lock.write_record(&layout.lock(), "");
        Ok(lock)
    }

    /// Records that the lock will be released soon, for processes that wait for it.
    pub(crate) fn note_ending(&self, layout: &Layout) {
        self.write_record(&layout.lock(), ENDING);
    }

    fn write_record(&self, path: &Path, state: &str) {
        let text = format!("{} {state}", std::process::id());
        // The record has a fixed length and is overwritten in place: so an existing file needs no more room. The lock also works without
        // the record.
        let record = format!("{text:<RECORD_LEN$}\n");
        if let Err(error) = self.file.write_all_at(record.as_bytes(), 0) {
            tracing::warn!("{}: its record was not written: {error}", path.display());
        }
    }

    /// Waits until the lock is free, at most for `timeout`.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if it is not free by then, [`ErrorCode::Io`] if the file cannot be locked at all.
    pub(crate) fn wait_free(layout: &Layout, timeout: Duration) -> Result<(), Error> {
        let path = layout.lock();
        let failed = |error: std::io::Error| path_error(&path, &error);
        let mut file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let deadline = SystemClock.now() + timeout;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(_free) => return Ok(()),
                Err((held, Errno::EWOULDBLOCK)) if SystemClock.now() < deadline => file = held,
                Err((_, Errno::EWOULDBLOCK)) => {
                    let message = format!(
                        "the node daemon has not ended after {} s",
                        timeout.as_secs()
                    );
                    return Err(Error::new(ErrorCode::Unavailable, message)
                        .with_hint(format!("its log: {}", layout.log().display())));
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
            rest();
        }
    }
}

fn rest() {
    // Only a pause: a signal that ends it early does no harm.
    let _rested = nix::poll::poll(&mut [], RETRY);
}

/// The holder of the lock, according to the record in the file.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    /// `None`: the holder has not written its id yet.
    pid: Option<u32>,
    says_ending: bool,
}

impl Holder {
    fn read(file: &File) -> std::io::Result<Holder> {
        let mut record = [0; RECORD_LEN];
        let len = file.read_at(&mut record, 0)?;
        Ok(Holder::parse(&String::from_utf8_lossy(&record[..len])))
    }

    fn parse(record: &str) -> Holder {
        let mut words = record.split_whitespace();
        Holder {
            pid: words.next().and_then(|word| word.parse().ok()),
            says_ending: words.next() == Some(ENDING),
        }
    }

    /// Whether the lock will be free soon.
    fn is_ending(&self) -> bool {
        self.says_ending || self.pid.is_some_and(is_dying)
    }

    fn in_use(&self, layout: &Layout) -> Error {
        let lock = layout.lock();
        let who = match self.pid {
            None => "another process".to_owned(),
            Some(pid) => format!("process {pid}"),
        };
        let what = if self.is_ending() {
            "has not ended yet"
        } else {
            "serves this node"
        };
        let message = format!("{who} (archipelagod) {what}: it holds {}", lock.display());
        Error::new(ErrorCode::InUse, message).with_hint(format!(
            "`{} node status` shows it, `node stop` ends it",
            layout.command()
        ))
    }
}

/// Whether the process `pid` is ending or has ended: a process that ends first frees its memory, and with it its command line.
fn is_dying(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_hears_who_holds_it_and_waits_for_one_that_is_ending() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(Path::new(dir.path()))).unwrap();
        std::fs::create_dir(layout.run()).unwrap();
        let first = NodeLock::take(&layout).unwrap();
        let error = NodeLock::take(&layout).unwrap_err();
        assert_eq!(error.code, ErrorCode::InUse);
        assert!(
            error.message.contains(&std::process::id().to_string()),
            "{}",
            error.message
        );
        first.note_ending(&layout);
        let waiting = std::thread::spawn({
            let layout = layout.clone();
            move || NodeLock::take(&layout).map(drop)
        });
        let rested = nix::poll::poll(&mut [], u8::MAX);
        assert!(rested.is_ok() && !waiting.is_finished(), "it waits");
        drop(first);
        waiting.join().unwrap().unwrap();
        NodeLock::wait_free(&layout, Duration::ZERO).unwrap();
        NodeLock::take(&layout).unwrap();
    }

    #[test]
    fn a_record_names_its_writer_and_says_whether_it_is_ending() {
        let holder = |pid, says_ending| Holder { pid, says_ending };
        for (record, expected) in [
            ("", holder(None, false)),
            ("12             \n", holder(Some(12), false)),
            ("4194304 ending \n", holder(Some(4_194_304), true)),
            ("nobody", holder(None, false)),
        ] {
            assert_eq!(Holder::parse(record), expected, "{record:?}");
        }
        assert!(!is_dying(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while !is_dying(child.id()) {
            rest();
        }
        child.wait().unwrap();
    }
}
