//! The heartbeat of a pool's owner: it rewrites its record in place, for observers on other hosts.
//!
//! Invariants
//! - Each beat reads before it writes: an owner that finds a later incarnation has lost the pool, reports that and stops its heartbeat.
//! - A beat that fails or does not return ends nothing: an owner does not lose the pool by its silence.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Clock, SystemClock};

use super::name::Name;
use super::record::Record;
use super::records::{describe, latest};
use crate::layout::Layout;

/// Time between two beats: a small synchronous write each.
pub(crate) const PERIOD: Duration = Duration::from_secs(2);

/// State that the thread and its owner share.
#[derive(Debug, Default)]
struct Pulse {
    ended: bool,
    /// Monotonic time of the last beat that succeeded.
    last: Duration,
    /// Why the last beat failed.
    failure: Option<String>,
}

#[derive(Debug)]
struct Shared {
    pulse: Mutex<Pulse>,
    called: Condvar,
}

impl Shared {
    fn pulse(&self) -> MutexGuard<'_, Pulse> {
        // No code panics while the lock is held.
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that beats until it is dropped.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Starts the heartbeat of the owner in `record`, in the file called `name`; `lost` is called when another incarnation owns the pool.
    pub(crate) fn start(
        layout: &Layout,
        name: Name,
        record: Record,
        lost: fn(&Error),
    ) -> io::Result<Heartbeat> {
        let shared = Arc::new(Shared {
            pulse: Mutex::new(Pulse {
                last: SystemClock.now(),
                ..Pulse::default()
            }),
            called: Condvar::new(),
        });
        let beating = Beating {
            path: layout.owner(name),
            layout: layout.clone(),
            name,
            record,
        };
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("pool-heartbeat".to_owned())
            .spawn(move || run(&of_thread, beating, lost))?;
        Ok(Heartbeat {
            shared,
            thread: Some(thread),
        })
    }

    /// The time of the last success, as a text.
    pub(crate) fn text(&self, now: Duration) -> String {
        let pulse = self.shared.pulse();
        let ago = now.saturating_sub(pulse.last).as_secs();
        match &pulse.failure {
            None => format!("last heartbeat {ago} s ago"),
            Some(failure) => format!("last heartbeat {ago} s ago: {failure}"),
        }
    }
}

impl Drop for Heartbeat {
    /// Waits for a beat that is being written.
    fn drop(&mut self) {
        self.shared.pulse().ended = true;
        self.shared.called.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread has no cause to panic, and a panic would leave nothing undone.
            let _ended = thread.join();
        }
    }
}

fn run(shared: &Shared, mut beating: Beating, lost: fn(&Error)) {
    loop {
        let pulse = shared.pulse();
        let (pulse, _late) = shared
            .called
            .wait_timeout_while(pulse, PERIOD, |pulse| !pulse.ended)
            .unwrap_or_else(PoisonError::into_inner);
        if pulse.ended {
            return;
        }
        drop(pulse);
        let beat = beating.beat();
        let mut pulse = shared.pulse();
        match beat {
            Ok(None) => {
                pulse.last = SystemClock.now();
                if pulse.failure.take().is_some() {
                    tracing::info!("{}: heartbeats are written again", beating.path.display());
                }
            }
            Ok(Some(error)) if pulse.ended => {
                return tracing::warn!("{error}; this node was about to release it");
            }
            Ok(Some(error)) => {
                drop(pulse);
                return lost(&error);
            }
            Err(error) => {
                if pulse.failure.is_none() {
                    tracing::warn!(
                        "{}: the heartbeat could not be written: {error}; other hosts cannot see that this node owns the pool",
                        beating.path.display()
                    );
                }
                pulse.failure = Some(error.to_string());
            }
        }
    }
}

struct Beating {
    layout: Layout,
    name: Name,
    path: PathBuf,
    record: Record,
}

impl Beating {
    /// One beat. Returns the error to report if this owner has lost the pool.
    fn beat(&mut self) -> io::Result<Option<Error>> {
        // Opened by its name each time: a successor renames the file.
        let file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return match latest(&self.layout)? {
                    Some(other) if other.incarnation > self.name.incarnation => {
                        Ok(Some(self.lost(other)))
                    }
                    Some(_) | None => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        // A name in this host's cache may lead to the file of the successor.
        let found = Record::read(&file)?;
        if found.is_some_and(|found| found.incarnation > self.name.incarnation) {
            let other = latest(&self.layout)?.unwrap_or(self.name);
            return Ok(Some(self.lost(other)));
        }
        self.record.heartbeats += 1;
        self.record.heartbeat = SystemClock.wall_seconds();
        write_visibly(&self.record, &file)?;
        Ok(None)
    }

    fn lost(&self, other: Name) -> Error {
        lost(&self.layout, other)
    }
}

/// Writes `record`; if there is no space for that, changes the file's time: other hosts look for any change.
fn write_visibly(record: &Record, file: &File) -> io::Result<()> {
    record
        .write(file)
        .and_then(|()| file.sync_data())
        .or_else(|error| {
            let now = Duration::from_secs(record.heartbeat);
            let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + now);
            file.set_times(times).map_err(|_second| error)
        })
}

/// The error of an incarnation that served the pool until `other` took it over.
pub(crate) fn lost(layout: &Layout, other: Name) -> Error {
    let pool = layout.directory().display();
    let message = format!(
        "pool `{pool}` has been taken over by {}: this node may not write to it any more and ends",
        describe(layout, other)
    );
    Error::new(ErrorCode::Stale, message)
        .with_hint("stop the guests that this node served: their disks may have changed under them")
}
