//! What a front end asks for besides requests, and the answers that have to wait.

use std::sync::atomic::Ordering;
use std::time::Duration;

use archipelago_endpoint::Wakeups;
use archipelago_protocol::volume::{OnFull, Volumes};
use crossbeam_channel::Sender;
use tracing::warn;

use super::recall::RECALL_AFTER;
use super::{Device, InFlightArea, VolumeState};
use crate::command::{Answer, Command, Message};
use crate::config::{RING_SIZE_MAX, feature};
use crate::inflight::QueueLog;
use crate::memory::{GuestSlot, MEMORY_SLOTS_MAX};
use crate::queue::Queue;
use crate::ring_check::RingsSeen;

/// When a command is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The ring has drained; then `Closed` if it was the last one.
    Stopped(u16),
    /// The volume is closed, if no ring is started by then.
    Closed(Answer),
    /// Retired memory is named by nobody, new memory is known to the volume peer.
    MemorySettled,
    /// No request older than this generation is in flight.
    Newer(u64),
    /// Rings have drained without answers.
    Reset,
    /// As `Reset`, memory is given back, the volume is closed.
    HungUp,
    /// As `HungUp`; the device ends.
    Detached,
}

/// What becomes of a command.
#[derive(Debug)]
enum Outcome {
    Answered(Answer),
    Waits(Until),
}

/// A command that is not done yet.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) until: Until,
    /// When the volume is to give back what waits for room: the command does not wait with it.
    pub(super) recall_at: Duration,
    reply: Sender<Answer>,
}

impl<V: Volumes, W: Wakeups> Device<V, W> {
    pub(super) fn take_commands(&mut self) -> bool {
        let mut any = false;
        // One thread per connection that waits for each answer, and one that detaches: few commands at a time.
        while let Ok(Message { command, reply }) = self.commands.try_recv() {
            any = true;
            match self.apply(command) {
                Ok(Outcome::Answered(with)) => answer(&reply, with),
                Ok(Outcome::Waits(until)) => {
                    let recall_at = self.wakeups.now() + RECALL_AFTER;
                    self.waits.push(Waiting {
                        until,
                        recall_at,
                        reply,
                    });
                }
                Err(why) => answer(&reply, Answer::Refused(why)),
            }
        }
        any
    }

