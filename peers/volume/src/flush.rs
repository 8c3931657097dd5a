//! Flush rounds of one volume: what is dirty, what the map does not have yet, and which requests wait for it.
//!
//! A round that writes back, strictly in this order: `FlushBegin` gives the cut; the objects that completed writes
//! dirtied are synced; `FlushCommit` logs the cut; the requests that joined are answered. Each step starts when the one
//! before was answered.
//!
//! A round that journals has no syncs: its `FlushCommit` hands over copies of all that was written since the last round
//! ([`Copies`]), and the objects stay dirty. The next round that writes back then sets [`FLAG_HOME`], also if nothing
//! else is new: without that a replay could put a journaled block over a newer one that was written in place and synced.
//!
//! The sync of a snapshot takes the place of a round and has neither cut nor commit.
//!
//! Where completed writes are durable, they dirty nothing and leave no copies. So a round has a cut and a commit if there is
//! something new to the map, and sends nothing otherwise.
//!
//! | round | sends | the answer leads to |
//! |---|---|---|
//! | Idle | | |
//! | Begin | `FlushBegin` | Syncing, Commit or the end: decided when the cut is known |
//! | Syncing | a sync for each object | Commit if there is a cut, else the end |
//! | Commit | `FlushCommit` | the end |
//!
//! Invariants
//! - One round at a time in a volume. Flushes that come while it runs join the next one (group commit).
//! - An object is dirty before the mapper gets the report of the write that dirtied it, and the dirty ones are taken
//!   after the cut was answered: so all data that the cut covers is in the objects that are synced.
//! - An object that is dirtied while it is synced is dirty again afterwards.
//! - Whether a round journals is decided after the cut was answered: each write that the cut covers has a copy by then, or
//!   makes the round write back. So do a close, the mapper's request for a round, and a missing area.
//! - Nothing is sent when nothing is dirty and nothing is new to the map; if only data is dirty, the mapper is spared.
//! - Whether completed writes are durable is known before the first write, from the answer to the open.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::map::{FLAG_FLUSH_REQUESTED, FLAG_HOME, MapOp, MapReply, MapRequest};
use archipelago_protocol::object::ObjectRequest;
use xseg::Region;

use crate::call::Call;
use crate::copies::{Area, Areas, Copies, Slots};
use crate::dirty::Dirty;
use crate::piece::Place;
use crate::request::{Phase, Request};
use crate::slab::{Queue, Slab};

/// How a round makes data durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// Its commit hands over copies, if there is one of everything.
    Journal,
    /// It syncs objects.
    WriteBack,
}

/// The requests that a round answers, and how it goes.
#[derive(Debug, Clone, Copy)]
struct Group {
    joined: Queue,
    method: Method,
}

/// The syncs of a round.
#[derive(Debug)]
struct Syncs {
    of: Dirty,
    sent: usize,
    in_flight: usize,
}

/// What follows the syncs.
#[derive(Debug, Clone, Copy)]
enum AfterSync {
    /// They were a snapshot's.
    Snapshot,
    Answer(Group),
    Commit(Commit),
}

/// The commit of a round.
#[derive(Debug, Clone, Copy)]
struct Commit {
    group: Group,
    /// What `FlushBegin` gave.
    cut: u64,
    /// Journaled data.
    area: Option<Area>,
}

/// How far the round is.
#[derive(Debug, Default)]
#[expect(
    clippy::large_enum_variant,
    reason = "one for each volume, moved a few times in a round"
)]
enum Round {
    #[default]
    Idle,
    Begin(Group, Call),
    Syncing(Syncs, AfterSync),
    Commit(Commit, Call),
}

/// What a round sends next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlushRequest {
    ToMap(MapRequest),
    ToBlocker(ObjectRequest),
}

