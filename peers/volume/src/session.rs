//! Sessions with the mapper: open, close, what happens after a failed sync, and after the death of the mapper.
//!
//! * A failed sync: nothing more is sent for the volume; when nothing is in flight, every request that was submitted
//!   before the failure fails, the session is abandoned, the volume is opened again from what is durable, and goes on
//!   with what came meanwhile. If no flush was among those that failed (the sync was a snapshot's, or the mapper's own),
//!   the next one fails: it would cover writes that were acknowledged and are lost.
//! * A mapper that died (its port has another incarnation): when no object request of any volume is in flight, every
//!   volume is opened again, and its unfinished requests start from the beginning, in the order of submission. What was
//!   dirty stays dirty. Requests whose data was written and reported only wait for a flush again. If the open says that
//!   a sync failed, that is as above. So is a sync that fails while the mapper is dead: its successor hears of it.
//!
//! Starting from the beginning may write bytes a second time after a later, overlapping write of the same driver was
//! answered. Both were in flight together, so their order was never promised.

use archipelago_protocol::map::{FLAG_DROP, MapOp, MapReply, MapRequest};
use archipelago_protocol::volume::{OpenMode, VolumeEvent, VolumeInfo, VolumeOp};
use archipelago_protocol::{Error, ErrorCode, Lineage};
use xseg::ClientPort;

use crate::flush::{Flush, Round};
use crate::model::{State, Volume};
use crate::peer::{Kind, VolumePeer};
use crate::slab::Queue;
use crate::snapshot::ControlEvent;

