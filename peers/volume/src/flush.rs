//! Flush rounds: what is dirty, what is new to the map, and who waits for it.
//!
//! An ordinary round, strictly in this order: `FlushBegin` gives the cut; the containers that completed writes dirtied are
//! synced; `FlushCommit` logs the cut; whoever joined is answered. Each step starts when the one before was answered.
//!
//! A carrying round has no syncs: its `FlushCommit` hands over copies of all that was written since the last round
//! (`carry`), and the containers stay dirty. The next ordinary round then says [`FLAG_HOME`], also if nothing else is
//! new: without that a replay could put a carried block over a newer one that was written in place and synced.
//!
//! Invariants
//! - One round at a time in a volume. Flushes that come while it runs join the next one (group commit).
//! - A container is dirty before the mapper hears of the write that dirtied it, and the dirty ones are taken after the
//!   cut was answered: so all data that the cut covers is in the containers that are synced.
//! - A container that is dirtied while it is synced is dirty again afterwards.
//! - Whether a round carries is decided after the cut was answered: each write that the cut covers has a copy by then, or
//!   makes the round an ordinary one. So do a close, the mapper's wish for a round, and a missing area.
//! - Nothing is asked of anybody when nothing is dirty and nothing is new; only the mapper is spared if nothing is new.

use archipelago_protocol::map::{FLAG_HOME, MapOp, MapReply, MapRequest};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{Epoch, ErrorCode, Lineage};
use xseg::ClientPort;

use crate::carry::{Carry, Slots};
use crate::model::{Phase, Place};
use crate::peer::{Kind, VolumePeer};
use crate::slab::Queue;

/// Containers that are synced one by one: eight syncs in flight cost about what one sync of the pool does.
pub(crate) const SYNCS_MAX: usize = 8;
/// Bytes of a container, the unit of a sync: 64 GiB of volume.
const CONTAINER_LOG2: u32 = 36;

/// What one sync makes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Container {
    lineage: Lineage,
    epoch: Epoch,
    number: u64,
}

/// The containers that hold completed writes which are not durable yet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dirty {
    containers: [Container; SYNCS_MAX],
    count: usize,
    /// More than fit: the whole pool is synced.
    pool: bool,
}

impl Dirty {
    fn add(&mut self, container: Container) {
        let known = &self.containers[..self.count];
        if self.pool || known.contains(&container) {
            return;
        }
        match self.containers.get_mut(self.count) {
            Some(slot) => {
                *slot = container;
                self.count += 1;
            }
            None => self.pool = true,
        }
    }

    fn add_all(&mut self, other: &Dirty) {
        self.pool |= other.pool;
        for container in &other.containers[..other.count] {
            self.add(*container);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0 && !self.pool
    }

    /// Syncs that it takes.
    fn syncs(&self) -> usize {
        if self.pool { 1 } else { self.count }
    }

    fn request(&self, index: usize) -> ObjectRequest {
        if self.pool {
            return ObjectRequest::new(ObjectOp::SyncPool, ObjectId::head(Lineage::CATALOGUE));
        }
        let Container {
            lineage,
            epoch,
            number,
        } = self.containers[index];
        let id = ObjectId::data(lineage, epoch);
        ObjectRequest {
            offset: number << CONTAINER_LOG2,
            ..ObjectRequest::new(ObjectOp::Sync, id)
        }
    }
}

/// How far the round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Round {
    #[default]
    Idle,
    /// `FlushBegin` is to be sent.
    Begin,
    Beginning,
    /// Syncs are to be sent, or are in flight.
    Syncing,
    /// `FlushCommit` is to be sent.
    Commit,
    Committing,
}

/// The flush side of a volume.
#[derive(Debug, Default)]
pub(crate) struct Flush {
    /// Dirtied by completed writes.
    pub(crate) dirty: Dirty,
    /// Copies of what was written since the last round.
    pub(crate) carry: Carry,
    /// The log carries blocks of which the mapper was not told that they are home.
    home_due: bool,
    /// Taken by the round.
    syncing: Dirty,
    /// The mapper was told of something since the last `FlushBegin`.
    pub(crate) news: bool,
    /// Acknowledged writes were lost and no flush has heard of it: the next one fails.
    pub(crate) untold: bool,
    /// The mapper asks for a round.
    pub(crate) soon: bool,
    /// Requests for the next round.
    pub(crate) waiting: Queue,
    /// Requests of this round.
    joined: Queue,
    pub(crate) round: Round,
    /// The round is a snapshot's sync: no cut, no commit.
    for_snapshot: bool,
    /// The round syncs containers, whatever could be carried.
    ordinary: bool,
    /// What the round carries: offset and length of its area in the mapper channel's arena.
    area: Option<(u64, u64)>,
    sent: usize,
    in_flight: usize,
    failed: bool,
    /// What `FlushBegin` said, if there is something to commit.
    cut: Option<u64>,
}