    fn queue(&mut self, index: u16) -> Result<&mut Queue, &'static str> {
        self.queues
            .get_mut(usize::from(index))
            .ok_or("there is no such queue")
    }

    fn stopped_queue(&mut self, index: u16) -> Result<&mut Queue, &'static str> {
        let queue = self.queue(index)?;
        if queue.started() {
            return Err("the ring is running");
        }
        Ok(queue)
    }

    fn apply(&mut self, command: Command) -> Result<Outcome, &'static str> {
        match command {
            Command::Connected => {
                self.dropping = false;
                self.shared.metrics.connections.add(1);
            }
            Command::Features(features) => return self.set_features(features),
            Command::AddSlot(slot) => {
                if self.memory.overlaps(&slot) {
                    return Err("the memory slot overlaps another one");
                }
                self.add_slot(slot)?;
                self.resolve();
                return Ok(Outcome::Waits(Until::MemorySettled));
            }
            Command::RemoveSlot { guest, user, len } => {
                if !self.memory.retire(guest, user, len, self.generation) {
                    return Err("there is no such memory slot");
                }
                self.generation += 1;
                self.resolve();
                return Ok(Outcome::Waits(Until::MemorySettled));
            }
            Command::SetSlots(slots) => {
                self.memory.retire_all(self.generation);
                self.generation += 1;
                for slot in slots {
                    if self.memory.overlaps(&slot) {
                        return Err("memory slots overlap");
                    }
                    self.add_slot(slot)?;
                }
                self.resolve();
                return Ok(Outcome::Waits(Until::MemorySettled));
            }
            Command::RingSize(index, size) => {
                let queue = self.stopped_queue(index)?;
                if !size.is_power_of_two() || size > RING_SIZE_MAX {
                    return Err("the ring's size is not a power of two up to 32768");
                }
                queue.size = size;
            }
            Command::RingAddresses(index, addresses) => {
                // May come while the ring runs: a migration switches the logging of the used ring this way.
                self.queue(index)?.addresses = Some(addresses);
                self.resolve();
            }
            Command::RingBase(index, base) => self.stopped_queue(index)?.base = base,
            Command::StopRing(index) => {
                self.queue(index)?.stopping = true;
                return Ok(Outcome::Waits(Until::Stopped(index)));
            }
            Command::Kick(index, fd) => self.start(index, fd)?,
            Command::Call(index, call) => self.queue(index)?.call = call,
            Command::Error(index, error) => self.queue(index)?.error = error,
            Command::Enable(index, enabled) => self.queue(index)?.enabled = enabled,
            Command::Log(log) => self.log = Some(log),
            Command::InFlight {
                region,
                start,
                queues,
                size,
            } => {
                if self.queues.iter().any(Queue::started) {
                    return Err("a ring is running");
                }
                self.shared.recall_writeback(&region, start, queues, size);
                self.area = Some(InFlightArea {
                    region,
                    start,
                    queues,
                    size,
                });
            }
            Command::Look => return Ok(Outcome::Answered(Answer::Rings(self.rings_seen()))),
            Command::Reset => {
                self.drop_requests();
                return Ok(Outcome::Waits(Until::Reset));
            }
            Command::HangUp => {
                self.drop_requests();
                return Ok(Outcome::Waits(Until::HungUp));
            }
            Command::Detach => {
                self.drop_requests();
                return Ok(Outcome::Waits(Until::Detached));
            }
        }
        Ok(Outcome::Answered(Answer::Done))
    }

    fn rings_seen(&self) -> RingsSeen {
        let started = || {
            let queues = self.queues.iter();
            queues.filter(|queue| queue.started() && queue.enabled)
        };
        if started().next().is_none() {
            RingsSeen::NoneStarted
        } else if started().any(|queue| queue.memory.is_none()) {
            RingsSeen::NoMemory
        } else if started().any(Queue::was_used) {
            RingsSeen::Used
        } else {
            RingsSeen::Empty
        }
    }

    fn set_features(&mut self, features: u64) -> Result<Outcome, &'static str> {
        if features & !self.config.accepted_features() != 0 {
            return Err("features that were not offered");
        }
        let features = features & !feature::KEPT_UNASKED;
        if features & (feature::CONFIG_WCE | feature::FLUSH) == feature::CONFIG_WCE {
            // Virtio 1.2, section 5.2.5.2: a guest that cannot flush begins without a write cache.
            self.shared.set_writeback(false);
        }
        let logs_now = features & !self.features & feature::LOG_ALL != 0;
        self.features = features;
        for queue in &mut self.queues {
            if !queue.started() {
                queue.event_idx = features & feature::EVENT_IDX != 0;
            }
            queue.notify_on_empty = features & feature::NOTIFY_ON_EMPTY != 0;
            // Without the extension rings are served as soon as they start.
            queue.enabled |= features & feature::PROTOCOL_FEATURES == 0;
        }
        if logs_now {
            // Requests taken before do not know what they will write: the front end copies memory after the answer.
            self.generation += 1;
            return Ok(Outcome::Waits(Until::Newer(self.generation)));
        }
        Ok(Outcome::Answered(Answer::Done))
    }

    fn add_slot(&mut self, slot: GuestSlot) -> Result<(), &'static str> {
        if self.memory.len() >= MEMORY_SLOTS_MAX {
            return Err("too many memory slots");
        }
        let volumes = &mut self.volumes;
        let id = volumes.fresh_region();
        if volumes.add_region(id, slot.region.clone()).is_err() {
            return Err("the volume peer has no room for a region");
        }
        self.regions_ready = false;
        self.memory.insert(slot, id);
        Ok(())
    }

    fn start(&mut self, index: u16, fd: std::os::fd::OwnedFd) -> Result<(), &'static str> {
        let watch = self
            .wakeups
            .watch(fd)
            .map_err(|_cause| "the kick cannot be watched")?;
        let log = self.area.as_ref().and_then(|area| {
            let fits = index < area.queues;
            fits.then(|| QueueLog::new(&area.region, area.start, index, area.size))?
        });
        let event_idx = self.features & feature::EVENT_IDX != 0;
        let queue = match self.queue(index) {
            Ok(queue) => queue,
            Err(why) => {
                self.wakeups.unwatch(watch);
                return Err(why);
            }
        };
        let old = queue.kick.replace(watch);
        if old.is_none() {
            queue.event_idx = event_idx;
            // A ring of another size than the area's entries would be read at the wrong places.
            queue.log = log.filter(|log| log.size() == queue.size);
        }
        if let Some(old) = old {
            self.wakeups.unwatch(old);
        }
        self.resolve();
        Ok(())
    }

    /// Finds the rings again after a change of memory or of their addresses.
    fn resolve(&mut self) {
        for queue in &mut self.queues {
            let again = queue.resolve(&self.memory);
            self.shared.metrics.resubmitted.add(again as u64);
        }
    }

    /// Stops every ring; what is in flight ends without an answer.
    fn drop_requests(&mut self) {
        self.dropping = true;
        self.drop_deferred();
        if let VolumeState::Open(handle) | VolumeState::Opening(handle) = self.volume {
            // Nobody waits for them any more, and the memory that they name is about to go.
            self.volumes.on_full(handle, OnFull::Report);
        }
        for index in 0..self.queues.len() {
            self.queues[index].stopping = true;
        }
    }

    fn oldest(&self) -> Option<u64> {
        let slots = self.queues.iter().flat_map(|queue| &queue.slots);
        slots
            .filter(|slot| slot.busy)
            .map(|slot| slot.generation)
            .min()
    }

    /// Answers the commands that are done by now.
    pub(super) fn settle_waits(&mut self) -> bool {
        if !self.regions_ready {
            let volumes = &self.volumes;
            self.regions_ready = self.memory.regions().all(|id| volumes.region_ready(id));
        }
        if self.memory.has_retired() {
            let oldest = self.oldest();
            while let Some(id) = self.memory.take_retired(oldest) {
                self.volumes.remove_region(id);
            }
        }
        let mut any = false;
        let mut index = 0;
        while index < self.waits.len() {
            match self.settle(self.waits[index].until) {
                Err(until) => {
                    self.waits[index].until = until;
                    if self.recall_if_due(index) {
                        any = true;
                    } else {
                        index += 1;
                    }
                }
                Ok(done) => {
                    answer(&self.waits.swap_remove(index).reply, done);
                    any = true;
                }
            }
        }
        any
    }

    /// The answer, or what to wait for now.
    fn settle(&mut self, until: Until) -> Result<Answer, Until> {
        match until {
            Until::Stopped(index) => {
                if !self.queues[usize::from(index)].drained() {
                    return Err(until);
                }
                self.leave(usize::from(index));
                let base = self.stop(usize::from(index));
                self.settle_volume();
                self.settle(Until::Closed(Answer::Base(base)))
            }
            Until::Closed(answer) => {
                let others = self.queues.iter().any(Queue::started);
                if others || self.volume == VolumeState::Closed {
                    return Ok(answer);
                }
                Err(until)
            }
            Until::MemorySettled => {
                if self.memory.has_retired() || !self.regions_ready {
                    return Err(until);
                }
                Ok(Answer::Done)
            }
            Until::Newer(generation) => {
                if self.oldest().is_some_and(|oldest| oldest < generation) {
                    return Err(until);
                }
                Ok(Answer::Done)
            }
            Until::Reset => {
                if self.in_flight() > 0 {
                    return Err(until);
                }
                for index in 0..self.queues.len() {
                    self.stop(index);
                    self.queues[index].forget();
                }
                self.features = 0;
                self.settle_volume();
                if self.volume != VolumeState::Closed {
                    return Err(until);
                }
                self.dropping = false;
                Ok(Answer::Done)
            }
            Until::HungUp | Until::Detached => {
                if self.in_flight() > 0 {
                    return Err(until);
                }
                for index in 0..self.queues.len() {
                    self.stop(index);
                    self.queues[index].forget();
                }
                self.end_failures();
                self.features = 0;
                self.log = None;
                self.area = None;
                self.memory.retire_all(self.generation);
                while let Some(id) = self.memory.take_retired(None) {
                    self.volumes.remove_region(id);
                }
                self.regions_ready = true;
                self.settle_volume();
                if self.volume != VolumeState::Closed {
                    return Err(until);
                }
                if until == Until::Detached {
                    self.shared.finished.store(true, Ordering::Release);
                }
                Ok(Answer::Done)
            }
        }
    }

    fn stop(&mut self, index: usize) -> u16 {
        let queue = &mut self.queues[index];
        if let Some(watch) = queue.kick.take() {
            self.wakeups.unwatch(watch);
        }
        queue.stop()
    }
}

fn answer(reply: &Sender<Answer>, answer: Answer) {
    if reply.send(answer).is_err() {
        warn!("nobody waits for {answer:?} any more");
    }
}