/// What came of a step of a round.
#[derive(Debug)]
#[must_use]
pub(crate) enum FlushEvent {
    /// The round goes on, or waits.
    Continues,
    /// It has ended: the requests that joined are to be answered.
    Ended {
        joined: Queue,
        result: Result<(), ErrorCode>,
    },
    /// The sync for a snapshot has ended.
    SnapshotSynced,
    /// A sync failed. Final: no later sync may turn it into success.
    SyncFailed,
}

/// The flush side of a volume.
#[derive(Debug, Default)]
pub(crate) struct Flush {
    /// Completed writes are durable.
    durable: bool,
    /// Dirtied by completed writes.
    dirty: Dirty,
    /// Copies of what was written since the last round.
    copies: Copies,
    /// The mapper got reports since the last `FlushBegin`.
    metadata_dirty: bool,
    /// The log has journaled blocks of which the mapper does not know that they are at their home location.
    write_back_pending: bool,
    /// Acknowledged writes were lost and no flush has reported it: the next one fails.
    unreported_loss: bool,
    /// The mapper asks for a round.
    requested: bool,
    /// Requests for the next round.
    waiting: Queue,
    round: Round,
}

impl Flush {
    /// A session has begun, on a pool whose completed writes are durable or not.
    pub(crate) fn set_durable(&mut self, durable: bool) {
        self.durable = durable;
    }

    /// The copies that first writes leave: room for one is reserved before its write is sent. `None`: completed writes are durable.
    pub(crate) fn copies_of_writes(&mut self) -> Option<&mut Copies> {
        (!self.durable).then_some(&mut self.copies)
    }

    /// The copies of first writes, for what is not needed any more.
    pub(crate) fn copies(&mut self) -> &mut Copies {
        &mut self.copies
    }

    /// A write of `offset` at `place` has completed, with a copy or not.
    pub(crate) fn mark_dirty(&mut self, place: Place, offset: u64, copy: Option<Slots>) {
        if self.durable {
            debug_assert!(copy.is_none(), "nothing is copied where writes are durable");
            return;
        }
        match copy {
            Some(slots) => self.copies.complete(slots, offset, place.epoch),
            None => self.copies.lack_one(),
        }
        self.dirty.add(place);
    }

    /// The mapper answered a report, with these flags. A report that failed may have had an effect.
    pub(crate) fn note_report(&mut self, flags: u32) {
        self.metadata_dirty = true;
        self.requested |= flags & FLAG_FLUSH_REQUESTED != 0;
    }

    /// Request `r` is answered by the next round.
    pub(crate) fn join(&mut self, requests: &mut Slab<Request>, r: u32) {
        requests[r].phase = Phase::Flushing;
        self.waiting.push(requests, r);
    }

    /// Nobody waits for the next round: its requests are queued again, or answered, by the caller.
    pub(crate) fn forget_waiting(&mut self) {
        self.waiting = Queue::default();
    }

    /// Whether a round would have nothing to make durable, and none runs.
    pub(crate) fn is_clean(&self) -> bool {
        let new = self.metadata_dirty || self.write_back_pending;
        self.dirty.is_empty() && !new && self.is_idle()
    }

