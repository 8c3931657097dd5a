//! Flush rounds of one volume: which data is not durable, what the map does not have yet, and which requests wait for it.
//!
//! A round that writes back has these steps, strictly in order: `FlushBegin` returns the cut; the objects that completed writes dirtied are
//! synced; `FlushCommit` logs the cut; the requests that joined are answered. Each step starts when the previous one was answered.
//!
//! A round that journals has no syncs: its `FlushCommit` carries copies of all that was written since the last round ([`Copies`]), and the
//! objects stay dirty. The next round that writes back then sets [`FLAG_HOME`], even if nothing else is new: otherwise a replay could
//! overwrite a newer block, written in place and synced, with a journaled one.
//!
//! The sync of a snapshot takes the place of a round; it has neither cut nor commit.
//!
//! Where completed writes are durable, they dirty no objects and leave no copies. So a round has a cut and a commit if there is something
//! new for the map, and otherwise sends nothing.
//!
//! | round | sends | the answer leads to |
//! |---|---|---|
//! | Idle | | |
//! | Begin | `FlushBegin` | Syncing, Commit or the end: decided by the cut |
//! | Syncing | a sync for each object | Commit if there is a cut, else the end |
//! | Commit | `FlushCommit` | the end |
//!
//! Invariants
//! - A volume has one round at a time. Flushes that arrive while it runs join the next one (group commit).
//! - An object is marked dirty before the mapper gets the report of the write that dirtied it, and the dirty objects are taken after the
//!   cut was answered. So all data that the cut covers is in the objects that are synced.
//! - An object that is written while it is synced is dirty again afterwards.
//! - Whether a round journals is decided after the cut was answered. By then, each write that the cut covers has a copy, or makes the round
//!   write back. A close, the mapper's request for a round, and a missing area also make a round write back.
//! - If nothing is dirty and nothing is new for the map, nothing is sent; if only data is dirty, nothing is sent to the mapper.
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
    /// Its commit carries copies, if everything has a copy.
    Journal,
    /// It syncs objects.
    WriteBack,
}

/// The requests that a round answers, and its method.
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
    /// The syncs belong to a snapshot.
    Snapshot,
    Answer(Group),
    Commit(Commit),
}

/// The commit of a round.
#[derive(Debug, Clone, Copy)]
struct Commit {
    group: Group,
    /// The result of `FlushBegin`.
    cut: u64,
    /// Journaled data.
    area: Option<Area>,
}

/// The state of the round.
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

/// The result of a step of a round.
#[derive(Debug)]
#[must_use]
pub(crate) enum FlushEvent {
    /// The round continues, or waits.
    Continues,
    /// The round has ended: the requests that joined must be answered.
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
    /// The objects that completed writes dirtied.
    dirty: Dirty,
    /// Copies of what was written since the last round.
    copies: Copies,
    /// The mapper has got reports since the last `FlushBegin`.
    metadata_dirty: bool,
    /// The log has journaled blocks, and the mapper does not know yet that they are at their home location.
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
    /// A session has begun. `durable`: whether completed writes are durable on this pool.
    pub(crate) fn set_durable(&mut self, durable: bool) {
        self.durable = durable;
    }

    /// The copies of first writes: room for a copy is reserved before its write is sent. `None`: completed writes are durable.
    pub(crate) fn copies_of_writes(&mut self) -> Option<&mut Copies> {
        (!self.durable).then_some(&mut self.copies)
    }

    /// The copies of first writes, to release what is no longer needed.
    pub(crate) fn copies(&mut self) -> &mut Copies {
        &mut self.copies
    }

    /// A write of `offset` at `place` has completed, with or without a copy.
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

    /// The mapper answered a report, with `flags`. A report that failed may have had an effect.
    pub(crate) fn note_report(&mut self, flags: u32) {
        self.metadata_dirty = true;
        self.requested |= flags & FLAG_FLUSH_REQUESTED != 0;
    }

    /// Adds request `r`, which the next round answers.
    pub(crate) fn join(&mut self, requests: &mut Slab<Request>, r: u32) {
        requests[r].phase = Phase::Flushing;
        self.waiting.push(requests, r);
    }

    /// Removes the requests that wait for the next round: the caller queues them again, or answers them.
    pub(crate) fn forget_waiting(&mut self) {
        self.waiting = Queue::default();
    }

    /// Whether nothing is dirty or new, and no round runs.
    pub(crate) fn is_clean(&self) -> bool {
        let new = self.metadata_dirty || self.write_back_pending;
        self.dirty.is_empty() && !new && self.is_idle()
    }

    /// Whether no round runs.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.round, Round::Idle)
    }

    /// Whether there is something to start or send.
    pub(crate) fn has_work(&self) -> bool {
        match &self.round {
            Round::Idle => !self.waiting.is_empty() || self.requested,
            Round::Begin(_, call) | Round::Commit(_, call) => *call == Call::Due,
            Round::Syncing(syncs, _) => syncs.sent < syncs.of.syncs(),
        }
    }

    /// Whether a loss of acknowledged writes has not been reported yet.
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
        // All dirty data is in the log.
        Some(self.end(group, None, Ok(())))
    }

    /// Starts the sync for a snapshot, in place of a round.
    pub(crate) fn start_for_snapshot(&mut self) -> FlushEvent {
        debug_assert!(self.is_idle());
        self.start_syncs(AfterSync::Snapshot)
    }

    /// The next request to send, on `session`.
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
                // Cleared before the answer arrives: what is reported from now on may not be in the cut.
                (self.metadata_dirty, self.requested) = (false, false);
            }
            Round::Syncing(syncs, _) => {
                syncs.sent += 1;
                syncs.in_flight += 1;
            }
            Round::Commit(_, call) => *call = Call::Sent,
        }
    }

    /// Handles the mapper's answer to the round's request. Journaled data is written to one of `areas` of the mapper's `arena`.
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
            // In these states, no request is at the mapper.
            (Round::Idle | Round::Syncing(..), _) => FlushEvent::Continues,
        }
    }

    /// Handles the blocker's answer to a sync of the round.
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

    /// The mapper has died, which ends the round: what the round did not finish is dirty and new again. The caller queues its requests
    /// again. `metadata_dirty`: whether the mapper may have had reports.
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

    /// A sync failed, and nothing is in flight any more: the dirty objects are forgotten, so that no later sync covers them.
    pub(crate) fn abandon(&mut self, areas: &mut Areas, unreported_loss: bool) {
        self.forget_round(areas, true);
        *self = Flush {
            durable: self.durable,
            metadata_dirty: true,
            unreported_loss,
            ..Flush::default()
        };
    }

    /// The cut is known: send copies with the commit, or sync.
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
                // Writes that have a copy were not reported yet: they belong to the next round.
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

    /// Everything that the round covers is durable.
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
            // The copies are only at their home location, and it is not known whether the log contains them.
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
