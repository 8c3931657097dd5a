//! A driver beside a kernel and a volume in memory, polled by the test.

use std::thread::JoinHandle;

use archipelago_doubles::memory_volumes::MemoryVolumes;
use archipelago_endpoint::{Detach, Driver, Endpoint as _, Seed, ServedVolume};
use archipelago_protocol::{Lineage, ObjectSize, OnFull};
use archipelago_runtime::Progress;
use archipelago_ublk::{AttachConfig, Counters, Endpoint};

use crate::kernel::{Answered, Kernel, KernelRequest};

pub(crate) const SIZE: usize = 4 << 20;
/// Polls after which something that was to happen has not.
const POLLS_MAX: usize = 1_000_000;

pub(crate) struct Host {
    pub(crate) kernel: Kernel,
    pub(crate) volumes: MemoryVolumes,
    endpoint: Option<Endpoint>,
    driver: Box<dyn Driver>,
}

impl Host {
    pub(crate) fn new() -> Host {
        Host::serve(Kernel::default(), MemoryVolumes::new(SIZE))
    }

    /// A server of `kernel`'s device.
    pub(crate) fn serve(kernel: Kernel, volumes: MemoryVolumes) -> Host {
        let (endpoint, seed) = Endpoint::attach(AttachConfig {
            volume: ServedVolume {
                lineage: Lineage(7),
                size: SIZE as u64,
                object_size: ObjectSize::DEFAULT,
                read_only: false,
                serial: String::new(),
                on_full: OnFull::default(),
            },
            device: 0,
            // The kernel in memory looks at none.
            queue: std::fs::File::open("/dev/null").unwrap().into(),
        })
        .unwrap();
        let driver = Box::new(seed)
            .build(volumes.clone(), kernel.clone())
            .unwrap();
        Host {
            kernel,
            volumes,
            endpoint: Some(endpoint),
            driver,
        }
    }

    /// Polls until nothing is to be done.
    pub(crate) fn settle(&mut self) {
        for _ in 0..POLLS_MAX {
            if self.driver.poll() == Progress::Idle {
                return;
            }
        }
        panic!("the driver never rests");
    }

    /// Has `request` served, and returns what it was answered.
    pub(crate) fn ask(&mut self, request: KernelRequest) -> Answered {
        self.kernel.device.borrow_mut().ask(request.clone());
        self.settle();
        let answered = self.kernel.device.borrow().answered.last().cloned();
        let answered = answered.expect("an answer");
        assert_eq!(answered.request, request);
        answered
    }

    /// Begins to detach, on a thread of its own, and lets the driver notice.
    pub(crate) fn detach(&mut self, how: Detach) -> JoinHandle<()> {
        let mut endpoint = self.endpoint.take().expect("detached once");
        let (begun, noticed) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            begun.send(()).unwrap();
            endpoint.detach(how).unwrap();
        });
        noticed.recv().unwrap();
        thread
    }

    /// Polls until the detach of `thread` has come through.
    pub(crate) fn finish(mut self, thread: JoinHandle<()>) {
        while !self.driver.is_finished() {
            self.driver.poll();
            std::thread::yield_now();
        }
        thread.join().unwrap();
        let state = self.volumes.state();
        assert!(!state.open, "the volume is closed");
        assert_eq!(state.regions(), 0, "the buffers are given back");
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.driver.is_finished()
    }

    pub(crate) fn problem(&self) -> Option<String> {
        self.endpoint
            .as_ref()
            .and_then(|endpoint| endpoint.problem())
    }

    pub(crate) fn status(&self) -> Counters {
        self.endpoint.as_ref().unwrap().status()
    }
}
