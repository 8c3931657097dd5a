//! Serves a device on the data thread: fetches requests from the kernel, submits them to the volume, answers them.
//!
//! Invariants
//! - A fetched request is answered once, or kept for the next server: with the volume's answer, never with an error that this server's own
//!   end causes.
//! - A buffer is in requests to the volume only while the driver has the kernel's request.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use archipelago_endpoint::{
    Activity, Clients, Detach, Driver, EndpointVolume, Report, Seed, Service, Shortage, Throttle,
};
use archipelago_protocol::volume::{OnFull, Segment, VolumeRequest, Volumes};
use archipelago_protocol::{ErrorCode, Lineage};
use archipelago_runtime::Progress;
use nix::errno::Errno;
use tracing::{debug, warn};
use xseg::{Region, RegionId, Span};

use crate::config::AttachConfig;
use crate::layout::{BUFFER_LEN, DEPTH, REGION_LEN, buffer_at};
use crate::queue::{Completed, KernelQueue, KernelQueues};
use crate::request::{Request, errno, unserved};
use crate::shared::{DetachRequest, Shared};
use crate::slots::Slots;

/// Mark of the doorbell.
const MARK_DOORBELL: u8 = 0;
/// Log lines about errors: a burst, and one more in each interval.
const LINES: u32 = 8;
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// What the data thread needs to make the driver; comes with its [`Endpoint`](crate::Endpoint).
#[derive(Debug)]
pub struct DriverSeed {
    pub(crate) config: AttachConfig,
    pub(crate) shared: Arc<Shared>,
    pub(crate) requests: Receiver<DetachRequest>,
    pub(crate) doorbell: OwnedFd,
}

impl<V, W> Seed<V, W> for DriverSeed
where
    V: Volumes + 'static,
    W: KernelQueues + 'static,
{
    fn build(self: Box<Self>, volumes: V, wakeups: W) -> std::io::Result<Box<dyn Driver>> {
        Ok(Box::new(UblkDriver::new(*self, volumes, wakeups)?))
    }
}

/// The buffers of all requests, in a region that was added to the volume peer.
#[derive(Debug)]
struct Buffers {
    id: RegionId,
    spans: Vec<Span>,
}

impl Buffers {
    fn new(volumes: &mut impl Volumes) -> std::io::Result<Buffers> {
        let region = Region::anonymous(REGION_LEN)?;
        let spans: Result<Vec<Span>, _> = (0..DEPTH)
            .map(|tag| region.span(buffer_at(tag), u64::from(BUFFER_LEN)))
            .collect();
        let id = volumes.fresh_region();
        volumes
            .add_region(id, region)
            .map_err(|code| std::io::Error::other(code.to_string()))?;
        Ok(Buffers {
            id,
            spans: spans.map_err(|_outside| std::io::ErrorKind::InvalidInput)?,
        })
    }
}

/// The end of the endpoint, once it has begun.
#[derive(Debug)]
struct Ending {
    requests: Receiver<DetachRequest>,
    waiting: Vec<Sender<()>>,
    /// Whether commands may be left with the kernel: they end with the process.
    leaves_commands: bool,
    finished: bool,
}

impl Ending {
    /// Takes new requests to detach. `true`: the end begins.
    fn take_requests(&mut self) -> bool {
        let had_begun = self.has_begun();
        while let Ok(DetachRequest { how, reply }) = self.requests.try_recv() {
            self.leaves_commands |= how == Detach::Force;
            self.waiting.push(reply);
        }
        self.has_begun() && !had_begun
    }

