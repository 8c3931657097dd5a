//! A data thread with one server, and a way to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use archipelago_doubles::epoll_wakeups::EpollWakeups;
use archipelago_doubles::memory_volumes::MemoryVolumes;
use archipelago_endpoint::{Activity, Detach, Driver, Endpoint as _, ServedVolume};
use archipelago_nbd::config::HANDSHAKE_MAX;
use archipelago_nbd::{AttachConfig, Counters, Endpoint};
use archipelago_protocol::{Lineage, ObjectSize, OnFull};
use archipelago_runtime::Progress;

pub(crate) const SIZE: usize = 64 << 20;
pub(crate) const NAME: &str = "vm1";

pub(crate) struct Host {
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) volumes: MemoryVolumes,
    pub(crate) socket: String,
    thread: Option<JoinHandle<()>>,
    killed: Arc<AtomicBool>,
    _directory: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Host {
        Host::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut AttachConfig)) -> Host {
        let directory = tempfile::tempdir().unwrap();
        let volumes = MemoryVolumes::new(SIZE);
        let mut config = AttachConfig {
            volume: ServedVolume {
                lineage: Lineage(7),
                size: SIZE as u64,
                object_size: ObjectSize::DEFAULT,
                read_only: false,
                serial: String::new(),
                on_full: OnFull::default(),
            },
            socket: directory.path().join("n"),
            socket_mode: AttachConfig::SOCKET_MODE,
            export: NAME.to_owned(),
            handshake_max: HANDSHAKE_MAX,
        };
        change(&mut config);
        let socket = config.socket.to_str().unwrap().to_owned();
        let (endpoint, seed) = Endpoint::attach(config).unwrap();
        let served = volumes.clone();
        let killed = Arc::new(AtomicBool::new(false));
        let is_killed = Arc::clone(&killed);
        let thread = std::thread::spawn(move || {
            let wakeups = EpollWakeups::new().unwrap();
            let signals = wakeups.descriptor().unwrap();
            let mut server = seed.build(served, wakeups).unwrap();
            // Relaxed: nothing else is handed over with it.
            while !server.is_finished() && !is_killed.load(Ordering::Relaxed) {
                if server.poll() == Progress::Busy {
                    continue;
                }
                if server.prepare_sleep() != Activity::Ready {
                    // Short, because a test completes held requests without ringing.
                    let signals = signals.try_clone().unwrap();
                    EpollWakeups::wait(signals, 2u8.into()).unwrap();
                }
                server.wake();
            }
        });
        Host {
            endpoint: Some(endpoint),
            volumes,
            socket,
            thread: Some(thread),
            killed,
            _directory: directory,
        }
    }

    pub(crate) fn status(&self) -> Counters {
        self.endpoint.as_ref().unwrap().status()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut state = self.volumes.state();
        state.hold = false;
        while !state.held.is_empty() {
            state.release(0);
        }
        drop(state);
        if std::thread::panicking() {
            // A server that does wrong need not come to an end by itself.
            self.killed.store(true, Ordering::Relaxed);
        }
        if let Some(mut endpoint) = self.endpoint.take() {
            endpoint.detach(Detach::Force).unwrap();
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                std::thread::panicking() || ended.is_ok(),
                "the data thread ended well"
            );
        }
        let state = self.volumes.state();
        if !std::thread::panicking() {
            assert!(!state.open, "the volume is closed");
            assert_eq!(state.regions(), 0, "the memory is given back");
        }
    }
}

/// Waits for `condition`, at most ten seconds.
#[expect(clippy::disallowed_methods, reason = "a deadline of a test")]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}
