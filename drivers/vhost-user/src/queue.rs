//! A queue: the front end's settings, its ring, and the requests taken from it.
//!
//! | part | subject |
//! |---|---|
//! | `requests` | requests are taken from the ring, and completed there |
//! | `ring` | the words of the ring in guest memory |
//! | `slots` | the requests in flight |
//! | [`QueueLog`] | the requests in flight in the in-flight region, for a successor |
//!
//! Invariants
//! - A head outside the ring, or one that is in flight already, breaks the ring.
//! - A head is completed once: `Queue::complete` writes it into the used ring, `Queue::publish` shows it to the guest.

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

/// The settings of a front end before a ring starts; a reset clears them.
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

/// The progress of the stop of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopping {
    /// It does not stop.
    No,
    /// No further requests are taken from the ring; those that a predecessor had taken are still done.
    Finishing,
    /// As `Finishing`, without the requests that wait for space: this run does not do them again.
    Leaving,
}

/// The run of a ring, from its kick eventfd to its stop.
#[derive(Debug)]
struct Run {
    kick: WatchId,
    stopping: Stopping,
    /// The guest has broken it; it is not served any more.
    broken: bool,
}

/// The source of the next chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The guest has made it available.
    Avail,
    /// It was taken before, by a predecessor or by this ring, and is done again.
    Again,
}

/// The visible state of a started ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Its memory is missing.
    NoMemory,
    /// The guest has made requests available.
    Used,
    /// The guest never has made requests available.
    Empty,
}

/// What happens to requests that were given back when their ring has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftovers {
    /// There are none.
    None,
    /// They count as not taken: the ring stops before so many of them.
    Untaken(usize),
    /// So many stay recorded in the in-flight region.
    Noted(usize),
    /// So many are to be answered: there would be no later answer.
    Unanswered(usize),
}

/// How the guest was notified of a batch of completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// An interrupt.
    Sent,
    /// No interrupt: the guest has suppressed it.
    Suppressed,
    /// No interrupt: the front end has passed no eventfd for it.
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

/// The front end's settings.
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

    /// Sets the eventfd that interrupts the guest. If the ring runs, the eventfd is signalled at once: earlier completions may not have
    /// interrupted the guest.
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

    /// Sets the negotiated notifications; a running ring keeps its own.
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

    /// Starts the ring. If it is started already, only the kick eventfd is replaced, and the old one returned.
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
        // In an area for another size of rings, the entries would be read at the wrong places.
        self.log = log.filter(|log| log.size() == self.setup.size);
        self.run = Some(Run {
            kick,
            stopping: Stopping::No,
            broken: false,
        });
        None
    }

    /// Clears the front end's settings.
    pub(crate) fn forget(&mut self) {
        self.setup = QueueSetup::default();
        self.log = None;
    }

    /// Looks up the ring in `memory`; called after each change of either. Returns the number of requests to be done again.
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
            // The front end's base may be older than the ring: with the in-flight region, the used index and the recorded heads determine
            // which requests were taken.
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

    /// Whether requests may be taken now; a stopping ring still does the requests that a predecessor had taken.
    pub(crate) fn takes(&self) -> bool {
        let unfinished = self.stopping() == Stopping::Finishing && !self.again.is_empty();
        self.is_running() || (unfinished && self.ring.is_found() && !self.is_broken())
    }

    /// Begins the stop of the ring: no further requests are taken from it.
    pub(crate) fn begin_stop(&mut self) {
        if let Some(run) = &mut self.run
            && run.stopping == Stopping::No
        {
            run.stopping = Stopping::Finishing;
        }
    }

    /// Lets a stopping ring stop without the requests that wait for space.
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

    /// Decides what happens to requests that waited for space when the ring has stopped. `logs_memory`: a migration copies written memory,
    /// so no successor may write into this memory.
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

    /// Ends the run of the ring; returns its kick eventfd, and the index at which the ring goes on.
    pub(crate) fn stop(&mut self) -> (Option<WatchId>, u16) {
        if let Some(base) = self.ring.end() {
            self.setup.base = base;
        }
        self.again.clear();
        let kick = self.run.take().map(|run| run.kick);
        (kick, self.setup.base)
    }

    /// Marks the ring as broken by the guest: it is not served until it is set up again, and the front end is notified.
    pub(crate) fn break_off(&mut self) {
        if let Some(run) = &mut self.run {
            run.broken = true;
        }
        if let Some(error) = &self.setup.error {
            signal(error);
        }
    }

    /// The visible state of the ring, if it is served.
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