impl Flush {
    /// A write to `place` has completed, with a copy or not.
    pub(crate) fn mark_dirty(&mut self, place: Place, offset: u64, copy: Option<Slots>) {
        match copy {
            Some(slots) => self.carry.complete(slots, offset, place.epoch),
            None => self.carry.plain = true,
        }
        self.dirty.add(Container {
            lineage: place.lineage,
            epoch: place.epoch,
            number: offset >> CONTAINER_LOG2,
        });
    }

    /// Whether a round would have anything to make durable.
    pub(crate) fn is_clean(&self) -> bool {
        self.dirty.is_empty() && !self.news && !self.home_due && self.round == Round::Idle
    }

    pub(crate) fn has_work(&self) -> bool {
        match self.round {
            Round::Idle => !self.waiting.is_empty() || self.soon,
            Round::Begin | Round::Commit => true,
            Round::Syncing => self.sent < self.syncing.syncs(),
            Round::Beginning | Round::Committing => false,
        }
    }

    /// Forgets the round: what it did not finish is dirty and new again. Requests are queued again by the caller.
    pub(crate) fn forget_round(&mut self) {
        let syncing = std::mem::take(&mut self.syncing);
        self.dirty.add_all(&syncing);
        let (dirty, untold) = (self.dirty, self.untold);
        *self = Flush {
            dirty,
            untold,
            carry: Carry::without_copies(),
            news: true,
            ..Flush::default()
        };
    }
}

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// Starts a round or sends what the one that runs calls for. Whether anything moved.
    pub(crate) fn advance_flush(&mut self, v: u32) -> bool {
        let mut moved = false;
        loop {
            let flush = &mut self.volumes[v].flush;
            let stepped = match flush.round {
                Round::Idle => self.start_round(v),
                Round::Begin => {
                    let request = MapRequest::new(MapOp::FlushBegin, self.volumes[v].session);
                    // Cleared before the answer: what is reported from now on may not be in the cut.
                    self.send_map(v, Kind::Round, v, request) && {
                        let flush = &mut self.volumes[v].flush;
                        (flush.news, flush.soon, flush.round) = (false, false, Round::Beginning);
                        true
                    }
                }
                Round::Syncing if flush.sent < flush.syncing.syncs() => {
                    let request = flush.syncing.request(flush.sent);
                    self.send_object(v, Kind::Round, v, &request) && {
                        let flush = &mut self.volumes[v].flush;
                        flush.sent += 1;
                        flush.in_flight += 1;
                        true
                    }
                }
                Round::Commit => {
                    let cut = flush.cut.unwrap_or_default();
                    let (offset, len) = flush.area.unwrap_or_default();
                    let flags = if flush.ordinary { FLAG_HOME } else { 0 };
                    let session = self.volumes[v].session;
                    let request = MapRequest {
                        flags,
                        offset,
                        len,
                        operand: [cut, 0],
                        ..MapRequest::new(MapOp::FlushCommit, session)
                    };
                    self.send_map(v, Kind::Round, v, request) && {
                        self.volumes[v].flush.round = Round::Committing;
                        true
                    }
                }
                Round::Beginning | Round::Syncing | Round::Committing => false,
            };
            if !stepped {
                return moved;
            }
            moved = true;
        }
    }

    fn start_round(&mut self, v: u32) -> bool {
        let volume = &mut self.volumes[v];
        if volume.snapshots.take_drained(volume.located) {
            volume.flush.for_snapshot = true;
            self.start_syncs(v);
            return true;
        }
        let flush = &mut volume.flush;
        let leaving = volume.closing && volume.live == 0 && !flush.is_clean();
        if flush.waiting.is_empty() && !flush.soon && !leaving {
            return false;
        }
        flush.for_snapshot = false;
        flush.joined = std::mem::take(&mut flush.waiting);
        self.counters.flush_rounds += 1;
        if flush.untold && !flush.joined.is_empty() {
            flush.untold = false;
            self.end_round(v, Err(ErrorCode::SyncFailed));
            return true;
        }
        flush.ordinary = flush.soon || leaving || flush.carry.plain;
        if flush.news || flush.ordinary && flush.home_due {
            flush.round = Round::Begin;
        } else if flush.ordinary {
            flush.soon = false;
            self.start_syncs(v);
        } else {
            // All that is dirty is in the log.
            self.end_round(v, Ok(()));
        }
        true
    }

    /// The cut was taken: hand copies over, or sync.
    fn carry_or_sync(&mut self, v: u32) {
        let flush = &mut self.volumes[v].flush;
        flush.ordinary |= flush.carry.plain;
        if flush.ordinary {
            return self.start_syncs(v);
        }
        if flush.cut.is_none() {
            // What has a copy was not reported yet: it is for the next round.
            return self.end_round(v, Ok(()));
        }
        if !flush.carry.is_empty() {
            let Some(at) = self.areas.pop() else {
                flush.ordinary = true;
                return self.start_syncs(v);
            };
            let len = flush.carry.hand_over(self.mapper.arena(), at);
            flush.area = Some((at, len));
            self.counters.carrying_rounds += 1;
        }
        flush.round = Round::Commit;
    }

    /// Gives the round's area back: nobody reads it any more.
    pub(crate) fn give_area(&mut self, v: u32) {
        if let Some((at, _)) = self.volumes[v].flush.area.take() {
            self.areas.push(at);
        }
    }

    fn start_syncs(&mut self, v: u32) {
        let flush = &mut self.volumes[v].flush;
        flush.syncing = std::mem::take(&mut flush.dirty);
        flush.carry.clear();
        (flush.sent, flush.in_flight, flush.failed) = (0, 0, false);
        flush.round = Round::Syncing;
        if flush.syncing.is_empty() {
            self.syncs_done(v);
        }
    }

    /// Everything that the round took is durable.
    fn syncs_done(&mut self, v: u32) {
        let flush = &mut self.volumes[v].flush;
        flush.syncing = Dirty::default();
        if flush.for_snapshot {
            flush.round = Round::Idle;
            self.volumes[v].snapshots.synced();
        } else if flush.cut.is_some() {
            flush.round = Round::Commit;
        } else {
            self.end_round(v, Ok(()));
        }
    }

    /// Answers all who joined.
    fn end_round(&mut self, v: u32, result: Result<(), ErrorCode>) {
        let carried = self.volumes[v].flush.area.is_some();
        self.give_area(v);
        let flush = &mut self.volumes[v].flush;
        flush.home_due = (flush.home_due && !flush.ordinary) || carried;
        flush.round = Round::Idle;
        flush.cut = None;
        let mut joined = std::mem::take(&mut flush.joined);
        if let Err(code) = result {
            // What was handed over is only at home now, and what the log has of it is not known.
            (flush.news, flush.home_due, flush.carry.plain) = (true, true, true);
            self.round_failed(v, code);
        }
        while let Some(r) = joined.pop(&mut self.requests) {
            debug_assert_eq!(self.requests[r].phase, Phase::Flushing);
            if !result.is_err_and(|code| self.park(r, code)) {
                self.finish(r, result);
            }
        }
    }

    pub(crate) fn round_map_reply(&mut self, v: u32, reply: MapReply) {
        let flush = &mut self.volumes[v].flush;
        match (flush.round, reply.result) {
            (_, Err(ErrorCode::SyncFailed)) => self.fail_volume(v),
            (Round::Beginning, Ok(something)) => {
                flush.cut = (something != 0).then_some(reply.values[0]);
                self.carry_or_sync(v);
            }
            (Round::Committing, Ok(_)) => self.end_round(v, Ok(())),
            (_, Err(code)) => self.end_round(v, Err(code)),
            (_, Ok(_)) => self.end_round(v, Err(ErrorCode::Internal)),
        }
    }

    pub(crate) fn round_object_reply(&mut self, v: u32, reply: ObjectReply) {
        let flush = &mut self.volumes[v].flush;
        flush.in_flight -= 1;
        flush.failed |= reply.result.is_err();
        if flush.failed {
            // Final: no later sync may turn it into success.
            self.fail_volume(v);
        } else if flush.in_flight == 0 && flush.sent == flush.syncing.syncs() {
            self.syncs_done(v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_containers_than_syncs_become_a_sync_of_the_pool() {
        let mut flush = Flush::default();
        let place = |epoch| Place {
            lineage: Lineage(1),
            epoch: Epoch(epoch),
        };
        for epoch in 0..8 {
            flush.mark_dirty(place(epoch), 5, None);
            flush.mark_dirty(place(epoch), 4096, None);
        }
        assert_eq!(flush.dirty.syncs(), 8);
        assert_eq!(flush.dirty.request(3).op, ObjectOp::Sync);
        flush.mark_dirty(place(0), 1 << 36, None);
        assert_eq!(
            (flush.dirty.syncs(), flush.dirty.request(0).op),
            (1, ObjectOp::SyncPool)
        );
    }

    #[test]
    fn what_a_forgotten_round_did_not_sync_is_dirty_again() {
        let mut flush = Flush::default();
        flush.mark_dirty(Place::default(), 0, None);
        flush.syncing = std::mem::take(&mut flush.dirty);
        flush.forget_round();
        assert_eq!(
            (flush.dirty.count, flush.news, flush.round),
            (1, true, Round::Idle)
        );
    }
}
