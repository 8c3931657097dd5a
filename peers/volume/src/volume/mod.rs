//! A volume that a driver opened: the parts that serve it, and how they work together.
//!
//! | part | owns |
//! |---|---|
//! | [`Driver`] | requests not answered, answers not collected |
//! | [`Session`] | the state of the session with the mapper |
//! | [`Cutter`] | requests not wholly cut |
//! | [`Pieces`] | pieces in progress at mapper and blocker |
//! | [`Flush`] | what is dirty, and the current round |
//! | [`Snapshots`] | snapshots in progress |
//! | [`Space`] | requests that wait for room in the pool |
//!
//! The parts do not refer to one another, except to those that are passed in a call. Their cooperation is defined here. This file contains
//! a volume's turn and the routing of answers; `requests` follows a request through the volume; `lifecycle` has open, close and failures;
//! `space` handles a full pool.

mod lifecycle;
mod requests;
mod space;

use archipelago_protocol::map::MapReply;
use archipelago_protocol::object::{ObjectReply, ObjectRequest};
use archipelago_protocol::volume::{OpenMode, VolumeEvent};
use archipelago_protocol::{ErrorCode, Lineage, ObjectSize};
use xseg::ClientPort;

use crate::cutter::Cutter;
use crate::driver::Driver;
use crate::flush::{Flush, FlushEvent, FlushRequest};
use crate::limits::QUANTUM;
use crate::pieces::{Pieces, Run};
use crate::ports::{InFlight, Waiter};
use crate::request::Phase;
use crate::session::{Session, session_error};
use crate::snapshot::{SnapshotEvent, SnapshotRequest, Snapshots};
use crate::space::Space;
use crate::submitter::Submitted;
use crate::tables::Tables;

/// A volume that a driver opened.
#[derive(Debug)]
pub(crate) struct Volume {
    slot: u32,
    lineage: Lineage,
    mode: OpenMode,
    size: u64,
    object_size: ObjectSize,
    /// A newer session owns the volume: this one writes nothing any more.
    stale: bool,
    driver: Driver,
    session: Session,
    in_flight: InFlight,
    cutter: Cutter,
    pieces: Pieces,
    flush: Flush,
    snapshots: Snapshots,
    space: Space,
}

impl Volume {
    /// A volume in slot `slot`, to be opened.
    pub(crate) fn new(slot: u32, lineage: Lineage, mode: OpenMode) -> Self {
        Volume {
            slot,
            lineage,
            mode,
            size: 0,
            object_size: ObjectSize::DEFAULT,
            stale: false,
            driver: Driver::default(),
            session: Session::first(),
            in_flight: InFlight::default(),
            cutter: Cutter::default(),
            pieces: Pieces::new(slot),
            flush: Flush::default(),
            snapshots: Snapshots::default(),
            space: Space::default(),
        }
    }

    /// The lineage of the volume.
    pub(crate) fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Whether its slot can be freed: the volume has ended, and its driver has collected everything.
    pub(crate) fn is_gone(&self) -> bool {
        self.session.is_dead() && self.driver.has_all()
    }

    /// Whether there is something to send as soon as there is a credit.
    pub(crate) fn has_work(&self) -> bool {
        match &self.session {
            Session::Serving { .. } => {
                self.pieces.has_work()
                    || !self.cutter.is_empty()
                    || self.flush.has_work()
                    || self.snapshots.has_work(self.pieces.writes())
            }
            Session::Failing { .. } => self.in_flight.is_empty(),
            Session::Broken(_) => self.driver.has_closed(),
            session => session.is_due(),
        }
    }

    /// The next event for the driver.
    pub(crate) fn next_event<M, B>(&mut self, t: &mut Tables<M, B>) -> Option<VolumeEvent> {
        self.driver.next_event(&mut t.requests)
    }

    /// Does one turn. Returns whether anything was sent or answered.
    pub(crate) fn advance<M: ClientPort, B: ClientPort>(&mut self, t: &mut Tables<M, B>) -> bool {
        match &self.session {
            Session::Serving { .. } => self.serve(t),
            Session::Failing { limit, .. } => {
                let limit = *limit;
                let drained = self.in_flight.is_empty();
                if drained {
                    self.abandon_drained(t, limit);
                }
                drained
            }
            Session::Broken(code) => {
                let code = *code;
                if self.driver.has_closed() {
                    let lost = session_error(self.lineage, "could not be opened again", code);
                    self.closed(t, Some(lost));
                }
                false
            }
            session => {
                let Some(request) = session.next_request(self.lineage, self.mode) else {
                    return false;
                };
                let waiter = Waiter::Session(self.slot);
                let sent = t.ports.send_map(&mut self.in_flight, waiter, &request);
                if sent {
                    self.session.sent();
                }
                sent
            }
        }
    }

