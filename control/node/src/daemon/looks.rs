//! Probes of files and devices that may hang: a file whose process does not answer, and a device on such a file.
//!
//! Invariants
//! - A probe has its own thread: neither the daemon's requests nor its end wait for it.
//! - At most one probe of a path runs at a time: later callers get its result.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Timeout of a probe.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The result of a probe: its value, or the kind of its error.
type Answer<T> = Result<T, io::ErrorKind>;
type Pending<T> = BTreeMap<PathBuf, watch::Receiver<Option<Answer<T>>>>;

/// The probes that have not returned.
#[derive(Debug)]
pub(crate) struct Looks<T = ()>(Arc<Mutex<Pending<T>>>);

impl<T> Default for Looks<T> {
    fn default() -> Self {
        Looks(Arc::default())
    }
}

impl<T> Clone for Looks<T> {
    fn clone(&self) -> Self {
        Looks(Arc::clone(&self.0))
    }
}

impl<T: Copy + Send + Sync + 'static> Looks<T> {
    fn pending(&self) -> MutexGuard<'_, Pending<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `call` on `path`; `None` if it has not returned within 5 s.
    pub(crate) async fn ask(
        &self,
        path: &Path,
        call: fn(&Path) -> io::Result<T>,
    ) -> Option<Answer<T>> {
        let mut answer = self.begin(path, call)?;
        let answered = answer.wait_for(Option::is_some);
        let answered = tokio::time::timeout(TIMEOUT, answered).await.ok()?.ok()?;
        *answered
    }

    /// The probe that is running, else a new one; `None` if its thread cannot be started.
    fn begin(
        &self,
        path: &Path,
        call: fn(&Path) -> io::Result<T>,
    ) -> Option<watch::Receiver<Option<Answer<T>>>> {
        let mut pending = self.pending();
        if let Some(answer) = pending.get(path) {
            return Some(answer.clone());
        }
        let (sender, answer) = watch::channel(None);
        let looks = self.clone();
        let asked = path.to_owned();
        let thread = std::thread::Builder::new().name("look".to_owned());
        let started = thread.spawn(move || {
            let answer = call(&asked).map_err(|error| error.kind());
            looks.pending().remove(&asked);
            sender.send_replace(Some(answer));
        });
        started.ok()?;
        pending.insert(path.to_owned(), answer.clone());
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns once somebody writes to the pipe.
    fn open(path: &Path) -> io::Result<()> {
        std::fs::File::open(path).map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_does_not_return_is_made_once_and_answers_whoever_asks_then() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let looks = Looks::default();
        for _again in 0..3 {
            assert_eq!(looks.ask(&pipe, open).await, None);
            assert_eq!(looks.pending().len(), 1);
        }
        let missing = dir.path().join("missing");
        let mut answer = looks.begin(&missing, open).unwrap();
        let found = *answer.wait_for(Option::is_some).await.unwrap();
        assert_eq!(found, Some(Err(io::ErrorKind::NotFound)));
        let mut answer = looks.begin(&pipe, open).unwrap();
        // Also for reading: so it waits for no reader, whose thread may not have come as far yet.
        let mut writer = std::fs::OpenOptions::new();
        let _writer = writer.read(true).write(true).open(&pipe).unwrap();
        assert_eq!(
            *answer.wait_for(Option::is_some).await.unwrap(),
            Some(Ok(()))
        );
        assert_eq!(looks.pending().len(), 0);
    }
}