    /// Whether no round runs.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.round, Round::Idle)
    }

    /// Whether there is something to start or to send.
    pub(crate) fn has_work(&self) -> bool {
        match &self.round {
            Round::Idle => !self.waiting.is_empty() || self.requested,
            Round::Begin(_, call) | Round::Commit(_, call) => *call == Call::Due,
            Round::Syncing(syncs, _) => syncs.sent < syncs.of.syncs(),
        }
    }

    /// Whether a loss of acknowledged writes is unreported.
    pub(crate) fn has_unreported_loss(&self) -> bool {
        self.unreported_loss
    }

    /// Starts a round if somebody waits for one, or if `leaving` a volume that is not clean.
    pub(crate) fn start(&mut self, leaving: bool) -> Option<FlushEvent> {
        let leaving = leaving && !self.is_clean();
        if self.waiting.is_empty() && !self.requested && !leaving {
            return None;
        }
        let joined = std::mem::take(&mut self.waiting);
        let write_back = self.requested || leaving || !self.copies.has_all();
        let group = Group {
            joined,
            method: if write_back {
                Method::WriteBack
            } else {
                Method::Journal
            },
        };
        if self.unreported_loss && !joined.is_empty() {
            self.unreported_loss = false;
            return Some(self.end(group, None, Err(ErrorCode::SyncFailed)));
        }
        if self.metadata_dirty || write_back && self.write_back_pending {
            self.round = Round::Begin(group, Call::Due);
            return Some(FlushEvent::Continues);
        }
        if write_back {
            self.requested = false;
            return Some(self.start_syncs(AfterSync::Answer(group)));
        }
        // All that is dirty is in the log.
        Some(self.end(group, None, Ok(())))
    }

    /// Starts the sync for a snapshot in the place of a round.
    pub(crate) fn start_for_snapshot(&mut self) -> FlushEvent {
        debug_assert!(self.is_idle());
        self.start_syncs(AfterSync::Snapshot)
    }

    /// What is to be sent next, on `session`.
    pub(crate) fn next_request(&self, session: u32) -> Option<FlushRequest> {
        match &self.round {
            Round::Begin(_, Call::Due) => {
                let request = MapRequest::new(MapOp::FlushBegin, session);
                Some(FlushRequest::ToMap(request))
            }
            Round::Syncing(syncs, _) if syncs.sent < syncs.of.syncs() => {
                Some(FlushRequest::ToBlocker(syncs.of.sync(syncs.sent)))
            }
            Round::Commit(commit, Call::Due) => {
                let (offset, len) = commit.area.map(Area::named).unwrap_or_default();
                let home = commit.group.method == Method::WriteBack;
                let flags = if home { FLAG_HOME } else { 0 };
                let request = MapRequest {
                    flags,
                    offset,
                    len,
                    operand: [commit.cut, 0],
                    ..MapRequest::new(MapOp::FlushCommit, session)
                };
                Some(FlushRequest::ToMap(request))
            }
            _ => None,
        }
    }

    /// The request that [`Flush::next_request`] returned was sent.
    pub(crate) fn sent(&mut self) {
        match &mut self.round {
            Round::Idle => {}
            Round::Begin(_, call) => {
                *call = Call::Sent;
                // Before the answer: what is reported from now on may not be in the cut.
                (self.metadata_dirty, self.requested) = (false, false);
            }
            Round::Syncing(syncs, _) => {
                syncs.sent += 1;
                syncs.in_flight += 1;
            }
            Round::Commit(_, call) => *call = Call::Sent,
        }
    }

    /// The mapper's answer to what the round has sent. Journaled data goes into one of `areas` of the mapper's `arena`.
    pub(crate) fn map_reply(
        &mut self,
        reply: &MapReply,
        areas: &mut Areas,
        arena: &Region,
    ) -> FlushEvent {
        match (&self.round, reply.result) {
            (_, Err(ErrorCode::SyncFailed)) => FlushEvent::SyncFailed,
            (Round::Begin(group, _), Ok(something)) => {
                let (group, cut) = (*group, (something != 0).then_some(reply.values[0]));
                self.cut_taken(group, cut, areas, arena)
            }
            (Round::Begin(group, _), Err(code)) => {
                let group = *group;
                self.end(group, None, Err(code))
            }
            (Round::Commit(commit, _), result) => {
                let commit = *commit;
                if let Some(area) = commit.area {
                    areas.release(area);
                }
                self.end(commit.group, commit.area, result.map(|_| ()))
            }
            // Neither has a request with the mapper.
            (Round::Idle | Round::Syncing(..), _) => FlushEvent::Continues,
        }
    }

    /// The blocker's answer to a sync of the round.
    pub(crate) fn sync_reply(&mut self, result: Result<u32, ErrorCode>) -> FlushEvent {
        let Round::Syncing(syncs, after) = &mut self.round else {
            return FlushEvent::Continues;
        };
        syncs.in_flight -= 1;
        if result.is_err() {
            return FlushEvent::SyncFailed;
        }
        if syncs.in_flight == 0 && syncs.sent == syncs.of.syncs() {
            let after = *after;
            return self.synced(after);
        }
        FlushEvent::Continues
    }

    /// The mapper has died, and the round with it: what it did not finish is dirty and new again. Its requests are queued again by the
    /// caller. `metadata_dirty`: whether the mapper may have had reports.
    pub(crate) fn forget_round(&mut self, areas: &mut Areas, metadata_dirty: bool) {
        let mut dirty = self.dirty;
        match std::mem::take(&mut self.round) {
            Round::Syncing(syncs, _) => dirty.add_all(&syncs.of),
            Round::Commit(commit, _) => {
                if let Some(area) = commit.area {
                    areas.release(area);
                }
            }
            Round::Idle | Round::Begin(..) => {}
        }
        *self = Flush {
            dirty,
            copies: Copies::lost(),
            durable: self.durable,
            metadata_dirty,
            unreported_loss: self.unreported_loss,
            ..Flush::default()
        };
    }

    /// A sync failed, and nothing is in flight any more: what was dirty is abandoned, not to be synced by somebody later.
    pub(crate) fn abandon(&mut self, areas: &mut Areas, unreported_loss: bool) {
        self.forget_round(areas, true);
        *self = Flush {
            durable: self.durable,
            metadata_dirty: true,
            unreported_loss,
            ..Flush::default()
        };
    }

    /// The cut was taken: hand copies over, or sync.
    fn cut_taken(
        &mut self,
        mut group: Group,
        cut: Option<u64>,
        areas: &mut Areas,
        arena: &Region,
    ) -> FlushEvent {
        if !self.copies.has_all() {
            group.method = Method::WriteBack;
        }
        let Some(cut) = cut else {
            return match group.method {
                Method::WriteBack => self.start_syncs(AfterSync::Answer(group)),
                // What has a copy was not reported yet: it is for the next round.
                Method::Journal => self.end(group, None, Ok(())),
            };
        };
        let mut area = None;
        if group.method == Method::Journal && !self.copies.is_empty() {
            area = areas.acquire();
            match &mut area {
                Some(area) => self.copies.hand_over(arena, area),
                None => group.method = Method::WriteBack,
            }
        }
        let commit = Commit { group, cut, area };
        if group.method == Method::WriteBack {
            return self.start_syncs(AfterSync::Commit(commit));
        }
        self.round = Round::Commit(commit, Call::Due);
        FlushEvent::Continues
    }

    fn start_syncs(&mut self, after: AfterSync) -> FlushEvent {
        let syncs = Syncs {
            of: std::mem::take(&mut self.dirty),
            sent: 0,
            in_flight: 0,
        };
        self.copies.clear();
        if syncs.of.is_empty() {
            return self.synced(after);
        }
        self.round = Round::Syncing(syncs, after);
        FlushEvent::Continues
    }

    /// Everything that the round took is durable.
    fn synced(&mut self, after: AfterSync) -> FlushEvent {
        match after {
            AfterSync::Snapshot => {
                self.round = Round::Idle;
                FlushEvent::SnapshotSynced
            }
            AfterSync::Answer(group) => self.end(group, None, Ok(())),
            AfterSync::Commit(commit) => {
                self.round = Round::Commit(commit, Call::Due);
                FlushEvent::Continues
            }
        }
    }

    fn end(
        &mut self,
        group: Group,
        journaled: Option<Area>,
        result: Result<(), ErrorCode>,
    ) -> FlushEvent {
        self.round = Round::Idle;
        let pending = self.write_back_pending && group.method == Method::Journal;
        self.write_back_pending = pending || journaled.is_some();
        if result.is_err() {
            // What was handed over is at its home location only, and what the log has of it is not known.
            self.metadata_dirty = true;
            self.write_back_pending = true;
            self.copies.lack_one();
        }
        FlushEvent::Ended {
            joined: group.joined,
            result,
        }
    }
}

#[cfg(test)]
mod tests;
