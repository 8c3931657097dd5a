//! A data thread with one driver, as a host polls it, and a way to wait for what it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use archipelago_endpoint::{Activity, Detach, Endpoint, Seed};
use archipelago_runtime::Progress;

use crate::epoll_wakeups::EpollWakeups;
use crate::memory_volumes::MemoryVolumes;

/// How long [`eventually`] waits.
const DEADLINE: Duration = Duration::from_secs(10);

/// A thread that polls a driver until the driver has finished, or the thread is killed.
#[derive(Debug)]
pub struct DataThread {
    volumes: MemoryVolumes,
    thread: Option<JoinHandle<()>>,
    killed: Arc<AtomicBool>,
}

impl DataThread {
    /// Makes the driver of `seed`, which serves a volume of `volumes`, on a thread of its own.
    ///
    /// # Panics
    /// The thread does, if there can be no driver.
    pub fn start<S>(seed: S, volumes: &MemoryVolumes) -> DataThread
    where
        S: Seed<MemoryVolumes, EpollWakeups> + 'static,
    {
        let killed = Arc::new(AtomicBool::new(false));
        let (is_killed, served) = (Arc::clone(&killed), volumes.clone());
        let thread = std::thread::spawn(move || {
            let wakeups = EpollWakeups::new().expect("an epoll descriptor");
            let signals = wakeups.descriptor().expect("a descriptor");
            let mut driver = Box::new(seed).build(served, wakeups).expect("a driver");
            // Relaxed: nothing else is handed over with it.
            while !driver.is_finished() && !is_killed.load(Ordering::Relaxed) {
                if driver.poll() == Progress::Busy {
                    continue;
                }
                if driver.prepare_sleep() != Activity::Ready {
                    // Short, because a test completes held requests without ringing.
                    let signals = signals.try_clone().expect("a descriptor");
                    EpollWakeups::wait(signals, 2u8.into()).expect("a wait");
                }
                driver.wake();
            }
        });
        DataThread {
            volumes: volumes.clone(),
            thread: Some(thread),
            killed,
        }
    }

    /// Ends the thread where it is, as the death of its process would: nothing is drained.
    ///
    /// # Panics
    /// If the driver has panicked.
    pub fn kill(&mut self) {
        self.killed.store(true, Ordering::Relaxed);
        self.join();
    }

    /// Releases the held requests, detaches `endpoint`, the other half of the driver, and waits for the thread's end. A test that
    /// panics does not wait for a driver that goes wrong.
    ///
    /// # Panics
    /// If the driver has panicked, or cannot be detached.
    pub fn finish(&mut self, endpoint: Option<&mut dyn Endpoint>) {
        {
            let mut state = self.volumes.state();
            state.hold = false;
            while !state.held.is_empty() {
                state.release(0);
            }
        }
        if std::thread::panicking() {
            self.killed.store(true, Ordering::Relaxed);
        }
        if let Some(endpoint) = endpoint {
            endpoint.detach(Detach::Force).expect("detached");
        }
        self.join();
    }

    fn join(&mut self) {
        let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
        assert!(
            std::thread::panicking() || ended.is_ok(),
            "the data thread ended well"
        );
    }
}

/// Waits for `condition`, at most ten seconds.
///
/// # Panics
/// If it does not become true; `what` says what was waited for.
#[expect(clippy::disallowed_methods, reason = "a deadline of a test")]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}
