//! What the daemon observes of its pool from outside: the room in its file system, and which process has it open.
//!
//! Invariants
//! - The file system is called on a thread that lives as long as the watch: a call that does not return blocks only that thread, and a
//!   limit of threads that is reached later does no harm. A panic ends only one measurement.
//! - Each level that begins or ends is one line in the log.

use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use archipelago_api::pools::{PoolSpace, PoolStatus, SpaceLevel};
use archipelago_api::types::ProblemView;
use archipelago_blocker_file::{Holder, Room, holder, room};
use archipelago_protocol::Error;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::gauge::{Change, Described, Gauge, WHAT_TO_DO};

/// The kind of pool that is in a file system.
const FILE: &str = "file";
/// A file system that does not answer within this time is reported as not answering.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The result of one measurement.
#[derive(Debug)]
struct Found {
    room: io::Result<Room>,
    holder: io::Result<Option<Holder>>,
}

impl Found {
    fn of(directory: &Path) -> Found {
        Found {
            room: room(directory),
            holder: holder(directory),
        }
    }
}

/// The result for callers.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    pub(crate) space: Option<PoolSpace>,
    pub(crate) holder: Option<Holder>,
}

/// Measurements of one pool.
#[derive(Debug)]
pub(crate) struct PoolWatch {
    directory: PathBuf,
    answer_timeout: Duration,
    gauge: Mutex<Gauge>,
    /// Sends requests for measurements to the thread, each with the sender for its answer.
    looks: mpsc::Sender<oneshot::Sender<Found>>,
    /// The measurement that has not been answered yet.
    under_way: tokio::sync::Mutex<Option<oneshot::Receiver<Found>>>,
}

impl PoolWatch {
    /// A watch of the pool in `directory`, and its thread.
    ///
    /// # Errors
    /// The error of starting the thread.
    pub(crate) fn new(directory: &Path) -> Result<PoolWatch, Error> {
        let watched = directory.to_owned();
        PoolWatch::with_look(directory, move || Found::of(&watched))
    }

    /// The same, with `look` in place of a measurement of the file system.
    fn with_look(
        directory: &Path,
        look: impl Fn() -> Found + Send + UnwindSafe + RefUnwindSafe + 'static,
    ) -> Result<PoolWatch, Error> {
        let (looks, asked) = mpsc::channel::<oneshot::Sender<Found>>();
        let thread = std::thread::Builder::new().name("pool-watch".to_owned());
        thread
            .spawn(move || {
                for answer in asked {
                    // A measurement that panics has no answer; the next one is carried out normally.
                    if let Ok(found) = std::panic::catch_unwind(&look) {
                        // The send fails only if the receiver has timed out, or the daemon has ended.
                        let _late = answer.send(found);
                    }
                }
            })
            .map_err(|error| Error::of_thread("the watch of the pool", &error))?;
        Ok(PoolWatch {
            directory: directory.to_owned(),
            answer_timeout: ANSWER_TIMEOUT,
            gauge: Mutex::default(),
            looks,
            under_way: tokio::sync::Mutex::default(),
        })
    }

    /// The file system's answer; if an earlier measurement has not returned yet, its answer.
    async fn answer(&self) -> Option<Found> {
        let mut under_way = self.under_way.lock().await;
        let answer = under_way.get_or_insert_with(|| {
            let (sender, answer) = oneshot::channel();
            // The thread ends only after this side.
            let _sent = self.looks.send(sender);
            answer
        });
        let found = answer.await;
        *under_way = None;
        found.ok()
    }

    /// Measures the pool `name`; logs levels that have begun or ended.
    pub(crate) async fn look(&self, name: &impl std::fmt::Display) -> Sight {
        let Ok(Some(found)) = timeout(self.answer_timeout, self.answer()).await else {
            return Sight::default();
        };
        let at = self.directory.display();
        let space = match found.room {
            Ok(room) => Some(self.measure(name, &room)),
            Err(error) => {
                tracing::debug!("the room of {at}: {error}");
                None
            }
        };
        let holder = found.holder.unwrap_or_else(|error| {
            tracing::debug!("the lock of {at}: {error}");
            None
        });
        Sight { space, holder }
    }

    fn measure(&self, name: &impl std::fmt::Display, room: &Room) -> PoolSpace {
        let (space, change) = {
            // A panic under the lock has left the old or the new level.
            let mut gauge = self.gauge.lock().unwrap_or_else(PoisonError::into_inner);
            gauge.look(room)
        };
        let at = self.directory.display();
        let described = Described(&space);
        match (change, space.level) {
            (None, _) => {}
            (Some(Change::Rose), SpaceLevel::Full) => {
                tracing::error!("pool `{name}` ({at}): {described}; {WHAT_TO_DO}");
            }
            (Some(Change::Rose), _) => {
                tracing::warn!("pool `{name}` ({at}): {described}; {WHAT_TO_DO}");
            }
            (Some(Change::Fell), level) => {
                tracing::info!("pool `{name}` ({at}): {described}, the level falls to {level}");
            }
        }
        space
    }
}

/// The problem of a pool that fills up or does not answer.
pub(crate) fn problem(pool: &PoolStatus) -> Option<ProblemView> {
    let at = pool.directory.display();
    if let Some(why) = &pool.unserved {
        return Some(ProblemView {
            volume: None,
            pool: Some(pool.name.clone()),
            what: format!("{at}: not served, and tried again: {why}"),
        });
    }
    let what = match &pool.space {
        Some(space) if space.level == SpaceLevel::Ok => return None,
        Some(space) => format!("{at}: {}; {WHAT_TO_DO}", Described(space)),
        // The pool is not in a file system.
        None if pool.kind != FILE => return None,
        None => format!(
            "{at}: its file system did not report its free space within {} s",
            ANSWER_TIMEOUT.as_secs()
        ),
    };
    Some(ProblemView {
        volume: None,
        pool: Some(pool.name.clone()),
        what,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_file_system_that_does_not_answer_is_asked_once_and_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = PoolWatch::new(dir.path()).unwrap();
        watch.answer_timeout = Duration::from_millis(20);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (sender, hangs) = oneshot::channel();
            *watch.under_way.lock().await = Some(hangs);
            for _ in 0..3 {
                let sight = watch.look(&"p").await;
                assert!(sight.space.is_none());
                assert!(watch.under_way.lock().await.is_some(), "asked again");
            }
            watch.answer_timeout = ANSWER_TIMEOUT;
            sender.send(Found::of(dir.path())).unwrap();
            assert!(watch.look(&"p").await.space.is_some());
        });
    }
    #[test]
    fn after_a_look_that_panicked_the_next_one_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let watched = dir.path().to_owned();
        let looks = AtomicUsize::new(0);
        let look = move || {
            let number = looks.fetch_add(1, Ordering::Relaxed);
            assert!(number > 0, "the first look fails");
            Found::of(&watched)
        };
        let watch = PoolWatch::with_look(dir.path(), look).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            assert!(watch.look(&"p").await.space.is_none());
            assert!(watch.look(&"p").await.space.is_some());
        });
    }
}
