//! Open and close, and recovery after a failed sync or the death of the mapper.
//!
//! * A failed sync: nothing more is sent for the volume. When nothing is in flight, every request that was submitted before the failure
//!   fails, the session is abandoned, the volume is opened again from its durable state, and requests that arrived meanwhile are served. If
//!   no flush was among the failed requests (the sync belonged to a snapshot, or to the mapper itself), the next flush fails: it would
//!   cover writes that were acknowledged and are lost. A snapshot before that flush fails too: it would lack these writes.
//! * A mapper that died: when no object request of any volume is in flight, every volume is opened again, and its unfinished requests start
//!   from the beginning, in the order of submission. Dirty objects stay dirty. Requests whose data was written and reported only wait for a
//!   flush again. The volume recovers as from a failed sync if the open reports one, if a sync fails while the mapper is dead, or if the
//!   dead mapper had reported one: its successor gets the report.
//!
//! A request that starts from the beginning may write bytes a second time, after a later, overlapping write of the same driver was
//! answered. Both were in flight together, so their order was never guaranteed.

use archipelago_protocol::map::MapReply;
use archipelago_protocol::volume::{OpenMode, VolumeEvent, VolumeInfo};
use archipelago_protocol::{Error, ErrorCode, Lineage, ObjectSize};
use xseg::ClientPort;

use super::Volume;
use crate::control_event::ControlEvent;
use crate::session::{Attempt, Session, SessionEvent, session_error};
use crate::tables::Tables;

impl Volume {
    /// The driver closes the volume.
    pub(crate) fn close<M, B>(&mut self, t: &mut Tables<M, B>) {
        if !self.session.is_dead() {
            self.driver.close();
            self.give_up(t);
        }
    }

    /// The driver has ended, and has collected all events.
    pub(crate) fn orphan<M, B>(&mut self, t: &mut Tables<M, B>) {
        self.driver.orphan();
        self.close(t);
    }

    /// The size of the volume `lineage` has changed. A smaller size is ignored: only a volume that nobody has open can shrink.
    pub(crate) fn resized<M, B>(&mut self, t: &mut Tables<M, B>, lineage: Lineage, size: u64) {
        if self.lineage == lineage && self.session.is_open() && self.size < size {
            self.size = size;
            self.report(t, VolumeEvent::Resized { size });
        }
    }

    /// Handles the mapper's answer to a request of the session.
    pub(super) fn session_reply<M, B>(&mut self, t: &mut Tables<M, B>, reply: &MapReply) {
        match self.session.reply(self.lineage, reply) {
            SessionEvent::Nothing => {}
            SessionEvent::Opened {
                first,
                size,
                object_size,
                durable,
            } => {
                self.flush.set_durable(durable);
                self.opened(t, first, size, object_size);
            }
            SessionEvent::OpenRefused(code) => {
                if !self.wait_for_session(t, code) {
                    self.open_failed(t, code);
                }
            }
            SessionEvent::LostAtReopen => {
                self.fail_drained(t, u64::MAX);
                t.ready.add(self.slot);
            }
            SessionEvent::Ended { lost } => {
                if self.is_leaving() {
                    let lost = lost.or_else(|| self.loss());
                    self.closed(t, lost);
                } else {
                    self.session = Session::opening(Attempt::AfterLoss);
                }
            }
        }
    }

    /// A round failed, but not because of a sync: the caller answers the requests that joined.
    pub(super) fn round_failed(&mut self, code: ErrorCode) {
        self.stale |= code == ErrorCode::Stale;
        if !self.is_leaving() {
            return;
        }
        if code.passes() {
            // A close needs less room than a flush, and drops nothing when there is none.
            let lost = self.loss();
            self.session.close(lost);
        } else {
            let what = "could not be flushed at its close";
            self.session
                .abandon(Some(session_error(self.lineage, what, code)));
        }
    }

    /// A sync failed. Data that is not durable is lost, and requests must report that.
    pub(super) fn fail<M, B>(&mut self, t: &mut Tables<M, B>) {
        if self.session.fail(t.submitted) {
            t.counters.sync_failures += 1;
            t.ready.add(self.slot);
        }
    }

    /// A mapper that has died since had answered a request of the volume with a failed sync. That is final, although the request starts
    /// again with the successor, where it could succeed.
    pub(crate) fn on_late_sync_failure<M, B>(&mut self, t: &mut Tables<M, B>) {
        if self.session.has_writes() {
            self.fail(t);
        }
    }

    /// Nothing of the failing volume is in flight any more.
    pub(super) fn abandon_drained<M, B>(&mut self, t: &mut Tables<M, B>, limit: u64) {
        self.fail_drained(t, limit);
        let lost = self.driver.has_closed().then(|| self.loss()).flatten();
        self.session.abandon(lost);
    }

