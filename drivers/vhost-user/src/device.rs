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

use std::cell::RefCell;
use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use archipelago_protocol::volume::{OnFull, OpenMode, VolumeEvent, VolumeHandle, Volumes};
use archipelago_protocol::{Error, Lineage};
use archipelago_runtime::{Peer, Progress};
use crossbeam_channel::Receiver;
use tracing::{debug, error};
use xseg::Region;

use crate::chain::Chain;
use crate::command::Message;
use crate::config::{AttachConfig, feature};
use crate::dirty_log::DirtyLog;
use crate::failure::FailureLog;
use crate::memory::MemoryTable;
use crate::metrics::add;
use crate::queue::Queue;
use crate::request::Range;
use crate::shared::Shared;
use crate::throttle::Throttle;
use crate::wakeups::Wakeups;

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

/// What a guest gets whose volume cannot be opened for want of a slot or of room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// It waits.
    Waits,
    /// Its requests fail.
    Reported,
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
    volumes: Rc<RefCell<V>>,
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
    awake: bool,
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
        volumes: Rc<RefCell<V>>,
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
            awake: true,
        })
    }
}

impl<V: Volumes, W: Wakeups> Device<V, W> {
    /// Whether the device has been detached and can be dropped.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.shared.finished.load(Ordering::Acquire)
    }

    fn in_flight(&self) -> usize {
        self.queues.iter().map(|queue| queue.in_flight).sum()
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
            let Some(event) = self.volumes.borrow_mut().next_event(handle) else {
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
                    let mut volumes = self.volumes.borrow_mut();
                    if !self.dropping {
                        volumes.on_full(handle, self.config.on_full);
                    }
                    drop(volumes);
                    self.volume = VolumeState::Open(handle);
                }
                VolumeEvent::Opened { result: Err(error) } if error.code.passes() => {
                    add(&self.shared.metrics.open_failures, 1);
                    self.volume = self.without_space(&error);
                }
                VolumeEvent::Opened { result: Err(error) } => {
                    add(&self.shared.metrics.open_failures, 1);
                    error!(volume = %self.config.lineage, %error, "the volume cannot be opened; its guest gets I/O errors");
                    self.volume = VolumeState::Failed;
                }
                VolumeEvent::Closed { result } => {
                    if let Err(error) = result {
                        error!(volume = %self.config.lineage, %error, "closing the volume failed");
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
        let limit = self.config.on_full.limit();
        limit.is_some_and(|limit| waited >= limit)
    }

    /// The volume cannot be opened for want of space: its next state.
    fn without_space(&mut self, error: &Error) -> VolumeState {
        let again = self.wakeups.now() + OPEN_AGAIN;
        let (volume, policy) = (self.config.lineage, self.config.on_full);
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

    /// Whether the volume cannot be opened for want of space, and when that was tried first. What an open waits for, the volume
    /// peer tells.
    #[must_use]
    pub fn shortage(&self) -> Option<(Shortage, Duration)> {
        self.shortage.zip(self.open_since)
    }

    /// The volume that it serves.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        self.config.lineage
    }

    /// What writes do for which the pool has no room, from now on; those that wait already are answered at once if it is
    /// [`OnFull::Report`].
    pub fn set_on_full(&mut self, policy: OnFull) {
        if std::mem::replace(&mut self.config.on_full, policy) == policy {
            return;
        }
        match self.volume {
            // Who drops its requests waits for nothing any more.
            VolumeState::Opening(handle) | VolumeState::Open(handle) if !self.dropping => {
                self.volumes.borrow_mut().on_full(handle, policy);
            }
            // Tried anew, as the policy says.
            VolumeState::Refused(_) | VolumeState::Full(_) => {
                (self.volume, self.open_since) = (VolumeState::Closed, None);
            }
            _ => {}
        }
    }

    /// Opens and closes the volume as the rings need it.
    fn settle_volume(&mut self) -> bool {
        let wanted = !self.dropping && self.queues.iter().any(Queue::wants_volume);
        let idle = !self.queues.iter().any(Queue::started) && self.in_flight() == 0;
        match self.volume {
            VolumeState::Closed if wanted => {
                let mode = if self.config.read_only {
                    OpenMode::ReadOnly
                } else {
                    OpenMode::Exclusive
                };
                self.open_since = self.open_since.or_else(|| Some(self.wakeups.now()));
                let policy = if self.is_over() {
                    OnFull::Report
                } else {
                    self.config.on_full
                };
                let mut volumes = self.volumes.borrow_mut();
                let handle = volumes.open(self.config.lineage, mode);
                volumes.on_full(handle, policy);
                drop(volumes);
                self.volume = VolumeState::Opening(handle);
            }
            VolumeState::Open(handle) if idle => {
                self.volumes.borrow_mut().close(handle);
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

impl<V: Volumes, W: Wakeups> Peer for Device<V, W> {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll(&mut self) -> Progress {
        if self.is_finished() {
            // Whoever still asks is told by the dropped answer.
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
        let in_flight = self.in_flight() as u64;
        self.shared
            .metrics
            .in_flight
            .store(in_flight, Ordering::Relaxed);
        if busy { Progress::Busy } else { Progress::Idle }
    }

    fn prepare_sleep(&mut self) -> bool {
        self.awake = false;
        let mut quiet = self.commands.is_empty();
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
            quiet &= !(waiting && serving);
        }
        quiet
    }

    fn wake(&mut self) {
        self.awake = true;
        let dirty = dirty_log(self.features, self.log.as_ref());
        for queue in self.queues.iter_mut().filter(|queue| queue.running()) {
            if queue.asked() && queue.waiting().is_ok_and(|waiting| waiting > 0) {
                add(&self.shared.metrics.kicks, 1);
            }
            queue.refuse_kicks(dirty);
        }
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
