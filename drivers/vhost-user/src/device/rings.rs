//! The queues of a device.

use crate::command::Refusal;
use crate::memory::MemoryTable;
use crate::queue::{Queue, Sight};
use crate::ring_check::RingsSeen;

/// All queues.
#[derive(Debug)]
pub(super) struct Rings {
    queues: Vec<Queue>,
    /// The queue that is served first in the next turn.
    first: usize,
}

impl Rings {
    pub(super) fn new(queues: u16) -> Self {
        let mut all = Vec::new();
        all.resize_with(usize::from(queues), Queue::default);
        Rings {
            queues: all,
            first: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.queues.len()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Queue> {
        self.queues.iter_mut()
    }

    /// The queue at `index`, which is below [`Rings::len`].
    pub(super) fn at(&mut self, index: usize) -> &mut Queue {
        &mut self.queues[index]
    }

    /// The queue that a completion names.
    pub(super) fn get(&mut self, index: usize) -> Option<&mut Queue> {
        self.queues.get_mut(index)
    }

    /// The queue that a front end names.
    pub(super) fn named(&mut self, index: u16) -> Result<&mut Queue, Refusal> {
        self.get(usize::from(index)).ok_or(Refusal::NoSuchQueue)
    }

    /// The queue that a front end names to set it up, which must be stopped.
    pub(super) fn stopped(&mut self, index: u16) -> Result<&mut Queue, Refusal> {
        let queue = self.named(index)?;
        match queue.is_started() {
            true => Err(Refusal::RingRuns),
            false => Ok(queue),
        }
    }

    /// The queue to serve first: each queue in turn.
    pub(super) fn next_first(&mut self) -> usize {
        self.first = (self.first + 1) % self.len().max(1);
        self.first
    }

    pub(super) fn in_flight(&self) -> usize {
        self.queues.iter().map(Queue::in_flight).sum()
    }

    /// The oldest memory generation of a request in flight.
    pub(super) fn oldest_generation(&self) -> Option<u64> {
        let oldest = self.queues.iter().filter_map(Queue::oldest_generation);
        oldest.min()
    }

    pub(super) fn any_started(&self) -> bool {
        self.queues.iter().any(Queue::is_started)
    }

    /// Whether a ring needs the volume open.
    pub(super) fn want_volume(&self) -> bool {
        let wants = |queue: &Queue| queue.is_started() && queue.takes();
        self.queues.iter().any(wants)
    }

    /// Whether no ring is started and nothing is in flight.
    pub(super) fn are_idle(&self) -> bool {
        !self.any_started() && self.in_flight() == 0
    }

    /// Looks up the rings again after a change of memory or of their addresses. Returns how many requests are done again.
    pub(super) fn resolve(&mut self, memory: &MemoryTable) -> usize {
        let queues = self.queues.iter_mut();
        queues.map(|queue| queue.resolve(memory)).sum()
    }

    pub(super) fn begin_stop(&mut self) {
        self.iter_mut().for_each(Queue::begin_stop);
    }

    /// The visible state of the rings.
    pub(super) fn seen(&self) -> RingsSeen {
        let seen = || self.queues.iter().filter_map(Queue::sight);
        if seen().next().is_none() {
            RingsSeen::NoneStarted
        } else if seen().any(|sight| sight == Sight::NoMemory) {
            RingsSeen::NoMemory
        } else if seen().any(|sight| sight == Sight::Used) {
            RingsSeen::Used
        } else {
            RingsSeen::Empty
        }
    }
}
