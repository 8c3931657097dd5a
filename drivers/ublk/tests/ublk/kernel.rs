//! A kernel in memory: hands out requests, takes answers, and keeps what was not answered for the next server.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use archipelago_endpoint::{Wakeups, WatchId};
use archipelago_runtime::ublk::abi::{ABORTED, Descriptor};
use archipelago_ublk::layout::DEPTH;
use archipelago_ublk::{Completed, KernelQueue, KernelQueues};
use xseg::Span;

/// A request of somebody on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelRequest {
    pub(crate) op_flags: u32,
    pub(crate) start_sector: u64,
    pub(crate) sectors: u32,
    pub(crate) data: Vec<u8>,
}

impl KernelRequest {
    pub(crate) fn new(op_flags: u32, start_sector: u64, sectors: u32) -> KernelRequest {
        KernelRequest {
            op_flags,
            start_sector,
            sectors,
            data: Vec::new(),
        }
    }

    pub(crate) fn with(op_flags: u32, start_sector: u64, data: &[u8]) -> KernelRequest {
        KernelRequest {
            data: data.to_vec(),
            ..KernelRequest::new(
                op_flags,
                start_sector,
                u32::try_from(data.len() / 512).unwrap(),
            )
        }
    }
}

/// A request that was answered: with what, and what its buffer held then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) request: KernelRequest,
    pub(crate) result: i32,
    pub(crate) buffer: Vec<u8>,
}

#[derive(Debug, Default)]
enum Tag {
    /// No command.
    #[default]
    Idle,
    /// A command waits for a request.
    Fetching(Span),
    /// A request is with the server.
    Served(KernelRequest),
}

#[derive(Debug, Default)]
pub(crate) struct Device {
    tags: Vec<Tag>,
    descriptors: Vec<Descriptor>,
    waiting: VecDeque<KernelRequest>,
    completed: VecDeque<Completed>,
    pub(crate) answered: Vec<Answered>,
    stopped: bool,
}

impl Device {
    fn fetch(&mut self, tag: u16, buffer: &Span) {
        let tag = usize::from(tag);
        assert!(
            !matches!(self.tags[tag], Tag::Fetching(_)),
            "one command for a tag"
        );
        self.tags[tag] = Tag::Fetching(buffer.clone());
        if self.stopped {
            self.stop();
        }
        self.dispatch();
    }

    fn commit(&mut self, tag: u16, result: i32, buffer: &Span) {
        let place = usize::from(tag);
        let Tag::Served(request) = std::mem::take(&mut self.tags[place]) else {
            panic!("a request is answered once, and only by who has it");
        };
        let mut bytes = vec![0; request.sectors as usize * 512];
        if bytes.len() <= buffer.len() {
            buffer.part(0, bytes.len()).unwrap().read(&mut bytes);
        }
        self.answered.push(Answered {
            request,
            result,
            buffer: bytes,
        });
        self.fetch(tag, buffer);
    }

    /// Somebody on this host asks for something.
    pub(crate) fn ask(&mut self, request: KernelRequest) {
        self.waiting.push_back(request);
        self.dispatch();
    }

    fn dispatch(&mut self) {
        while !self.waiting.is_empty() {
            let fetching = |tag: &Tag| matches!(tag, Tag::Fetching(_));
            let Some(place) = self.tags.iter().position(fetching) else {
                return;
            };
            let (Some(request), Tag::Fetching(buffer)) = (
                self.waiting.pop_front(),
                std::mem::take(&mut self.tags[place]),
            ) else {
                return;
            };
            buffer
                .part(0, request.data.len())
                .unwrap()
                .write(&request.data);
            self.descriptors[place] = Descriptor {
                op_flags: request.op_flags,
                sectors: request.sectors,
                start_sector: request.start_sector,
                address: 0,
            };
            self.tags[place] = Tag::Served(request);
            let tag = u16::try_from(place).unwrap();
            self.completed.push_back(Completed { tag, result: 0 });
        }
    }

    /// Requests that a server has not answered.
    pub(crate) fn unanswered(&self) -> Vec<KernelRequest> {
        let served = self.tags.iter().filter_map(|tag| match tag {
            Tag::Served(request) => Some(request.clone()),
            _ => None,
        });
        served.chain(self.waiting.iter().cloned()).collect()
    }

    /// The server is dead: the next one gets what it has not answered.
    pub(crate) fn recover(&mut self) {
        let left = self.unanswered();
        *self = Device {
            answered: std::mem::take(&mut self.answered),
            waiting: left.into(),
            ..Device::default()
        };
    }

    /// The device is stopped.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        for (tag, state) in (0..).zip(&mut self.tags) {
            if matches!(state, Tag::Fetching(_)) {
                *state = Tag::Idle;
                let result = ABORTED;
                self.completed.push_back(Completed { tag, result });
            }
        }
    }
}

/// The kernel and the event loop of one server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kernel {
    pub(crate) device: Rc<RefCell<Device>>,
}

impl KernelQueue for Kernel {
    fn fetch(&mut self, tag: u16, buffer: &Span) {
        self.device.borrow_mut().fetch(tag, buffer);
    }

    fn commit_and_fetch(&mut self, tag: u16, result: i32, buffer: &Span) {
        self.device.borrow_mut().commit(tag, result, buffer);
    }

    fn next_completed(&mut self) -> Option<Completed> {
        self.device.borrow_mut().completed.pop_front()
    }

    fn descriptor(&self, tag: u16) -> Option<Descriptor> {
        let device = self.device.borrow();
        device.descriptors.get(usize::from(tag)).copied()
    }
}

impl KernelQueues for Kernel {
    type Queue = Kernel;

    fn kernel_queue(&mut self, _fd: OwnedFd, depth: u16, _len: u32) -> std::io::Result<Kernel> {
        assert_eq!(depth, DEPTH);
        let mut device = self.device.borrow_mut();
        device.tags.resize_with(usize::from(depth), Tag::default);
        device
            .descriptors
            .resize_with(usize::from(depth), Descriptor::default);
        drop(device);
        Ok(self.clone())
    }
}

impl Wakeups for Kernel {
    fn watch(&mut self, fd: OwnedFd) -> std::io::Result<WatchId> {
        drop(fd);
        Ok(WatchId(1))
    }

    fn watch_marked(&mut self, fd: OwnedFd, _mark: u8) -> std::io::Result<WatchId> {
        self.watch(fd)
    }

    /// More than was signalled.
    fn take_marks(&mut self) -> u64 {
        u64::MAX
    }

    fn await_writable(&mut self, _id: WatchId, _mark: u8) {}

    fn unwatch(&mut self, _id: WatchId) {}

    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn alarm(&mut self, _deadline: Duration) {}
}