    fn has_begun(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn finish(&mut self) {
        self.finished = true;
        for reply in &self.waiting {
            // The requester may have stopped waiting.
            let _dropped = reply.send(());
        }
    }
}

/// The driver of one device. Lives on one thread.
struct UblkDriver<V, W: KernelQueues> {
    lineage: Lineage,
    device: u32,
    shared: Arc<Shared>,
    /// Declared before the event loop, which its commands use.
    queue: W::Queue,
    wakeups: W,
    volume: EndpointVolume<V>,
    buffers: Buffers,
    slots: Slots,
    /// Requests that wait for a slot in the volume.
    backlog: VecDeque<u16>,
    /// Whether a request has come: then the volume is open.
    used: bool,
    ending: Ending,
    lines: Throttle,
    /// Errors that were logged.
    logged_errors: u64,
}

impl<V: Volumes, W: KernelQueues> UblkDriver<V, W> {
    fn new(seed: DriverSeed, mut volumes: V, mut wakeups: W) -> std::io::Result<Self> {
        let AttachConfig {
            volume,
            device,
            queue,
        } = seed.config;
        wakeups.watch_marked(seed.doorbell, MARK_DOORBELL)?;
        let mut queue = wakeups.kernel_queue(queue, DEPTH, BUFFER_LEN)?;
        let buffers = Buffers::new(&mut volumes)?;
        for (tag, buffer) in (0..DEPTH).zip(&buffers.spans) {
            queue.fetch(tag, buffer);
        }
        Ok(UblkDriver {
            lineage: volume.lineage,
            device,
            shared: seed.shared,
            queue,
            wakeups,
            volume: EndpointVolume::new(volumes, &volume),
            buffers,
            slots: Slots::new(DEPTH),
            backlog: VecDeque::with_capacity(usize::from(DEPTH)),
            used: false,
            ending: Ending {
                requests: seed.requests,
                waiting: Vec::new(),
                leaves_commands: false,
                finished: false,
            },
            lines: Throttle::new(LINES, LINE_INTERVAL),
            logged_errors: 0,
        })
    }

    fn take_signals(&mut self) {
        if self.wakeups.take_marks() & 1 << MARK_DOORBELL == 0 || !self.ending.take_requests() {
            return;
        }
        // From now on the backlog is left to the next server, and requests that wait for space are given up.
        while let Some(tag) = self.backlog.pop_front() {
            self.keep(tag);
        }
        self.volume.stop_waiting();
    }

    fn keep(&mut self, tag: u16) {
        self.slots.keep(tag);
        self.shared.metrics.kept.add(1);
    }

    /// Handles the commands that the kernel has completed: no more than the queue has requests.
    fn take_commands(&mut self) -> bool {
        let mut any = false;
        while let Some(Completed { tag, result }) = self.queue.next_completed() {
            any = true;
            if !self.slots.is_fetching(tag) {
                debug_assert!(false, "the kernel has completed what it was not asked");
                continue;
            }
            if result < 0 {
                self.lose(tag, result);
            } else if self.ending.has_begun() {
                self.keep(tag);
            } else {
                self.take_request(tag);
            }
        }
        any
    }

    /// Handles the stop of the device.
    fn lose(&mut self, tag: u16, result: i32) {
        let first = !self.slots.is_stopped();
        self.slots.lose(tag);
        if first {
            let reason = Errno::from_raw(-result);
            debug!(device = self.device, %reason, "the ublk device is stopped");
            self.shared.lose_device();
        }
    }

    fn take_request(&mut self, tag: u16) {
        let Some(descriptor) = self.queue.descriptor(tag) else {
            return;
        };
        self.used = true;
        match Request::decode(&descriptor) {
            Ok(request) => {
                self.slots.take(tag, request);
                if !self.backlog.is_empty() || !self.try_submit(tag) {
                    self.shared.metrics.volume_refusals.add(1);
                    self.backlog.push_back(tag);
                }
            }
            Err(errno) => {
                self.shared.metrics.count_error(errno);
                self.commit(tag, -(errno as i32));
            }
        }
    }

    fn commit(&mut self, tag: u16, result: i32) {
        self.slots.fetch(tag);
        let buffer = &self.buffers.spans[usize::from(tag)];
        self.queue.commit_and_fetch(tag, result, buffer);
    }

    /// Submits the request of `tag` to the volume, or answers it; `false`: it has to wait.
    fn try_submit(&mut self, tag: u16) -> bool {
        let Some(request) = self.slots.request(tag) else {
            debug_assert!(false, "a request that the driver does not have");
            return true;
        };
        let refused = match self.volume.service() {
            Service::NotYet => return false,
            Service::Open(_) if !self.volume.peer_ref().region_ready(self.buffers.id) => {
                return false;
            }
            Service::Fails(why) => unserved(why),
            Service::Open(handle) => {
                let segments = [Segment {
                    region: self.buffers.id.0,
                    len: if request.has_data() {
                        // Validated: no longer than a buffer.
                        u32::try_from(request.len).unwrap_or(BUFFER_LEN)
                    } else {
                        0
                    },
                    offset: buffer_at(tag),
                }];
                let submitted = VolumeRequest {
                    op: request.op,
                    offset: request.offset,
                    len: request.len,
                    segments: if request.has_data() { &segments } else { &[] },
                };
                match self.volume.submit(handle, u64::from(tag), submitted) {
                    Ok(()) => return true,
                    Err(ErrorCode::Unavailable) => return false,
                    Err(code) => errno(code),
                }
            }
        };
        self.answer(tag, Err(refused));
        true
    }

