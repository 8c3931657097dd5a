//! The device on the data thread: state, its turn, and the volume's life. `serve` has the data path, `control` the
//! changes that a front end asks for.
//!
//! The volume is opened when the first ring runs and closed when the last one has stopped:
//!
//! | state | leaves it when |
//! |---|---|
//! | Closed | a ring runs: opens |
//! | Opening | `Opened`: Open, Refused or Failed |
//! | Open | no ring is started and nothing is in flight: closes |
//! | Closing | `Closed`: Closed |
//! | Refused (no slot; requests wait) | a moment later: opens again; no ring is started: Closed |
//! | Full (no room for as long as the policy waits; requests get IOERR) | as Refused |
//! | Failed (requests get IOERR) | no ring is started: Closed, so the next start tries again |

mod control;
mod recall;
mod serve;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use archipelago_endpoint::{Activity, Driver, Seed, Shortage, Wakeups};
use archipelago_protocol::volume::{OnFull, OpenMode, VolumeEvent, VolumeHandle, Volumes};
use archipelago_protocol::{Error, Lineage};
use archipelago_runtime::Progress;
use crossbeam_channel::Receiver;
use tracing::{debug, error};
use xseg::Region;

use crate::chain::Chain;
use crate::command::Message;
use crate::config::{AttachConfig, feature};
use crate::dirty_log::DirtyLog;
use crate::failure::FailureLog;
use crate::memory::MemoryTable;
use crate::queue::Queue;
use crate::request::Range;
use crate::shared::Shared;
use crate::throttle::Throttle;

/// How long after an open that found no slot or no room the next one is tried.
const OPEN_AGAIN: Duration = Duration::from_millis(500);
/// Events of the volume taken in one turn.
const EVENTS_PER_TURN: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VolumeState {
    Closed,
    Opening(VolumeHandle),
    Open(VolumeHandle),
    Closing(VolumeHandle),
    /// The volume peer had no slot for it; what else an open has no space for, the peer waits for itself ([`OnFull::Wait`]).
    /// Until then it is not asked for again.
    Refused(Duration),
    /// It could not be opened for want of space for as long as its policy waits, or would not wait for it. Opened again then,
    /// without waiting: whoever reports serves again when there is room.
    Full(Duration),
    Failed,
}

/// A part of a request that the volume could not take at once.
#[derive(Debug, Clone, Copy)]
struct Deferred {
    queue: u16,
    head: u16,
    range: Range,
    kind: crate::request::Kind,
}

#[derive(Debug)]
struct InFlightArea {
    region: Region,
    start: u64,
    queues: u16,
    size: u16,
}

/// A vhost-user-blk device. Lives on one thread; made by [`DeviceSeed::build`].
pub struct Device<V, W> {
    name: String,
    config: AttachConfig,
    shared: Arc<Shared>,
    volumes: V,
    wakeups: W,
    commands: Receiver<Message>,
    queues: Vec<Queue>,
    /// Queue whose turn is first.
    first: usize,
    memory: MemoryTable,
    /// Raised with each change that older requests must not outlive.
    generation: u64,
    /// Whether the volume peer knows every region.
    regions_ready: bool,
    features: u64,
    log: Option<DirtyLog>,
    area: Option<InFlightArea>,
    volume: VolumeState,
    /// What the last open found too little for, and was logged.
    shortage: Option<Shortage>,
    /// When an open was tried first, since one succeeded or no ring was started.
    open_since: Option<Duration>,
    chain: Chain,
    ranges: Vec<Range>,
    deferred: Vec<Deferred>,
    waits: Vec<control::Waiting>,
    /// The volume has refused a request since its last event.
    held_back: bool,
    /// What the volume answers now was recalled from it, if it had no room for it.
    recalling: bool,
    failures: FailureLog,
    /// Counts what was answered without the volume.
    answers: Throttle,
    /// The rings are left alone until then: too much was answered without the volume.
    rest_until: Option<Duration>,
    /// Completions are not shown any more: the front end is gone, or has reset the device.
    dropping: bool,
}

/// What the data thread needs to make the device; comes with its [`Endpoint`](crate::Endpoint).
#[derive(Debug)]
pub struct DeviceSeed {
    pub(crate) config: AttachConfig,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: Receiver<Message>,
    pub(crate) bell: OwnedFd,
}

