//! The driver of a volume: its requests, and the answers and events that it has not collected yet.

use std::collections::VecDeque;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::VolumeEvent;

use crate::limits::{REQUESTS_PER_VOLUME, may_acquire};
use crate::request::{Phase, Request};
use crate::slab::{Queue, Slab};

/// Whether the driver uses the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attachment {
    Open,
    /// The driver has closed the volume: it sends no more requests, and the volume closes when all are answered.
    Closing,
    /// The same, but nobody collects answers and events.
    Orphaned,
}

/// The driver of one volume.
#[derive(Debug)]
pub(crate) struct Driver {
    attachment: Attachment,
    /// Events except [`VolumeEvent::Done`]; there are few.
    events: VecDeque<VolumeEvent>,
    /// Requests that are answered.
    done: Queue,
    /// Number of requests not yet answered.
    live: u32,
    /// Number of slots of requests in use, including requests whose answers have not been collected.
    slots: u32,
}

impl Default for Driver {
    fn default() -> Self {
        Driver {
            attachment: Attachment::Open,
            events: VecDeque::with_capacity(4),
            done: Queue::default(),
            live: 0,
            slots: 0,
        }
    }
}

impl Driver {
    /// Whether the driver may submit another request while `free` slots are left for all volumes.
    pub(crate) fn may_submit(&self, free: usize) -> bool {
        self.slots < REQUESTS_PER_VOLUME && may_acquire(self.slots as usize, free)
    }

    /// A request was submitted.
    pub(crate) fn submitted(&mut self) {
        self.slots += 1;
        self.live += 1;
    }

    /// Answers request `r`. Its slot becomes free when the driver collects the answer.
    pub(crate) fn answer(
        &mut self,
        requests: &mut Slab<Request>,
        r: u32,
        result: Result<(), ErrorCode>,
    ) {
        debug_assert_ne!(requests[r].phase, Phase::Done, "answered once");
        requests[r].phase = Phase::Done;
        requests[r].result = result;
        self.live -= 1;
        if self.attachment == Attachment::Orphaned {
            self.slots -= 1;
            requests.remove(r);
        } else {
            self.done.push(requests, r);
        }
    }

    /// Whether every request is answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.live == 0
    }

    /// Whether the driver has closed the volume.
    pub(crate) fn has_closed(&self) -> bool {
        self.attachment != Attachment::Open
    }

    /// The driver closes the volume.
    pub(crate) fn close(&mut self) {
        if self.attachment == Attachment::Open {
            self.attachment = Attachment::Closing;
        }
    }

    /// The driver has ended, and has collected all events.
    pub(crate) fn orphan(&mut self) {
        debug_assert!(self.has_all());
        self.attachment = Attachment::Orphaned;
    }

    /// Reports `event`.
    pub(crate) fn report(&mut self, event: VolumeEvent) {
        if self.attachment != Attachment::Orphaned {
            self.events.push_back(event);
        }
    }

    /// What the driver collects next: answers before events.
    pub(crate) fn next_event(&mut self, requests: &mut Slab<Request>) -> Option<VolumeEvent> {
        let Some(r) = self.done.pop(requests) else {
            return self.events.pop_front();
        };
        self.slots -= 1;
        let Request { cookie, result, .. } = requests.remove(r);
        Some(VolumeEvent::Done { cookie, result })
    }

    /// Whether the driver has collected everything.
    pub(crate) fn has_all(&self) -> bool {
        self.events.is_empty() && self.done.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::volume::VolumeOp;

    use super::*;

    fn submit(driver: &mut Driver, requests: &mut Slab<Request>, cookie: u64) -> u32 {
        driver.submitted();
        let request = Request::new(0, cookie, 0, VolumeOp::Flush, 0, 0);
        requests.insert(request).unwrap()
    }

    #[test]
    fn a_slot_is_free_when_the_answer_is_collected_or_nobody_will() {
        let (mut driver, mut requests) = (Driver::default(), Slab::new(2));
        let one = submit(&mut driver, &mut requests, 7);
        let two = submit(&mut driver, &mut requests, 8);
        driver.answer(&mut requests, one, Err(ErrorCode::Io));
        assert!(requests.is_full() && !driver.is_answered());
        let collected = driver.next_event(&mut requests);
        let expected = VolumeEvent::Done {
            cookie: 7,
            result: Err(ErrorCode::Io),
        };
        assert_eq!(collected, Some(expected));
        assert!(driver.has_all() && requests.len() == 1);
        driver.orphan();
        driver.answer(&mut requests, two, Ok(()));
        driver.report(VolumeEvent::Resized { size: 1 });
        assert!(driver.is_answered() && driver.has_all() && requests.len() == 0);
    }
}
