//! Commands of a front end that would wait for requests which wait for space in the pool: above all stops of rings. With recalls, a guest
//! whose pool is full can be shut down, reset, migrated and have its memory changed.
//!
//! Such a command waits for a second; then the volume gives back the requests that wait for space, unanswered. Requests that are in flight
//! in the storage are waited for as before: their memory is in use. The requests that were given back:
//!
//! | its ring | what happens to the request |
//! |---|---|
//! | goes on | submitted again, and waits again |
//! | stops, and they are exactly the last ones taken | counts as not taken: the base is before it |
//! | stops, with an in-flight region, no migration is logged | stays recorded in the region: done by the next run of the ring |
//! | stops otherwise | an I/O error, which is logged: there would be no later answer |
//!
//! The reasons, with the specification's words, are in `docs/virtio.md`.

use archipelago_endpoint::Wakeups;
use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::Volumes;
use tracing::{info, warn};

use super::commands::Until;
use super::{Completions, Device};
use crate::config::feature;
use crate::failure::Failure;
use crate::queue::{Leftovers, PieceResult};
use crate::request::Status;

impl<V: Volumes, W: Wakeups> Device<V, W> {
    /// Has the volume give back the requests that wait for space, if the command at `index`, which waits for `until`, has waited long
    /// enough. Returns whether that was done: the command may be done by now.
    pub(super) fn recall_if_due(&mut self, index: usize, until: Until) -> bool {
        if !self.commands.take_recall(index, self.wakeups.now()) {
            return false;
        }
        if self.volume.stop_opening() {
            return true;
        }
        if let Until::Stopped(queue) = until {
            self.rings.at(usize::from(queue)).leave_waiting();
            self.recall_backlog(queue);
        }
        // Earlier reports are not answers to the recall.
        while self.take_reports(Completions::Final) {}
        self.volume.recall();
        while self.take_reports(Completions::Recalled) {}
        true
    }

    /// Removes the parts of requests of `queue` that the volume has not taken.
    fn recall_backlog(&mut self, queue: u16) {
        for head in self.backlog.take_of(queue) {
            self.piece_done(usize::from(queue), head, PieceResult::Recalled);
        }
    }

    /// Decides what happens to requests that waited for space when their ring stopped.
    pub(super) fn leave(&mut self, index: usize) {
        let logs_memory = self.negotiated.has(feature::LOG_ALL);
        let (device, volume) = (&self.name, self.config.volume.lineage);
        match self.rings.at(index).leave(logs_memory) {
            Leftovers::None => {}
            Leftovers::Untaken(count) => {
                info!(%device, %volume, queue = index, count, "the ring stops before requests that wait for room: they are done when it runs again");
            }
            Leftovers::Noted(count) => {
                info!(%device, %volume, queue = index, count, "the ring stops beside requests that wait for room: they are done when it runs again");
            }
            Leftovers::Unanswered(count) => {
                warn!(%device, %volume, queue = index, count, "the ring stops, and requests that wait for room cannot wait elsewhere: the guest gets I/O errors");
                self.fail_recalled(index);
            }
        }
    }

    fn fail_recalled(&mut self, index: usize) {
        let failure = Failure::Volume(ErrorCode::NoSpace);
        let dirty = self.negotiated.dirty_log();
        let queue = self.rings.at(index);
        while let Some(head) = queue.take_recalled() {
            self.shared.metrics.count_error(failure);
            queue.complete(head, Status::IoErr, self.memory.table(), dirty);
        }
        self.publish();
    }
}