    /// Answers the request of `tag`.
    fn answer(&mut self, tag: u16, result: Result<(), Errno>) {
        let Some(request) = self.slots.request(tag) else {
            debug_assert!(false, "the volume has answered what was not asked");
            return;
        };
        // The end itself may have caused the error: the next server gets the request, and reports an error that lasts.
        if self.ending.has_begun() && result.is_err() {
            return self.keep(tag);
        }
        self.shared.metrics.count(&request, result);
        self.commit(tag, request.answer(result));
    }

    fn submit_backlog(&mut self) -> bool {
        let mut any = false;
        while let Some(tag) = self.backlog.front().copied() {
            if !self.try_submit(tag) {
                break;
            }
            self.backlog.pop_front();
            any = true;
        }
        any
    }

    /// Handles the reports of the volume: no more than there are requests, and changes of the volume's state.
    fn take_reports(&mut self) -> bool {
        let mut any = false;
        loop {
            let (clients, wakeups) = (self.clients(), &self.wakeups);
            let Some(report) = self.volume.next_report(clients, || wakeups.now()) else {
                return any;
            };
            any = true;
            match report {
                Report::Done { cookie, result } => {
                    if let Ok(tag) = u16::try_from(cookie) {
                        self.answer(tag, result.map_err(errno));
                    }
                }
                Report::OpenFailed => self.shared.metrics.open_failures.add(1),
                Report::Size(_) | Report::Closed => {}
            }
        }
    }

    fn clients(&self) -> Clients {
        match self.ending.has_begun() {
            true => Clients::Dropped,
            false => Clients::Served,
        }
    }

    /// Opens the volume with the first request, closes it at the end.
    fn settle_volume(&mut self) -> bool {
        let in_flight = self.slots.taken();
        self.shared.metrics.in_flight.set(in_flight as u64);
        let ends = self.ending.has_begun();
        let wanted = self.used && !ends;
        let wakeups = &self.wakeups;
        let busy = self
            .volume
            .settle(wanted, ends && in_flight == 0, || wakeups.now());
        let no_commands = self.ending.leaves_commands || self.slots.fetching() == 0;
        if ends && in_flight == 0 && self.volume.is_closed() && no_commands {
            self.volume.peer().remove_region(self.buffers.id);
            self.ending.finish();
        }
        busy
    }

    /// Logs that requests fail.
    fn report_errors(&mut self) {
        let errors = self.shared.metrics.errors.get();
        let fresh = errors.wrapping_sub(self.logged_errors);
        if fresh > 0 && self.lines.count(1, self.wakeups.now()).is_zero() {
            self.logged_errors = errors;
            warn!(device = self.device, volume = %self.lineage, "a ublk device has I/O errors: {fresh} more requests have failed, {errors} since the volume was attached");
        }
    }
}

impl<V: Volumes, W: KernelQueues> Driver for UblkDriver<V, W> {
    fn lineage(&self) -> Lineage {
        self.lineage
    }

    fn poll(&mut self) -> Progress {
        if self.ending.finished {
            return Progress::Idle;
        }
        self.take_signals();
        let mut busy = self.take_commands();
        busy |= self.take_reports();
        busy |= self.submit_backlog();
        busy |= self.settle_volume();
        self.report_errors();
        if busy { Progress::Busy } else { Progress::Idle }
    }

    fn prepare_sleep(&mut self) -> Activity {
        if let Some(due) = self.volume.due() {
            self.wakeups.alarm(due);
        }
        // Anything else that comes is signalled: a poll with work left would not have returned idle.
        match self.slots.taken() > 0 || self.volume.changes() {
            true => Activity::Waiting,
            false => Activity::Idle,
        }
    }

    fn wake(&mut self) {}

    fn set_on_full(&mut self, policy: OnFull) {
        let clients = self.clients();
        self.volume.set_on_full(policy, clients);
    }

    fn shortage(&self) -> Option<(Shortage, Duration)> {
        self.volume.shortage()
    }

    fn is_finished(&self) -> bool {
        self.ending.finished
    }
}

impl<V, W: KernelQueues> fmt::Debug for UblkDriver<V, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UblkDriver")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
