//! Commands of a front end, and the answers that have to wait.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use archipelago_endpoint::Wakeups;
use archipelago_protocol::volume::Volumes;

use super::Device;
use super::commands::{Until, reply};
use super::negotiated::{FrontEnd, InFlightArea};
use crate::command::{Answer, Command, Message, Refusal};
use crate::config::{RING_SIZE_MAX, feature};

/// The result of a command.
#[derive(Debug)]
enum Outcome {
    Answered(Answer),
    Waits(Until),
}

const DONE: Outcome = Outcome::Answered(Answer::Done);

impl<V: Volumes, W: Wakeups> Device<V, W> {
    pub(super) fn take_commands(&mut self) -> bool {
        let mut any = false;
        // A connection has one thread, which waits for each answer, and one thread detaches: few commands at a time.
        while let Some(Message {
            command,
            reply: asker,
        }) = self.commands.next()
        {
            any = true;
            match self.apply(command) {
                Ok(Outcome::Answered(answer)) => reply(&asker, answer),
                Ok(Outcome::Waits(until)) => self.commands.wait(until, self.wakeups.now(), asker),
                Err(refusal) => reply(&asker, Answer::Refused(refusal)),
            }
        }
        any
    }

    fn apply(&mut self, command: Command) -> Result<Outcome, Refusal> {
        match command {
            Command::Connected => {
                self.front_end = FrontEnd::Served;
                self.shared.metrics.connections.add(1);
            }
            Command::Features(features) => return self.set_features(features),
            Command::AddSlot(slot) => {
                self.memory.add(slot, self.volume.peer())?;
                return Ok(self.memory_changed());
            }
            Command::RemoveSlot { guest, user, len } => {
                self.memory.remove(guest, user, len)?;
                return Ok(self.memory_changed());
            }
            Command::SetSlots(slots) => {
                self.memory.replace(slots, self.volume.peer())?;
                return Ok(self.memory_changed());
            }
            Command::RingSize(index, size) => {
                let queue = self.rings.stopped(index)?;
                if !size.is_power_of_two() || size > RING_SIZE_MAX {
                    return Err(Refusal::RingSize(size));
                }
                queue.set_size(size);
            }
            Command::RingAddresses(index, addresses) => {
                // May come while the ring runs: a migration switches the logging of the used ring this way.
                self.rings.named(index)?.set_addresses(addresses);
                self.resolve();
            }
            Command::RingBase(index, base) => self.rings.stopped(index)?.set_base(base),
            Command::StopRing(index) => {
                self.rings.named(index)?.begin_stop();
                return Ok(Outcome::Waits(Until::Stopped(index)));
            }
            Command::Kick(index, fd) => self.start(index, fd)?,
            Command::Call(index, call) => self.rings.named(index)?.set_call(call),
            Command::Error(index, error) => self.rings.named(index)?.set_error(error),
            Command::Enable(index, enabled) => self.rings.named(index)?.set_enabled(enabled),
            Command::Log(log) => self.negotiated.set_dirty_log(log),
            Command::InFlight {
                region,
                start,
                queues,
                size,
            } => {
                if self.rings.any_started() {
                    return Err(Refusal::RingRuns);
                }
                self.shared.recall_writeback(&region, start, queues, size);
                self.negotiated.set_inflight(InFlightArea {
                    region,
                    start,
                    queues,
                    size,
                });
            }
            Command::Look => return Ok(Outcome::Answered(Answer::Rings(self.rings.seen()))),
            Command::Reset => return Ok(self.drop_requests(Until::Reset)),
            Command::Disconnected => return Ok(self.drop_requests(Until::Disconnected)),
            Command::Detach => return Ok(self.drop_requests(Until::Detached)),
        }
        Ok(DONE)
    }

    fn set_features(&mut self, features: u64) -> Result<Outcome, Refusal> {
        let unknown = features & !self.config.accepted_features();
        if unknown != 0 {
            return Err(Refusal::Features(unknown));
        }
        let features = features & !feature::KEPT_UNASKED;
        if features & (feature::CONFIG_WCE | feature::FLUSH) == feature::CONFIG_WCE {
            // Virtio 1.2, section 5.2.5.2: a guest that cannot flush begins without a write cache.
            self.shared.set_writeback(false);
        }
        let logs_now = self.negotiated.set_features(features);
        let notifications = self.negotiated.notifications();
        // Without the extension, rings are served as soon as they start.
        let all_enabled = !self.negotiated.has(feature::PROTOCOL_FEATURES);
        for queue in self.rings.iter_mut() {
            queue.set_notifications(notifications);
            if all_enabled {
                queue.set_enabled(true);
            }
        }
        if logs_now {
            // Requests taken before do not record what they write: the front end copies memory after the answer.
            return Ok(Outcome::Waits(Until::Newer(self.memory.next_generation())));
        }
        Ok(DONE)
    }

