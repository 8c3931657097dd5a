//! A queue: what the front end has set up, its ring, and the requests taken from it.
//!
//! | part | subject |
//! |---|---|
//! | `requests` | what is taken from the ring, and completed there |
//! | `ring` | the words of the ring in guest memory |
//! | `slots` | the requests that the volume has |
//! | [`QueueLog`] | the same in the in-flight region, for a successor |
//!
//! Invariants
//! - A head outside the ring, or one that is in flight already, breaks the ring.
//! - A head is completed once: written into the used ring by `Queue::complete`, seen by the guest with `Queue::publish`.

mod broken;
mod requests;
mod ring;
mod slots;

use std::collections::VecDeque;
use std::fs::File;

use archipelago_endpoint::WatchId;

use crate::inflight::QueueLog;
use crate::memory::MemoryTable;
use crate::shared::signal;

pub(crate) use broken::Broken;
pub(crate) use ring::Notifications;
pub use ring::RingAddresses;
use ring::SplitRing;
use slots::Slots;
pub(crate) use slots::{Outcome, PieceResult, Slot, Taken};

/// What a front end sets up before a ring starts, and forgets with a reset.
#[derive(Debug, Default)]
struct QueueSetup {
    /// Entries of the ring.
    size: u16,
    /// The avail index at which the ring goes on.
    base: u16,
    addresses: Option<RingAddresses>,
    /// Interrupts the guest.
    call: Option<File>,
    /// Reports to the front end that the ring is broken.
    error: Option<File>,
    enabled: bool,
}

/// How far the stop of a ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopping {
    /// It is not to stop.
    No,
    /// Nothing more is taken from the ring; what a predecessor had taken is still done.
    Finishing,
    /// As `Finishing`, without the requests that wait for room: they are not done again by this run.
    Leaving,
}

/// The run of a ring, from its kick eventfd to its stop.
#[derive(Debug)]
struct Run {
    kick: WatchId,
    stopping: Stopping,
    /// It made no sense, and is served no more.
    broken: bool,
}

/// Where the next chain comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The guest has made it available.
    Avail,
    /// It was taken before, by a predecessor or by this ring, and is done again.
    Again,
}

/// What the device sees of a started ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Its memory is not there.
    NoMemory,
    /// The guest has made requests available.
    Used,
    /// It never has.
    Empty,
}

/// What becomes of requests that were given back when their ring has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftovers {
    /// There are none.
    None,
    /// They count as not taken: the ring stops before so many of them.
    Untaken(usize),
    /// So many stay noted in the in-flight region.
    Noted(usize),
    /// So many are to be answered: nobody else ever could.
    Unanswered(usize),
}

/// What the guest got for a batch of completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// An interrupt.
    Sent,
    /// None: it wants none.
    Suppressed,
    /// None: the front end has given no eventfd for it.
    Unconnected,
}

/// A queue of a device.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    setup: QueueSetup,
    run: Option<Run>,
    ring: SplitRing,
    slots: Slots,
    /// Heads that are done again, in this order.
    again: VecDeque<u16>,
    log: Option<QueueLog>,
}

/// What the front end sets up.
impl Queue {
    /// Entries of the ring.
    pub(crate) fn size(&self) -> u16 {
        self.setup.size
    }

    pub(crate) fn set_size(&mut self, size: u16) {
        self.setup.size = size;
    }

    pub(crate) fn set_base(&mut self, base: u16) {
        self.setup.base = base;
    }

    pub(crate) fn set_addresses(&mut self, addresses: RingAddresses) {
        self.setup.addresses = Some(addresses);
    }

    /// Sets the eventfd that interrupts the guest. One that a running ring gets is signalled: what was completed before may have
    /// interrupted nobody.
    pub(crate) fn set_call(&mut self, call: Option<File>) {
        self.setup.call = call;
        if self.ring.runs() {
            self.interrupt();
        }
    }

    pub(crate) fn set_error(&mut self, error: Option<File>) {
        self.setup.error = error;
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.setup.enabled = enabled;
    }

    /// Negotiated notifications; a ring that runs keeps its way of asking.
    pub(crate) fn set_notifications(&mut self, wanted: Notifications) {
        let event_idx = match self.is_started() {
            true => self.ring.notifications().event_idx,
            false => wanted.event_idx,
        };
        let on_empty = wanted.on_empty;
        self.ring.set_notifications(Notifications {
            event_idx,
            on_empty,
        });
    }

    /// Starts the ring; of one that is started, the kick eventfd alone is replaced, and the old one returned.
    pub(crate) fn start(
        &mut self,
        kick: WatchId,
        notifications: Notifications,
        log: Option<QueueLog>,
    ) -> Option<WatchId> {
        if let Some(run) = &mut self.run {
            return Some(std::mem::replace(&mut run.kick, kick));
        }
        self.ring.set_notifications(notifications);
        // A ring of another size than the area's entries would be read at the wrong places.
        self.log = log.filter(|log| log.size() == self.setup.size);
        self.run = Some(Run {
            kick,
            stopping: Stopping::No,
            broken: false,
        });
        None
    }

