//! The device on the data thread. It only routes: each part has its own state behind its methods.
//!
//! | part | subject |
//! |---|---|
//! | `EndpointVolume`, of `drivers/endpoint` | the volume: when it is open, and what happens to requests |
//! | `commands`, `control` | commands of the front end |
//! | `negotiated`, `guest_memory`, `rings` | the result of the negotiation; memory; queues |
//! | `reader`, `serve`, `backlog` | the data path: chains to requests, requests to the volume, completions to the guest |
//! | `recall` | commands that would wait for requests that wait for space |

mod backlog;
mod commands;
mod control;
mod guest_memory;
mod negotiated;
mod reader;
mod recall;
mod rings;
mod serve;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use archipelago_endpoint::{
    Activity, Clients, Driver, EndpointVolume, Report, Seed, Service, Shortage, Wakeups,
};
use archipelago_protocol::Lineage;
use archipelago_protocol::volume::{OnFull, Volumes};
use archipelago_runtime::Progress;
use crossbeam_channel::Receiver;

use crate::command::Message;
use crate::config::AttachConfig;
use crate::failure::FailureLog;
use crate::shared::Shared;
use crate::throttle::AnswerThrottle;
use backlog::Backlog;
use commands::Commands;
use guest_memory::GuestMemory;
use negotiated::{FrontEnd, Negotiated};
use reader::RequestReader;
use rings::Rings;

/// Most reports of the volume handled in one turn.
const REPORTS_PER_TURN: usize = 256;

/// How the volume's answers are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Completions {
    /// As final results.
    Final,
    /// Requests without space were recalled, and are done again.
    Recalled,
}

/// A vhost-user-blk device. Lives on one thread; made by [`DeviceSeed::build`].
pub struct Device<V, W> {
    name: String,
    config: AttachConfig,
    shared: Arc<Shared>,
    wakeups: W,
    volume: EndpointVolume<V>,
    commands: Commands,
    front_end: FrontEnd,
    negotiated: Negotiated,
    memory: GuestMemory,
    rings: Rings,
    reader: RequestReader,
    backlog: Backlog,
    /// Counts requests that were answered without the volume.
    throttle: AnswerThrottle,
    failures: FailureLog,
}

/// What the data thread needs to make the device; comes with its [`Endpoint`](crate::Endpoint).
#[derive(Debug)]
pub struct DeviceSeed {
    pub(crate) config: AttachConfig,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: Receiver<Message>,
    pub(crate) doorbell: OwnedFd,
}

impl DeviceSeed {
    /// Makes the device; called on the data thread.
    ///
    /// # Errors
    /// If the doorbell of the connection's thread cannot be watched.
    pub fn build<V: Volumes, W: Wakeups>(
        self,
        volumes: V,
        mut wakeups: W,
    ) -> std::io::Result<Device<V, W>> {
        wakeups.watch(self.doorbell)?;
        Ok(Device {
            name: format!("vhost-user {}", self.config.socket.display()),
            volume: EndpointVolume::new(volumes, &self.config.volume),
            rings: Rings::new(self.config.queues),
            config: self.config,
            shared: self.shared,
            wakeups,
            commands: Commands::new(self.commands),
            front_end: FrontEnd::Served,
            negotiated: Negotiated::default(),
            memory: GuestMemory::new(),
            reader: RequestReader::new(),
            backlog: Backlog::new(),
            throttle: AnswerThrottle::new(),
            failures: FailureLog::default(),
        })
    }
}

impl<V: Volumes, W: Wakeups> Device<V, W> {
    /// Handles the reports of the volume.
    fn take_reports(&mut self, completions: Completions) -> bool {
        let mut any = false;
        for _ in 0..REPORTS_PER_TURN {
            let (clients, now) = (self.clients(), || self.wakeups.now());
            let Some(report) = self.volume.next_report(clients, now) else {
                break;
            };
            any = true;
            match report {
                Report::Done { cookie, result } => self.done(cookie, result, completions),
                Report::Size(size) => self.shared.set_size(size),
                Report::OpenFailed => self.shared.metrics.open_failures.add(1),
                Report::Closed => {}
            }
        }
        if any {
            self.backlog.retry();
        }
        any
    }