    fn serve<M: ClientPort, B: ClientPort>(&mut self, t: &mut Tables<M, B>) -> bool {
        // Work in progress comes first, so that new requests do not use up the credits that become free.
        let mut moved = self.advance_flush(t);
        if !self.session.is_serving() {
            return true;
        }
        moved |= self.advance_snapshot(t);
        moved |= self.advance_pieces(t);
        moved |= self.advance_cutting(t);
        let leaving = self.is_leaving() && self.snapshots.is_idle();
        if self.session.is_serving() && leaving && self.flush.is_clean() {
            let lost = self.loss();
            self.session.close(lost);
            moved = true;
        }
        moved
    }

    /// Starts a round, or sends the requests of the current one, as far as possible. Returns whether anything was done.
    fn advance_flush<M: ClientPort, B: ClientPort>(&mut self, t: &mut Tables<M, B>) -> bool {
        let mut moved = false;
        loop {
            let stepped = if self.flush.is_idle() {
                self.start_round(t)
            } else {
                self.send_round(t)
            };
            if !stepped {
                return moved;
            }
            moved = true;
        }
    }

    fn start_round<M: ClientPort, B: ClientPort>(&mut self, t: &mut Tables<M, B>) -> bool {
        let event = if self.snapshots.take_drained(self.pieces.writes()) {
            self.flush.start_for_snapshot()
        } else if let Some(event) = self.flush.start(self.is_leaving()) {
            t.counters.flush_rounds += 1;
            event
        } else {
            return false;
        };
        self.on_flush_event(t, event);
        true
    }

    fn send_round<M: ClientPort, B: ClientPort>(&mut self, t: &mut Tables<M, B>) -> bool {
        let waiter = Waiter::Round(self.slot);
        let sent = match self.flush.next_request(self.session.id()) {
            None => false,
            Some(FlushRequest::ToMap(request)) => {
                t.ports.send_map(&mut self.in_flight, waiter, &request)
            }
            Some(FlushRequest::ToBlocker(request)) => {
                // On the handle through which the object was written.
                let request = ObjectRequest {
                    object_size: self.object_size,
                    ..request
                };
                match t.ports.open_for(&self.in_flight, &request) {
                    Some(handle) => {
                        let in_flight = &mut self.in_flight;
                        t.ports.send_object(in_flight, waiter, handle, &request)
                    }
                    None => false,
                }
            }
        };
        if sent {
            self.flush.sent();
        }
        sent
    }

    /// Sends the request of the current snapshot. Returns whether one was sent.
    fn advance_snapshot<M: ClientPort, B: ClientPort>(&mut self, t: &mut Tables<M, B>) -> bool {
        let Some(request) = self.snapshots.next_request(self.session.id()) else {
            return false;
        };
        let waiter = Waiter::Snapshot(self.slot);
        let sent = t.ports.send_map(&mut self.in_flight, waiter, &request);
        if sent {
            self.snapshots.sent();
        }
        sent
    }

    /// Sends requests of pieces, a few to each port. Returns whether any was sent.
    fn advance_pieces<M: ClientPort, B: ClientPort>(&mut self, t: &mut Tables<M, B>) -> bool {
        let mut moved = false;
        for _ in 0..QUANTUM {
            let submitted = self.pieces.send_to_blocker(
                t,
                &mut self.in_flight,
                self.object_size,
                self.flush.copies_of_writes(),
            );
            match submitted {
                Submitted::Nothing => break,
                Submitted::Sent => {}
                Submitted::Failed(p, code) => self.fail_piece(t, p, code),
            }
            moved = true;
        }
        let session = self.session.id();
        for _ in 0..QUANTUM {
            if !self.pieces.send_to_map(t, &mut self.in_flight, session) {
                break;
            }
            moved = true;
        }
        moved
    }