impl DeviceSeed {
    /// Makes the device; called on the data thread.
    ///
    /// # Errors
    /// If the bell of the connection's thread cannot be watched.
    pub fn build<V: Volumes, W: Wakeups>(
        self,
        volumes: V,
        mut wakeups: W,
    ) -> std::io::Result<Device<V, W>> {
        wakeups.watch(self.bell)?;
        let mut queues = Vec::new();
        queues.resize_with(usize::from(self.config.queues), Queue::default);
        Ok(Device {
            name: format!("vhost-user {}", self.config.socket.display()),
            config: self.config,
            shared: self.shared,
            volumes,
            wakeups,
            commands: self.commands,
            queues,
            first: 0,
            memory: MemoryTable::default(),
            generation: 0,
            regions_ready: true,
            features: 0,
            log: None,
            area: None,
            volume: VolumeState::Closed,
            shortage: None,
            open_since: None,
            chain: Chain::new(),
            ranges: Vec::with_capacity(crate::config::RANGES_MAX),
            deferred: Vec::with_capacity(crate::config::RANGES_MAX),
            waits: Vec::new(),
            held_back: false,
            recalling: false,
            failures: FailureLog::default(),
            answers: Throttle::of_answers(),
            rest_until: None,
            dropping: false,
        })
    }
}

impl<V: Volumes, W: Wakeups> Device<V, W> {
    fn in_flight(&self) -> usize {
        self.queues.iter().map(|queue| queue.in_flight).sum()
    }

    /// Whether something goes on once the volume peer has done its part, which no wake-up says.
    fn waits_for_volume(&self) -> bool {
        let changes = matches!(
            self.volume,
            VolumeState::Opening(_) | VolumeState::Closing(_)
        );
        let commands = !self.waits.is_empty() || self.memory.has_retired() || !self.regions_ready;
        let requests = self.in_flight() > 0 || self.held_back || !self.deferred.is_empty();
        changes || commands || requests
    }

    /// Takes what the volume has to say.
    fn take_events(&mut self) -> bool {
        let mut any = false;
        for _ in 0..EVENTS_PER_TURN {
            let (VolumeState::Opening(handle)
            | VolumeState::Open(handle)
            | VolumeState::Closing(handle)) = self.volume
            else {
                break;
            };
            let Some(event) = self.volumes.next_event(handle) else {
                break;
            };
            any = true;
            match event {
                VolumeEvent::Done { cookie, result } => self.done(cookie, result),
                VolumeEvent::Opened { result: Ok(volume) } => {
                    // A guest opens its volume as often as it resets its device.
                    debug!(volume = %volume.lineage, size = volume.size, "volume opened");
                    self.shared.set_size(volume.size);
                    (self.shortage, self.open_since) = (None, None);
                    // It may have been opened without waiting.
                    let volumes = &mut self.volumes;
                    if !self.dropping {
                        volumes.on_full(handle, self.config.volume.on_full);
                    }
                    self.volume = VolumeState::Open(handle);
                }
                VolumeEvent::Opened { result: Err(error) } if error.code.passes() => {
                    self.shared.metrics.open_failures.add(1);
                    self.volume = self.without_space(&error);
                }
                VolumeEvent::Opened { result: Err(error) } => {
                    self.shared.metrics.open_failures.add(1);
                    error!(volume = %self.config.volume.lineage, %error, "the volume cannot be opened; its guest gets I/O errors");
                    self.volume = VolumeState::Failed;
                }
                VolumeEvent::Closed { result } => {
                    if let Err(error) = result {
                        error!(volume = %self.config.volume.lineage, %error, "closing the volume failed");
                    }
                    self.volume = VolumeState::Closed;
                }
                VolumeEvent::Resized { size } => self.shared.set_size(size),
            }
        }
        if any {
            self.held_back = false;
        }
        any
    }

    /// Whether an open has been tried for as long as the policy waits.
    fn is_over(&self) -> bool {
        let since = self.open_since.unwrap_or_default();
        let waited = self.wakeups.now().saturating_sub(since);
        let limit = self.config.volume.on_full.limit();
        limit.is_some_and(|limit| waited >= limit)
    }

    /// The volume cannot be opened for want of space: its next state.
    fn without_space(&mut self, error: &Error) -> VolumeState {
        let again = self.wakeups.now() + OPEN_AGAIN;
        let (volume, policy) = (self.config.volume.lineage, self.config.volume.on_full);
        if self.is_over() {
            if self.shortage.replace(Shortage::Reported) != Some(Shortage::Reported) {
                error!(%volume, %error, "the volume cannot be opened; its guest gets I/O errors until there is space (on full: {policy})");
            }
            return VolumeState::Full(again);
        }
        if self.shortage.replace(Shortage::Waits) != Some(Shortage::Waits) {
            error!(%volume, %error, "the volume cannot be opened yet; its guest waits (on full: {policy})");
        }
        VolumeState::Refused(again)
    }

