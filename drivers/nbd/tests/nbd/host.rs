//! A server on a data thread.

use archipelago_doubles::data_thread::DataThread;
pub(crate) use archipelago_doubles::data_thread::eventually;
use archipelago_doubles::memory_volumes::MemoryVolumes;
use archipelago_endpoint::ServedVolume;
use archipelago_nbd::config::HANDSHAKE_MAX;
use archipelago_nbd::{AttachConfig, Counters, Endpoint};
use archipelago_protocol::{Lineage, ObjectSize, OnFull};

pub(crate) const SIZE: usize = 64 << 20;
pub(crate) const NAME: &str = "vm1";

pub(crate) struct Host {
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) volumes: MemoryVolumes,
    pub(crate) socket: String,
    thread: DataThread,
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
        let thread = DataThread::start(seed, &volumes);
        Host {
            endpoint: Some(endpoint),
            volumes,
            socket,
            thread,
            _directory: directory,
        }
    }

    pub(crate) fn status(&self) -> Counters {
        self.endpoint.as_ref().unwrap().status()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let endpoint = self.endpoint.as_mut();
        self.thread
            .finish(endpoint.map(|endpoint| endpoint as &mut dyn archipelago_endpoint::Endpoint));
        let state = self.volumes.state();
        if !std::thread::panicking() {
            assert!(!state.open, "the volume is closed");
            assert_eq!(state.regions(), 0, "the memory is given back");
        }
    }
}