    /// Handles the mapper's answer.
    pub(crate) fn on_map_reply<M: ClientPort, B: ClientPort>(
        &mut self,
        t: &mut Tables<M, B>,
        waiter: Waiter,
        reply: &MapReply,
    ) {
        self.in_flight.map_done();
        t.ready.add(self.slot);
        if self.session.is_failing() {
            return;
        }
        match waiter {
            Waiter::Piece(p) => self.piece_map_reply(t, p, reply),
            Waiter::Session(_) => self.session_reply(t, reply),
            Waiter::Round(_) => {
                let Tables { ports, areas, .. } = t;
                let event = self.flush.map_reply(reply, areas, ports.map_arena());
                self.on_flush_event(t, event);
            }
            Waiter::Snapshot(_) => {
                let writes = self.pieces.writes_mut();
                match self.snapshots.reply(reply.result, writes) {
                    SnapshotEvent::Continues => {}
                    SnapshotEvent::SyncFailed => self.fail(t),
                    SnapshotEvent::Done(asked, result) => {
                        t.control_events.push_back(asked.done(result));
                    }
                }
            }
        }
    }

    /// Handles the blocker's answer.
    pub(crate) fn on_object_reply<M: ClientPort, B: ClientPort>(
        &mut self,
        t: &mut Tables<M, B>,
        waiter: Waiter,
        reply: &ObjectReply,
    ) {
        self.in_flight.object_done();
        t.ready.add(self.slot);
        if let Waiter::Piece(p) = waiter {
            self.pieces.note_written(t, &mut self.flush, p, reply);
        } else if t.ports.is_recovering() && reply.result.is_err() {
            // Final, although its round is forgotten: another sync would succeed without the data.
            self.fail(t);
        }
        // When nothing is in flight, requests start again or fail: until then, an answer only means that the memory is free.
        if t.ports.is_recovering() || self.session.is_failing() {
            return;
        }
        if let Waiter::Piece(p) = waiter {
            let run = self.pieces.object_reply(t, p, reply);
            self.on_run(t, p, run);
        } else {
            let event = self.flush.sync_reply(reply.result);
            self.on_flush_event(t, event);
        }
    }

    fn piece_map_reply<M, B>(&mut self, t: &mut Tables<M, B>, p: u32, reply: &MapReply) {
        let piece = &t.pieces[p];
        if piece.is_reporting() {
            self.flush.note_report(reply.flags);
            if piece.first && reply.result.is_ok() {
                self.found_room(t);
            }
        }
        let run = self.pieces.map_reply(t, self.lineage, p, reply);
        self.on_run(t, p, run);
    }

    fn on_run<M, B>(&mut self, t: &mut Tables<M, B>, p: u32, run: Result<Run, ErrorCode>) {
        match run {
            Ok(Run::Continues) => {}
            Ok(Run::Done) => {
                if let Some(r) = self.pieces.run_done(t, self.flush.copies(), p) {
                    self.data_done(t, r);
                }
            }
            Err(code) => self.fail_piece(t, p, code),
        }
    }

    /// The request fails with the first error of its pieces; its other pieces finish.
    fn fail_piece<M, B>(&mut self, t: &mut Tables<M, B>, p: u32, code: ErrorCode) {
        let piece = &t.pieces[p];
        self.stale |= code == ErrorCode::Stale && piece.is_for_write();
        if code == ErrorCode::SyncFailed {
            return self.fail(t);
        }
        let request = &mut t.requests[piece.request];
        request.result = request.result.and(Err(code));
        if let Some(r) = self.pieces.end(t, self.flush.copies(), p) {
            self.data_done(t, r);
        }
    }

    fn on_flush_event<M, B>(&mut self, t: &mut Tables<M, B>, event: FlushEvent) {
        match event {
            FlushEvent::Continues => {}
            FlushEvent::SnapshotSynced => self.snapshots.synced(),
            FlushEvent::SyncFailed => self.fail(t),
            FlushEvent::Ended { mut joined, result } => {
                if let Err(code) = result {
                    self.round_failed(code);
                }
                while let Some(r) = joined.pop(&mut t.requests) {
                    debug_assert_eq!(t.requests[r].phase, Phase::Flushing);
                    self.answer_or_park(t, r, result);
                }
            }
        }
    }

    /// Requests a snapshot of the volume, if it is open for writing. Returns whether it is.
    pub(crate) fn snapshot<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        lineage: Lineage,
        asked: SnapshotRequest,
    ) -> bool {
        let ended = matches!(self.session, Session::Dead | Session::Broken(_));
        let is_other = self.lineage != lineage || self.mode != OpenMode::Exclusive;
        if is_other || ended || self.driver.has_closed() {
            return false;
        }
        let lacks_writes =
            self.snapshots.take_unreported_loss() && self.flush.has_unreported_loss();
        let added = if lacks_writes {
            Err(ErrorCode::SyncFailed)
        } else {
            self.snapshots.add(asked)
        };
        match added {
            Ok(()) => t.ready.add(self.slot),
            Err(code) => t.control_events.push_back(asked.done(Err(code))),
        }
        true
    }
}