    /// Opens and closes the volume as the rings need it.
    fn settle_volume(&mut self) -> bool {
        let wanted = !self.dropping && self.queues.iter().any(Queue::wants_volume);
        let idle = !self.queues.iter().any(Queue::started) && self.in_flight() == 0;
        match self.volume {
            VolumeState::Closed if wanted => {
                let mode = if self.config.volume.read_only {
                    OpenMode::ReadOnly
                } else {
                    OpenMode::Exclusive
                };
                self.open_since = self.open_since.or_else(|| Some(self.wakeups.now()));
                let policy = if self.is_over() {
                    OnFull::Report
                } else {
                    self.config.volume.on_full
                };
                let volumes = &mut self.volumes;
                let handle = volumes.open(self.config.volume.lineage, mode);
                volumes.on_full(handle, policy);
                self.volume = VolumeState::Opening(handle);
            }
            VolumeState::Open(handle) if idle => {
                self.volumes.close(handle);
                self.volume = VolumeState::Closing(handle);
            }
            VolumeState::Failed | VolumeState::Refused(_) | VolumeState::Full(_) if idle => {
                (self.volume, self.open_since) = (VolumeState::Closed, None);
            }
            VolumeState::Refused(until) | VolumeState::Full(until)
                if until <= self.wakeups.now() =>
            {
                self.volume = VolumeState::Closed;
            }
            _ => return false,
        }
        true
    }
}

/// The log to mark, if the front end wants marks.
fn dirty_log(features: u64, log: Option<&DirtyLog>) -> Option<&DirtyLog> {
    log.filter(|_| features & feature::LOG_ALL != 0)
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
            // Whoever still asks sees the dropped answer.
            while self.commands.try_recv().is_ok() {}
            return Progress::Idle;
        }
        let mut busy = self.take_commands();
        busy |= self.take_events();
        busy |= self.serve();
        self.publish();
        self.report_failures();
        busy |= self.settle_volume();
        busy |= self.settle_waits();
        self.shared.metrics.in_flight.set(self.in_flight() as u64);
        if busy { Progress::Busy } else { Progress::Idle }
    }

    fn prepare_sleep(&mut self) -> Activity {
        let mut ready = !self.commands.is_empty();
        let rests = self.rests();
        let due = self.rest_until.into_iter().chain(self.failures.due());
        if let Some(until) = due.chain(self.recall_due()).min() {
            self.wakeups.alarm(until);
        }
        if let VolumeState::Refused(until) | VolumeState::Full(until) = self.volume {
            self.wakeups.alarm(until);
        }
        let answers = matches!(
            self.volume,
            VolumeState::Open(_) | VolumeState::Full(_) | VolumeState::Failed
        );
        let serving = answers && self.regions_ready && !self.held_back && !rests;
        let dirty = dirty_log(self.features, self.log.as_ref());
        for queue in self.queues.iter_mut().filter(|queue| queue.running()) {
            let waiting = queue.ask_for_kicks(dirty);
            ready |= waiting && serving;
        }
        match ready {
            true => Activity::Ready,
            false if self.waits_for_volume() => Activity::Waiting,
            false => Activity::Idle,
        }
    }

    fn wake(&mut self) {
        let dirty = dirty_log(self.features, self.log.as_ref());
        for queue in self.queues.iter_mut().filter(|queue| queue.running()) {
            if queue.asked() && queue.waiting().is_ok_and(|waiting| waiting > 0) {
                self.shared.metrics.kicks.add(1);
            }
            queue.refuse_kicks(dirty);
        }
    }

    fn set_on_full(&mut self, policy: OnFull) {
        if std::mem::replace(&mut self.config.volume.on_full, policy) == policy {
            return;
        }
        match self.volume {
            // Who drops its requests waits for nothing any more.
            VolumeState::Opening(handle) | VolumeState::Open(handle) if !self.dropping => {
                self.volumes.on_full(handle, policy);
            }
            // Tried anew, as the policy says.
            VolumeState::Refused(_) | VolumeState::Full(_) => {
                (self.volume, self.open_since) = (VolumeState::Closed, None);
            }
            _ => {}
        }
    }

    fn shortage(&self) -> Option<(Shortage, Duration)> {
        self.shortage.zip(self.open_since)
    }

    fn is_finished(&self) -> bool {
        // Acquire: pairs with the Release in `settle`. Set and read on the data thread, and read by control.
        self.shared.finished.load(Ordering::Acquire)
    }
}

impl<V, W> fmt::Debug for Device<V, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.name)
            .field("volume", &self.volume)
            .finish_non_exhaustive()
    }
}