    fn start(&mut self, index: u16, fd: OwnedFd) -> Result<(), Refusal> {
        let watched = self.wakeups.watch(fd);
        let watch = watched.map_err(|error| Refusal::Unwatched(error.raw_os_error()))?;
        let log = self.negotiated.queue_log(index);
        let notifications = self.negotiated.notifications();
        let unwatched = match self.rings.named(index) {
            Ok(queue) => queue.start(watch, notifications, log),
            Err(refusal) => {
                self.wakeups.unwatch(watch);
                return Err(refusal);
            }
        };
        if let Some(old) = unwatched {
            self.wakeups.unwatch(old);
        }
        self.resolve();
        Ok(())
    }

    fn memory_changed(&mut self) -> Outcome {
        self.resolve();
        Outcome::Waits(Until::MemorySettled)
    }

    /// Looks up the rings again after a change of memory or of their addresses.
    fn resolve(&mut self) {
        let again = self.rings.resolve(self.memory.table());
        self.shared.metrics.resubmitted.add(again as u64);
    }

    /// Stops every ring; requests in flight end without an answer.
    fn drop_requests(&mut self, until: Until) -> Outcome {
        self.front_end = FrontEnd::Dropped;
        self.drop_backlog();
        // Their front end has disconnected, and the memory that they name will be removed.
        self.volume.stop_waiting();
        self.rings.begin_stop();
        Outcome::Waits(until)
    }

    /// Answers the commands whose conditions are met by now.
    pub(super) fn settle_commands(&mut self) -> bool {
        let oldest = || self.rings.oldest_generation();
        self.memory.settle(oldest, self.volume.peer());
        let mut any = false;
        let mut index = 0;
        while let Some(until) = self.commands.until(index) {
            match self.settle(until) {
                Err(until) => {
                    self.commands.set_until(index, until);
                    if self.recall_if_due(index, until) {
                        any = true;
                    } else {
                        index += 1;
                    }
                }
                Ok(answer) => {
                    self.commands.answer(index, answer);
                    any = true;
                }
            }
        }
        any
    }

    /// The answer, or the condition that it still waits for.
    fn settle(&mut self, until: Until) -> Result<Answer, Until> {
        match until {
            Until::Stopped(index) => {
                let index = usize::from(index);
                if !self.rings.at(index).is_drained() {
                    return Err(until);
                }
                self.leave(index);
                let base = self.stop(index);
                self.settle_volume();
                self.settle(Until::Closed(Answer::Base(base)))
            }
            Until::Closed(answer) => {
                let closed = self.rings.any_started() || self.volume.is_closed();
                closed.then_some(answer).ok_or(until)
            }
            Until::MemorySettled => self
                .memory
                .is_settled()
                .then_some(Answer::Done)
                .ok_or(until),
            Until::Newer(generation) => {
                let oldest = self.rings.oldest_generation();
                let newer = oldest.is_none_or(|oldest| oldest >= generation);
                newer.then_some(Answer::Done).ok_or(until)
            }
            Until::Reset => {
                self.end_rings(until)?;
                self.close(until)?;
                self.front_end = FrontEnd::Served;
                Ok(Answer::Done)
            }
            Until::Disconnected | Until::Detached => {
                self.end_rings(until)?;
                self.end_failures();
                self.negotiated.forget();
                self.memory.clear(self.volume.peer());
                self.close(until)?;
                if until == Until::Detached {
                    // Release: pairs with the Acquire in `is_finished`.
                    self.shared.finished.store(true, Ordering::Release);
                }
                Ok(Answer::Done)
            }
        }
    }

    /// Ends all rings, once nothing is in flight.
    fn end_rings(&mut self, until: Until) -> Result<(), Until> {
        if self.rings.in_flight() > 0 {
            return Err(until);
        }
        for index in 0..self.rings.len() {
            self.stop(index);
            self.rings.at(index).forget();
        }
        self.negotiated.forget_features();
        Ok(())
    }

    /// Closes the volume; an error until it is closed.
    fn close(&mut self, until: Until) -> Result<(), Until> {
        self.settle_volume();
        self.volume.is_closed().then_some(()).ok_or(until)
    }

    fn stop(&mut self, index: usize) -> u16 {
        let (kick, base) = self.rings.at(index).stop();
        if let Some(kick) = kick {
            self.wakeups.unwatch(kick);
        }
        base
    }
}