    /// Whether the front end waits for answers.
    fn clients(&self) -> Clients {
        match self.front_end {
            FrontEnd::Served => Clients::Served,
            FrontEnd::Dropped => Clients::Dropped,
        }
    }

    /// Opens and closes the volume as the rings need it.
    fn settle_volume(&mut self) -> bool {
        let wanted = self.front_end == FrontEnd::Served && self.rings.want_volume();
        let idle = self.rings.are_idle();
        self.volume.settle(wanted, idle, || self.wakeups.now())
    }

    /// Whether the device goes on after progress of the volume peer, which no wake-up announces.
    fn waits_for_volume(&self) -> bool {
        let commands = self.commands.any_waits() || !self.memory.is_settled();
        let requests = self.rings.in_flight() > 0 || !self.backlog.is_clear();
        self.volume.changes() || commands || requests
    }
}

impl<V, W> Seed<V, W> for DeviceSeed
where
    V: Volumes + 'static,
    W: Wakeups + 'static,
{
    fn build(self: Box<Self>, volumes: V, wakeups: W) -> std::io::Result<Box<dyn Driver>> {
        Ok(Box::new(DeviceSeed::build(*self, volumes, wakeups)?))
    }
}

impl<V: Volumes, W: Wakeups> Driver for Device<V, W> {
    fn lineage(&self) -> Lineage {
        self.config.volume.lineage
    }

    fn poll(&mut self) -> Progress {
        if self.is_finished() {
            self.commands.refuse_all();
            return Progress::Idle;
        }
        let mut busy = self.take_commands();
        busy |= self.take_reports(Completions::Final);
        busy |= self.serve();
        self.publish();
        self.report_failures();
        busy |= self.settle_volume();
        busy |= self.settle_commands();
        let in_flight = self.rings.in_flight() as u64;
        self.shared.metrics.in_flight.set(in_flight);
        if busy { Progress::Busy } else { Progress::Idle }
    }

    fn prepare_sleep(&mut self) -> Activity {
        let mut ready = !self.commands.none_came();
        let paused = self.throttle.is_paused(|| self.wakeups.now());
        let due = [
            self.throttle.due(),
            self.failures.due(),
            self.commands.recall_due(),
            self.volume.due(),
        ];
        if let Some(due) = due.into_iter().flatten().min() {
            self.wakeups.alarm(due);
        }
        let answers = self.volume.service() != Service::NotYet;
        let serving = answers && self.memory.is_ready() && !self.backlog.is_refused() && !paused;
        let dirty = self.negotiated.dirty_log();
        for queue in self.rings.iter_mut().filter(|queue| queue.is_running()) {
            let available = queue.enable_notifications(dirty);
            ready |= available && serving;
        }
        match ready {
            true => Activity::Ready,
            false if self.waits_for_volume() => Activity::Waiting,
            false => Activity::Idle,
        }
    }

    fn wake(&mut self) {
        let dirty = self.negotiated.dirty_log();
        for queue in self.rings.iter_mut().filter(|queue| queue.is_running()) {
            if queue.disable_notifications(dirty) {
                self.shared.metrics.kicks.add(1);
            }
        }
    }

    fn set_on_full(&mut self, policy: OnFull) {
        let clients = self.clients();
        self.volume.set_on_full(policy, clients);
    }

    fn shortage(&self) -> Option<(Shortage, Duration)> {
        self.volume.shortage()
    }

    fn is_finished(&self) -> bool {
        // Acquire: pairs with the Release where a detach is done (`settle`).
        self.shared.finished.load(Ordering::Acquire)
    }
}

impl<V, W> fmt::Debug for Device<V, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.name)
            .field("rings", &self.rings)
            .finish_non_exhaustive()
    }
}
