//! A device on a data thread.

use archipelago_doubles::data_thread::DataThread;
pub(crate) use archipelago_doubles::data_thread::eventually;
use archipelago_doubles::memory_volumes::MemoryVolumes;
use archipelago_endpoint::ServedVolume;
use archipelago_protocol::{Lineage, ObjectSize, OnFull};
use archipelago_vhost_user::{AttachConfig, Endpoint};

pub(crate) const SIZE: usize = 16 << 20;

pub(crate) struct Host {
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) volumes: MemoryVolumes,
    pub(crate) socket: String,
    thread: DataThread,
    _directory: Option<tempfile::TempDir>,
}

impl Host {
    pub(crate) fn new() -> Host {
        Host::with(MemoryVolumes::new(SIZE), |_| {})
    }

    pub(crate) fn with(volumes: MemoryVolumes, change: impl FnOnce(&mut AttachConfig)) -> Host {
        let directory = tempfile::tempdir().unwrap();
        let mut config = AttachConfig {
            volume: ServedVolume {
                lineage: Lineage(7),
                size: SIZE as u64,
                object_size: ObjectSize::DEFAULT,
                read_only: false,
                serial: "serial-of-this-volume-cut".to_owned(),
                on_full: OnFull::default(),
            },
            socket: directory.path().join("v"),
            socket_mode: AttachConfig::SOCKET_MODE,
            queues: 2,
            start_interval: AttachConfig::START_INTERVAL,
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
            _directory: Some(directory),
        }
    }

    /// Dies with what it holds, as a process does: nothing is shown after that, and nobody drains.
    pub(crate) fn die(mut self) {
        self.thread.kill();
    }

    pub(crate) fn status(&self) -> archipelago_vhost_user::Counters {
        self.endpoint.as_ref().unwrap().status()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let endpoint = self.endpoint.as_mut();
        self.thread
            .finish(endpoint.map(|endpoint| endpoint as &mut dyn archipelago_endpoint::Endpoint));
    }
}
