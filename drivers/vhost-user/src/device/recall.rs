//! Commands of a front end that would wait with requests that wait for room in the pool: stops of rings above all. A guest
//! whose pool is full can be shut down, reset, migrated and have its memory changed.
//!
//! Such a command waits [`RECALL_AFTER`]; then the volume gives back what waits for room, unanswered. What is in flight in the
//! storage is waited for as before: its memory is in use. Of what was given back,
//!
//! | its ring | what becomes of it |
//! |---|---|
//! | goes on | submitted again, and waits again |
//! | stops, and it is all that was taken last | counts as not taken: the base is before it |
//! | stops, with an in-flight region, no migration is logged | stays noted in the region: done by the next run of the ring |
//! | stops otherwise | an I/O error, which is logged: nobody else could ever answer it |
//!
//! The reasons, with what the specification says, are in `docs/virtio.md`.

use std::time::Duration;

use archipelago_endpoint::Wakeups;
use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::{OnFull, Volumes};
use tracing::{info, warn};

use super::control::Until;
use super::serve::cookie;
use super::{Device, VolumeState, dirty_log};
use crate::config::feature;
use crate::failure::Failure;
use crate::request::Status;

/// How long a command waits with requests that wait for room: as long as they may take to go on when there is some.
pub(super) const RECALL_AFTER: Duration = Duration::from_secs(1);
/// Between two recalls for one command: what was being tried during the first waits again by then.
const RECALL_INTERVAL: Duration = Duration::from_millis(50);

impl<V: Volumes, W: Wakeups> Device<V, W> {
    /// When the next recall is.
    pub(super) fn recall_due(&self) -> Option<Duration> {
        let waits = self.waits.iter();
        let recalled = waits.filter(|waiting| is_held_up(waiting.until));
        recalled.map(|waiting| waiting.recall_at).min()
    }

    /// Has the volume give back what waits for room, if the command at `index` has waited long enough. Whether that was
    /// done: the command may be done by now.
    pub(super) fn recall_if_due(&mut self, index: usize) -> bool {
        let waiting = &mut self.waits[index];
        let now = self.wakeups.now();
        if now < waiting.recall_at || !is_held_up(waiting.until) {
            return false;
        }
        waiting.recall_at = now + RECALL_INTERVAL;
        match (waiting.until, self.volume) {
            (_, VolumeState::Opening(handle)) => {
                // An open that waits for room is refused, and tried again when a ring runs.
                self.volumes.on_full(handle, OnFull::Report);
            }
            (until, VolumeState::Open(handle)) => {
                if let Until::Stopped(queue) = until {
                    self.queues[usize::from(queue)].leaving = true;
                    self.recall_deferred(queue);
                }
                // What it answers before is no answer to this.
                while self.take_events() {}
                self.recalling = true;
                self.volumes.recall(handle);
                while self.take_events() {}
                self.recalling = false;
            }
            (Until::Stopped(queue), _) => self.queues[usize::from(queue)].leaving = true,
            _ => {}
        }
        true
    }

    /// The parts of requests of `queue` that the volume has not taken are not submitted any more.
    fn recall_deferred(&mut self, queue: u16) {
        let mut theirs = Vec::new();
        self.deferred.retain(|part| {
            let is_theirs = part.queue == queue;
            theirs.extend(is_theirs.then_some(part.head));
            !is_theirs
        });
        self.recalling = true;
        for head in theirs {
            self.done(cookie(usize::from(queue), head), Err(ErrorCode::NoSpace));
        }
        self.recalling = false;
    }

    /// Decides what becomes of requests that waited for room when their ring stopped.
    pub(super) fn leave(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        let count = queue.again.len();
        if !queue.leaving || count == 0 || queue.memory.is_none() {
            return;
        }
        let (device, volume) = (&self.name, self.config.volume.lineage);
        if queue.untake() {
            info!(%device, %volume, queue = index, count, "the ring stops before requests that wait for room: they are done when it runs again");
            return;
        }
        let noted = queue.log.is_some();
        if noted && self.features & feature::LOG_ALL == 0 {
            info!(%device, %volume, queue = index, count, "the ring stops beside requests that wait for room: they are done when it runs again");
            return;
        }
        warn!(%device, %volume, queue = index, count, "the ring stops, and requests that wait for room cannot wait elsewhere: the guest gets I/O errors");
        let failure = Failure::Volume(ErrorCode::NoSpace);
        let dirty = dirty_log(self.features, self.log.as_ref());
        while let Some(head) = self.queues[index].take_recalled() {
            self.shared.metrics.count_error(failure);
            self.queues[index].complete(head, Status::IoErr, &self.memory, dirty);
        }
        self.publish();
    }
}

/// Whether what waits for room holds a command up that waits for this.
fn is_held_up(until: Until) -> bool {
    match until {
        Until::Stopped(_) | Until::Closed(_) | Until::MemorySettled | Until::Newer(_) => true,
        // These have everything answered at once.
        Until::Reset | Until::HungUp | Until::Detached => false,
    }
}
