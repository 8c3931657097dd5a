//! One daemon per node: it holds a lock on a file as long as it lives.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use archipelago_api::layout::{Layout, path_error};
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Clock, SystemClock};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Milliseconds between two tries of whoever waits for the lock.
const RETRY: u8 = 10;
/// Room for any process id.
const RECORD_LEN: usize = 15;

/// The lock of a node. Given back when dropped, or when the process dies.
#[derive(Debug)]
pub(crate) struct NodeLock {
    _file: Flock<std::fs::File>,
}

impl NodeLock {
    /// Takes the lock and leaves our process id in it.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] naming the process that holds it.
    pub(crate) fn take(layout: &Layout) -> Result<NodeLock, Error> {
        let path = layout.lock();
        let failed = |error: std::io::Error| path_error(&path, &error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                // A holder that has not written its id yet is named by nothing.
                file.read_to_string(&mut holder).map_err(failed)?;
                return Err(held(layout, holder.trim()));
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        // One length, in its place: a file that was there needs no room. Without its record the lock holds all the same.
        let id = format!("{:<RECORD_LEN$}\n", std::process::id());
        if let Err(error) = file.write_all_at(id.as_bytes(), 0) {
            tracing::warn!(
                "{}: the process id was not written: {error}",
                path.display()
            );
        }
        Ok(NodeLock { _file: file })
    }

    /// Waits until nobody holds the lock, for `timeout` at most.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if it is still held then, [`ErrorCode::Io`] if the file cannot be locked at all.
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
            // Waiting for nothing: a signal that ends it early does no harm.
            let _rested = nix::poll::poll(&mut [], RETRY);
        }
    }
}

fn held(layout: &Layout, holder: &str) -> Error {
    let who = if holder.is_empty() {
        "another process".to_owned()
    } else {
        format!("process {holder}")
    };
    Error::new(
        ErrorCode::InUse,
        format!(
            "{who} (archipelagod) serves this node: it holds {}",
            layout.lock().display()
        ),
    )
    .with_hint(format!(
        "`{} node status` shows it, `node stop` ends it",
        layout.command()
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_second_taker_hears_who_holds_it() {
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
        drop(first);
        NodeLock::wait_free(&layout, Duration::ZERO).unwrap();
        NodeLock::take(&layout).unwrap();
    }
}