    /// Back to the state before the front end set the queue up.
    pub(crate) fn forget(&mut self) {
        self.setup = QueueSetup::default();
        self.log = None;
    }

    /// Finds the ring in `memory`; called after each change of either. Returns the number of requests to be done again.
    pub(crate) fn resolve(&mut self, memory: &MemoryTable) -> usize {
        let QueueSetup {
            size, addresses, ..
        } = self.setup;
        self.ring.find(size, addresses, memory);
        if self.ring.runs() || !self.ring.is_found() || !self.is_started() {
            return 0;
        }
        let used = self.ring.used_idx_in_memory();
        let mut taken = self.setup.base;
        self.again.clear();
        if let Some(log) = &mut self.log {
            // The base that the front end sets may be older than the ring: with the in-flight region, what was taken
            // is what was used and what is noted.
            self.again.extend(log.recover(used));
            let noted = u16::try_from(self.again.len()).unwrap_or(u16::MAX);
            taken = used.wrapping_add(noted);
        }
        self.slots.resize(size);
        self.ring.begin(taken, used);
        // A predecessor may have died between showing a completion and its interrupt. The guest still waits for that one, and its threshold
        // suppresses those of later completions. An interrupt too many is harmless.
        self.interrupt();
        self.again.len()
    }

    fn interrupt(&self) {
        if let Some(call) = &self.setup.call {
            signal(call);
        }
    }
}

/// The state of its run.
impl Queue {
    /// Whether the front end has started the ring.
    pub(crate) fn is_started(&self) -> bool {
        self.run.is_some()
    }

    fn is_broken(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.broken)
    }

    fn stopping(&self) -> Stopping {
        self.run.as_ref().map_or(Stopping::No, |run| run.stopping)
    }

    /// Whether chains may be taken from the ring.
    pub(crate) fn is_running(&self) -> bool {
        let runs = |run: &Run| !run.broken && run.stopping == Stopping::No;
        self.run.as_ref().is_some_and(runs) && self.setup.enabled && self.ring.is_found()
    }

    /// Whether requests may be taken now; a ring that stops still does what a predecessor had taken.
    pub(crate) fn takes(&self) -> bool {
        let unfinished = self.stopping() == Stopping::Finishing && !self.again.is_empty();
        self.is_running() || (unfinished && self.ring.is_found() && !self.is_broken())
    }

    /// Has the ring stop: nothing more is taken from it.
    pub(crate) fn begin_stop(&mut self) {
        if let Some(run) = &mut self.run
            && run.stopping == Stopping::No
        {
            run.stopping = Stopping::Finishing;
        }
    }

    /// Has a ring that stops do so without the requests that wait for room.
    pub(crate) fn leave_waiting(&mut self) {
        if let Some(run) = &mut self.run {
            run.stopping = Stopping::Leaving;
        }
    }

    /// Whether a stopping ring has nothing left to do.
    pub(crate) fn is_drained(&self) -> bool {
        let none_again = self.again.is_empty() || self.stopping() == Stopping::Leaving;
        let nothing_can = !self.ring.is_found() || self.is_broken();
        self.in_flight() == 0 && (none_again || nothing_can)
    }

    /// Decides what becomes of requests that waited for room when the ring has stopped. `logs_memory`: a migration copies what is
    /// written, so that no successor may write into this memory.
    pub(crate) fn leave(&mut self, logs_memory: bool) -> Leftovers {
        let count = self.again.len();
        if self.stopping() != Stopping::Leaving || count == 0 || !self.ring.is_found() {
            return Leftovers::None;
        }
        if self.untake() {
            return Leftovers::Untaken(count);
        }
        match self.log.is_some() && !logs_memory {
            true => Leftovers::Noted(count),
            false => Leftovers::Unanswered(count),
        }
    }

    /// Ends the run of the ring: its kick eventfd, and where the ring goes on.
    pub(crate) fn stop(&mut self) -> (Option<WatchId>, u16) {
        if let Some(base) = self.ring.end() {
            self.setup.base = base;
        }
        self.again.clear();
        let kick = self.run.take().map(|run| run.kick);
        (kick, self.setup.base)
    }

    /// The guest has broken the ring: it is served no more until it is set up again, and the front end is notified.
    pub(crate) fn break_off(&mut self) {
        if let Some(run) = &mut self.run {
            run.broken = true;
        }
        if let Some(error) = &self.setup.error {
            signal(error);
        }
    }

    /// What is seen of the ring, if it is served.
    pub(crate) fn sight(&self) -> Option<Sight> {
        if !self.is_started() || !self.setup.enabled {
            return None;
        }
        let used = || self.ring.last_avail_idx() != 0 || self.ring.available() != Ok(0);
        Some(match self.ring.is_found() {
            false => Sight::NoMemory,
            true if used() => Sight::Used,
            true => Sight::Empty,
        })
    }
}