    /// The mapper was replaced and nothing is in flight: opens the volume again.
    pub(crate) fn recover<M: ClientPort, B: ClientPort>(&mut self, t: &mut Tables<M, B>) {
        let (mut attempt, mut lost) = (Attempt::Again, None);
        match &mut self.session {
            Session::Dead | Session::Broken(_) => return,
            Session::Failing { limit, .. } => {
                let limit = *limit;
                self.fail_drained(t, limit);
                attempt = Attempt::AfterLoss;
                lost = self.driver.has_closed().then(|| self.loss()).flatten();
            }
            session => {
                match session {
                    Session::Opening {
                        attempt: before, ..
                    }
                    | Session::Waiting { attempt: before } => attempt = *before,
                    Session::Abandoning { lost: why, .. } => {
                        (attempt, lost) = (Attempt::AfterLoss, why.take());
                    }
                    Session::Closing { lost: why, .. } => lost = why.take(),
                    _ => {}
                }
                self.forget_work(t);
                let writes = self.mode == OpenMode::Exclusive;
                self.flush.forget_round(&mut t.areas, writes);
                self.fail_snapshots(t, ErrorCode::Unavailable);
            }
        }
        if lost.is_some() && self.driver.is_answered() {
            // The session ended with the mapper, so there is nothing to abandon.
            return self.closed(t, lost);
        }
        self.session = Session::opening(attempt);
        t.ready.add(self.slot);
    }

    /// The volume has ended.
    pub(super) fn closed<M, B>(&mut self, t: &mut Tables<M, B>, lost: Option<Error>) {
        debug_assert!(
            self.driver.is_answered(),
            "a volume closes when its requests are done"
        );
        self.session = Session::Dead;
        let result = lost.map_or(Ok(()), Err);
        self.report(t, VolumeEvent::Closed { result });
    }

    /// Fails every request and every snapshot: there is no session, so none of them is in flight.
    pub(super) fn fail_unserved<M, B>(&mut self, t: &mut Tables<M, B>, code: ErrorCode) {
        self.space.forget_parked();
        self.flush.forget_waiting();
        self.cutter.clear();
        self.fail_snapshots(t, code);
        self.fail_requests(t, u64::MAX, code);
        t.ready.add(self.slot);
    }

    /// Whether the driver has closed the volume and all its requests are answered.
    pub(super) fn is_leaving(&self) -> bool {
        self.driver.has_closed() && self.driver.is_answered()
    }

    /// The error of a close, if acknowledged writes were lost and no flush has reported it.
    pub(super) fn loss(&self) -> Option<Error> {
        let what = "lost what was not flushed";
        self.flush
            .has_unreported_loss()
            .then(|| session_error(self.lineage, what, ErrorCode::SyncFailed))
    }

    fn opened<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        first: bool,
        size: u64,
        object_size: ObjectSize,
    ) {
        self.object_size = object_size;
        self.pieces.forget_lineages();
        let old_size = std::mem::replace(&mut self.size, size);
        if first {
            let info = VolumeInfo {
                lineage: self.lineage,
                size,
                object_size,
            };
            self.report(t, VolumeEvent::Opened { result: Ok(info) });
        } else if size != old_size {
            self.report(t, VolumeEvent::Resized { size });
            let lineage = self.lineage;
            t.control_events
                .push_back(ControlEvent::Resized { lineage });
        }
        if self.space.end_refusal() {
            self.found_room(t);
        }
        // Requests that arrived while there was no session are in the queues already.
        self.flush.forget_waiting();
        self.cutter.clear();
        let live = self.take_live(t);
        for r in &live {
            self.start_request(t, *r);
        }
        t.scratch = live;
        t.ready.add(self.slot);
    }

    fn open_failed<M, B>(&mut self, t: &mut Tables<M, B>, code: ErrorCode) {
        self.space.end_refusal();
        if self.session.is_open() {
            self.session = Session::Broken(code);
            return self.fail_unserved(t, code);
        }
        let error = session_error(self.lineage, "cannot be opened", code);
        self.report(t, VolumeEvent::Opened { result: Err(error) });
        if self.driver.has_closed() {
            return self.closed(t, None);
        }
        self.session = Session::Dead;
    }

    fn report<M, B>(&mut self, t: &mut Tables<M, B>, event: VolumeEvent) {
        self.driver.report(event);
        t.ready.kick();
    }

    /// Nothing of a failing volume is in flight any more: fails the requests submitted before number `limit`.
    fn fail_drained<M, B>(&mut self, t: &mut Tables<M, B>, limit: u64) {
        self.forget_work(t);
        let snapshots = self.fail_snapshots(t, ErrorCode::SyncFailed);
        self.snapshots.note_loss(snapshots);
        let reported = self.fail_requests(t, limit, ErrorCode::SyncFailed);
        // A close also reports the loss.
        let unreported = !reported || self.driver.has_closed();
        self.flush.abandon(&mut t.areas, unreported);
    }

    /// Fails the requests submitted before number `limit`; returns whether a flush was among them.
    fn fail_requests<M, B>(&mut self, t: &mut Tables<M, B>, limit: u64, code: ErrorCode) -> bool {
        let live = self.take_live(t);
        let mut flush = false;
        for r in &live {
            if t.requests[*r].sequence < limit {
                flush |= t.requests[*r].flushes();
                self.answer(t, *r, Err(code));
            }
        }
        t.scratch = live;
        flush
    }

    /// The session ended before the snapshots were made: fails all of them. Returns their number.
    fn fail_snapshots<M, B>(&mut self, t: &mut Tables<M, B>, code: ErrorCode) -> usize {
        let ended = self.snapshots.take_all();
        let before = t.control_events.len();
        t.control_events
            .extend(ended.map(|asked| asked.done(Err(code))));
        t.control_events.len() - before
    }

    /// Removes every piece and what waits for one. The requests start again or fail.
    fn forget_work<M, B>(&mut self, t: &mut Tables<M, B>) {
        self.pieces.forget_all(t);
        self.space.forget_parked();
        self.cutter.clear();
        self.in_flight.forget_map();
    }
}