fn refused(lineage: Lineage, what: &str, code: ErrorCode) -> Error {
    Error::new(code, format!("volume {lineage} {what}: {code}"))
}

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// Moves volume `v` as far as one turn goes. Whether anything moved.
    pub(crate) fn advance(&mut self, v: u32) -> bool {
        let volume = &self.volumes[v];
        match volume.state {
            State::Opening => {
                let mut request =
                    MapRequest::open(volume.lineage, volume.mode == OpenMode::Exclusive);
                if volume.dropped {
                    request.flags |= FLAG_DROP;
                }
                self.ask(v, request)
            }
            State::Abandoning => self.ask(v, MapRequest::new(MapOp::Abandon, volume.session)),
            State::Closing => self.ask(v, MapRequest::new(MapOp::Close, volume.session)),
            State::Failing(limit) => {
                let drained = volume.map_in_flight + volume.object_in_flight == 0;
                if drained {
                    self.fail_drained(v, limit);
                    self.volumes[v].state = State::Abandoning;
                }
                drained
            }
            State::Serving => self.serve(v),
            State::Broken(code) => {
                if volume.closing {
                    self.closed(
                        v,
                        Some(refused(volume.lineage, "could not be opened again", code)),
                    );
                }
                false
            }
            State::Dead => false,
        }
    }

    /// Sends the session request that the state calls for, once.
    fn ask(&mut self, v: u32, request: MapRequest) -> bool {
        let sent = !self.volumes[v].asked && self.send_map(v, Kind::Session, v, request);
        self.volumes[v].asked |= sent;
        sent
    }

    fn serve(&mut self, v: u32) -> bool {
        // What others wait for goes first: credits that come free are not eaten by new requests.
        let mut moved = self.advance_flush(v);
        if self.volumes[v].state != State::Serving {
            return true;
        }
        moved |= self.advance_snapshot(v);
        moved |= self.advance_pieces(v);
        moved |= self.advance_cutting(v);
        let volume = &mut self.volumes[v];
        let leaving = volume.closing && volume.live == 0 && volume.snapshots.is_idle();
        if volume.state == State::Serving && leaving && volume.flush.is_clean() {
            if volume.flush.untold {
                let lineage = volume.lineage;
                volume.lost = Some(refused(
                    lineage,
                    "lost what was not flushed",
                    ErrorCode::SyncFailed,
                ));
            }
            (volume.state, volume.asked) = (State::Closing, false);
            moved = true;
        }
        moved
    }

    pub(crate) fn session_reply(&mut self, v: u32, reply: MapReply) {
        let volume = &mut self.volumes[v];
        volume.asked = false;
        let lineage = volume.lineage;
        match (volume.state, reply.result) {
            (State::Opening, Ok(session)) => match reply.object_size() {
                Some(object_size) => {
                    volume.session = session;
                    volume.object_size = object_size;
                    self.opened(v, reply.values[0]);
                }
                None => self.open_failed(v, ErrorCode::Internal),
            },
            // Guests only wait while nobody is there.
            (State::Opening, Err(ErrorCode::Unavailable)) if volume.opened => {}
            // What was not flushed is lost; the next open has what is durable. Once: a disk that fails for good ends it.
            (State::Opening, Err(ErrorCode::SyncFailed)) if volume.opened && !volume.reopened => {
                volume.reopened = true;
                self.fail_drained(v, u64::MAX);
                self.make_ready(v);
            }
            (State::Opening, Err(code)) => self.open_refused(v, code),
            (State::Abandoning, _) if volume.closing => {
                let lost = volume.lost.take();
                self.closed(v, lost);
            }
            (State::Abandoning, _) => volume.state = State::Opening,
            (State::Closing, Ok(_)) => {
                let lost = volume.lost.take();
                self.closed(v, lost);
            }
            (State::Closing, Err(code)) => {
                volume.lost = Some(refused(lineage, "could not be closed", code));
                volume.state = State::Abandoning;
            }
            _ => {}
        }
    }

    fn opened(&mut self, v: u32, size: u64) {
        let volume = &mut self.volumes[v];
        volume.state = State::Serving;
        (volume.dropped, volume.reopened) = (false, false);
        volume.lineages.clear();
        let first = !std::mem::replace(&mut volume.opened, true);
        let old_size = std::mem::replace(&mut volume.size, size);
        if first {
            let info = VolumeInfo {
                lineage: volume.lineage,
                size,
                object_size: volume.object_size,
            };
            self.tell(v, VolumeEvent::Opened { result: Ok(info) });
        } else if size != old_size {
            self.tell(v, VolumeEvent::Resized { size });
            let lineage = self.volumes[v].lineage;
            self.control_events
                .push_back(ControlEvent::Resized { lineage });
        }
        self.note_begin(v, Ok(()));
        let live = self.collect_live(v);
        // What came while there was no session stands in the queues already.
        let volume = &mut self.volumes[v];
        (volume.flush.waiting, volume.cutting) = (Queue::default(), Queue::default());
        for r in &live {
            self.queue_request(*r);
        }
        self.scratch = live;
        self.make_ready(v);
    }

    fn open_refused(&mut self, v: u32, code: ErrorCode) {
        if !self.park_open(v, code) {
            self.open_failed(v, code);
        }
    }

    fn open_failed(&mut self, v: u32, code: ErrorCode) {
        self.note_begin(v, Err(code));
        let volume = &mut self.volumes[v];
        if volume.opened {
            volume.state = State::Broken(code);
            return self.fail_unserved(v, code);
        }
        let error = refused(volume.lineage, "cannot be opened", code);
        let closing = volume.closing;
        self.tell(v, VolumeEvent::Opened { result: Err(error) });
        if closing {
            return self.closed(v, None);
        }
        self.volumes[v].state = State::Dead;
        self.free_if_dead(v);
    }

    /// Every request of `v` fails, and every snapshot: it has no session, so nothing of them is in flight.
    pub(crate) fn fail_unserved(&mut self, v: u32, code: ErrorCode) {
        self.forget_parked(v);
        let volume = &mut self.volumes[v];
        (volume.flush.waiting, volume.cutting) = (Queue::default(), Queue::default());
        self.fail_snapshots(v, code);
        self.fail_requests(v, u64::MAX, code);
        self.make_ready(v);
    }

    fn closed(&mut self, v: u32, lost: Option<Error>) {
        let volume = &mut self.volumes[v];
        debug_assert_eq!(volume.live, 0, "a volume closes when its requests are done");
        volume.state = State::Dead;
        self.tell(
            v,
            VolumeEvent::Closed {
                result: lost.map_or(Ok(()), Err),
            },
        );
        self.free_if_dead(v);
    }

    fn tell(&mut self, v: u32, event: VolumeEvent) {
        let volume = &mut self.volumes[v];
        if volume.listening {
            volume.events.push_back(event);
        }
        self.kicked = true;
    }

    /// Frees the slot of a volume whose last event was collected.
    pub(crate) fn free_if_dead(&mut self, v: u32) {
        let volume = &self.volumes[v];
        if volume.state == State::Dead && volume.events.is_empty() && volume.done.is_empty() {
            self.volumes.remove(v);
        }
    }

    /// The volume has another size; smaller ones are for volumes that nobody has open and are ignored.
    pub fn resized(&mut self, lineage: Lineage, size: u64) {
        let grown =
            |volume: &Volume| volume.lineage == lineage && volume.opened && volume.size < size;
        loop {
            let found = self
                .volumes
                .iter()
                .find(|(_, volume)| grown(volume))
                .map(|(v, _)| v);
            let Some(v) = found else { return };
            self.volumes[v].size = size;
            self.tell(v, VolumeEvent::Resized { size });
        }
    }

    /// A round of `v` failed otherwise than by a sync: those who joined are told by the caller.
    pub(crate) fn round_failed(&mut self, v: u32, code: ErrorCode) {
        let volume = &mut self.volumes[v];
        volume.stale |= code == ErrorCode::Stale;
        if volume.closing && volume.live == 0 && code.passes() {
            // A close takes less room than a flush, and drops nothing for want of it.
            (volume.state, volume.asked) = (State::Closing, false);
        } else if volume.closing && volume.live == 0 {
            volume.lost = Some(refused(
                volume.lineage,
                "could not be flushed at its close",
                code,
            ));
            (volume.state, volume.asked) = (State::Abandoning, false);
        }
    }

    /// A sync failed. What is not durable is lost, and nothing may pretend otherwise.
    pub(crate) fn fail_volume(&mut self, v: u32) {
        let volume = &mut self.volumes[v];
        if !matches!(volume.state, State::Failing(_)) {
            self.counters.sync_failures += 1;
            volume.state = State::Failing(self.next_sequence);
            self.make_ready(v);
        }
    }

    /// Nothing of a failing volume is in flight any more: requests older than `limit` fail.
    fn fail_drained(&mut self, v: u32, limit: u64) {
        self.wipe(v);
        self.give_area(v);
        self.fail_snapshots(v, ErrorCode::SyncFailed);
        let told = self.fail_requests(v, limit, ErrorCode::SyncFailed);
        let volume = &mut self.volumes[v];
        // What was dirty is abandoned, not to be synced by somebody later.
        volume.flush = Flush::default();
        volume.flush.news = true;
        volume.flush.untold = !told;
        volume.dropped = true;
        volume.asked = false;
        if volume.closing {
            volume.lost = Some(refused(
                volume.lineage,
                "lost what was not flushed",
                ErrorCode::SyncFailed,
            ));
        }
    }

    /// Requests of `v` older than `limit` fail; whether a flush was among them.
    fn fail_requests(&mut self, v: u32, limit: u64, code: ErrorCode) -> bool {
        let live = self.collect_live(v);
        let mut flush = false;
        for r in &live {
            let request = &self.requests[*r];
            if request.sequence < limit {
                flush |= request.op == VolumeOp::Flush || request.is_durable();
                self.finish(*r, Err(code));
            }
        }
        self.scratch = live;
        flush
    }

    /// Forgets every piece of `v` and what waits for them. Its requests start again or fail.
    fn wipe(&mut self, v: u32) {
        let mut pieces = std::mem::take(&mut self.scratch);
        pieces.clear();
        pieces.extend(
            self.pieces
                .iter()
                .filter(|(_, piece)| piece.volume == v)
                .map(|(p, _)| p),
        );
        for p in &pieces {
            if let Some(cell) = self.pieces.remove(*p).cell {
                self.arena.give(cell);
            }
        }
        self.scratch = pieces;
        self.forget_parked(v);
        let volume = &mut self.volumes[v];
        debug_assert_eq!(
            volume.object_in_flight, 0,
            "memory of requests in flight stays theirs"
        );
        volume.pieces = 0;
        volume.map_in_flight = 0;
        (volume.cutting, volume.blocked) = (Queue::default(), Queue::default());
        (volume.to_map, volume.to_object) = (Queue::default(), Queue::default());
        volume.merges.clear();
        volume.clears.clear();
        volume.active.clear();
        volume.located = [0; 2];
    }

    /// Looks whether the mapper was replaced. Whether it was.
    pub(crate) fn watch_mapper(&mut self) -> bool {
        let incarnation = self.mapper.incarnation();
        let replaced = incarnation != self.incarnation;
        if replaced {
            self.incarnation = incarnation;
            self.recovering = true;
            self.counters.mapper_restarts += 1;
        }
        replaced
    }

    /// Opens every volume again with the new mapper, when nothing is in flight. Whether that was done.
    pub(crate) fn recover(&mut self) -> bool {
        if !self.recovering || self.object_in_flight > 0 || !self.mapper.is_connected() {
            return false;
        }
        self.recovering = false;
        let mut open: Vec<u32> = self.volumes.iter().map(|(v, _)| v).collect();
        open.sort_by_key(|v| self.volumes[*v].handle >> 16);
        for v in open {
            match self.volumes[v].state {
                State::Dead | State::Broken(_) => continue,
                State::Failing(limit) => self.fail_drained(v, limit),
                State::Opening | State::Serving | State::Abandoning | State::Closing => {
                    self.wipe(v);
                    self.give_area(v);
                    let volume = &mut self.volumes[v];
                    volume.flush.forget_round();
                    volume.flush.news = volume.mode == OpenMode::Exclusive;
                    debug_assert_eq!(volume.flush.round, Round::Idle);
                    self.fail_snapshots(v, ErrorCode::Unavailable);
                }
            }
            let volume = &mut self.volumes[v];
            volume.asked = false;
            if let Some(lost) = volume.lost.take() {
                // Its session ended with the mapper: there is nothing left to abandon.
                self.closed(v, Some(lost));
                continue;
            }
            volume.state = State::Opening;
            self.note_asked(v);
            self.make_ready(v);
        }
        true
    }
}
