//! Writes without room in the pool: they wait until there is some, if the volume's policy says so, and as long as it says.
//!
//! A request that failed for want of space and may wait is *parked*: it keeps its slot and is not answered. The host calls
//! [`VolumePeer::look_for_space`] while [`VolumePeer::waits_for_space`]. One turn each [`SPACE_INTERVAL`], however often it is
//! called, starts one parked request of each volume again, from the beginning, as a probe. When the probe succeeds, all parked
//! requests of its volume start again.
//!
//! | [`Room`] | what finds no room | leaves it when |
//! |---|---|---|
//! | Enough | is parked, or answered at once if the policy is [`OnFull::Report`] | a turn finds something that waits: Short |
//! | Short | is parked | nothing waits for a second: Enough; the policy's limit is over: Over |
//! | Over | is answered at once | something found room, or another policy that waits is set: Enough |
//!
//! Invariants
//! - Nothing of a parked request is in flight, and it stands in no other queue.
//! - A volume without a session probes nothing but whether it can have one: its requests start again when it is opened again, the parked ones with them.
//!   While it is refused ([`Full::refuses`]), they are answered at once, and it is asked for all the same: service comes back with the room.
//! - A driver that gives up ([`OnFull::Report`], a close) is answered for each parked request at once.
//! - The limit is compared with the time since something of the volume last found room, not with how long one request has waited: a
//!   request that comes late waits for what is left, and one that comes after it does not wait.
//!
//! Starting from the beginning is safe for the reason given in `session`: a request that is not answered has no order among
//! those in flight with it. A probe for each volume, not all requests: a full pool costs a failing write each turn, whatever
//! the depth of the guest's queues; and the parked ones take turns, since there may be room for one and not for another.

use std::time::Duration;

use archipelago_protocol::volume::OnFull;
use archipelago_protocol::{ErrorCode, Lineage};
use xseg::ClientPort;

use crate::model::{Phase, State, Volume};
use crate::peer::VolumePeer;
use crate::slab::Queue;
use crate::snapshot::ControlEvent;

/// Between two turns: parked requests go on well within a second after there is room.
pub const SPACE_INTERVAL: Duration = Duration::from_millis(250);
/// Turns without a parked request after which a volume counts as served again: a volume at the edge of a full pool is
/// reported once, not with each block that somebody frees.
const CALM_TURNS: u8 = 4;

/// What a volume waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// Room for its writes, in the pool.
    Writes,
    /// Room for its open, in the pool.
    Session,
    /// Nothing any more: what finds no room fails at once, since the limit of the policy is over.
    Nothing,
    /// A file descriptor.
    Descriptor,
    /// Memory.
    Memory,
    /// Room in the run directory, for its presence journal.
    RunDirectory,
}

/// When the next turn is.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Some volume may wait. Set when one begins to, and found out by each turn.
    wanted: bool,
    due: Duration,
}

/// Whether the pool has had room for a volume, as far as its requests tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Enough,
    Short {
        /// The first turn that found something that waits.
        since: Duration,
        /// As `since`, or the first turn after something found room: what the limit counts from.
        limit_from: Duration,
        /// Something has found room since the last turn.
        found: bool,
        /// Turns that found nothing that waits.
        calm: u8,
    },
    Over {
        since: Duration,
    },
}

/// Whether there is room for what the begin of a session writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// As far as is known.
    Possible,
    /// There was none; the next turn asks again.
    Refused,
    /// There was none, and it is asked for again.
    Asked,
}

/// What waits for space in one volume.
#[derive(Debug)]
pub(crate) struct Full {
    policy: OnFull,
    parked: Queue,
    count: u32,
    begin: Begin,
    /// What there was none of the last time: a code that passes.
    lacks: ErrorCode,
    /// The request that was started again to find out.
    probe: Option<u32>,
    room: Room,
}

impl Default for Full {
    fn default() -> Self {
        Full {
            policy: OnFull::Report,
            parked: Queue::default(),
            count: 0,
            begin: Begin::Possible,
            lacks: ErrorCode::NoSpace,
            probe: None,
            room: Room::Enough,
        }
    }
}

impl Full {
    /// Whether there is nothing to do for it in a turn.
    fn is_idle(&self) -> bool {
        self.is_served() && !matches!(self.room, Room::Short { .. })
    }

    /// Whether nothing waits.
    fn is_served(&self) -> bool {
        self.count == 0 && self.probe.is_none() && self.begin == Begin::Possible
    }

    fn waits_for(&self) -> WaitsFor {
        if matches!(self.room, Room::Over { .. }) {
            return WaitsFor::Nothing;
        }
        match self.lacks {
            ErrorCode::NoDescriptors => WaitsFor::Descriptor,
            ErrorCode::NoMemory => WaitsFor::Memory,
            ErrorCode::NoRunSpace => WaitsFor::RunDirectory,
            _ if self.begin != Begin::Possible => WaitsFor::Session,
            _ => WaitsFor::Writes,
        }
    }

    /// Requests that are parked.
    pub(crate) fn parked(&self) -> u64 {
        u64::from(self.count)
    }

    /// Whether what finds no room is answered at once.
    fn refuses(&self) -> bool {
        self.policy == OnFull::Report || matches!(self.room, Room::Over { .. })
    }

    /// Whether no request can be served, and none may wait.
    pub(crate) fn refuses_all(&self) -> bool {
        self.begin != Begin::Possible && self.refuses()
    }

    /// Since when the volume has been without room; `None`: it is not.
    fn since(&self) -> Option<Duration> {
        match self.room {
            Room::Enough => None,
            Room::Short { since, .. } | Room::Over { since } => Some(since),
        }
    }

    /// A turn at `now`. Whether `room` has become another one.
    fn turn(&mut self, now: Duration) -> bool {
        let served = self.is_served();
        let limit = self.policy.limit();
        match &mut self.room {
            Room::Enough if served => return false,
            Room::Enough if self.policy == OnFull::Report => {
                self.room = Room::Over { since: now };
            }
            Room::Enough => {
                self.room = Room::Short {
                    since: now,
                    limit_from: now,
                    found: false,
                    calm: 0,
                };
            }
            Room::Short { calm, .. } if served => {
                *calm += 1;
                if *calm < CALM_TURNS {
                    return false;
                }
                self.room = Room::Enough;
            }
            Room::Short {
                since,
                limit_from,
                found,
                calm,
            } => {
                *calm = 0;
                if std::mem::take(found) {
                    *limit_from = now;
                }
                let waited = now.saturating_sub(*limit_from);
                if limit.is_none_or(|limit| waited < limit) {
                    return false;
                }
                self.room = Room::Over { since: *since };
            }
            Room::Over { .. } => return false,
        }
        true
    }
}

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// Parks request `r`, which failed with `code`. Whether it was: else it is to be answered.
    pub(crate) fn park(&mut self, r: u32, code: ErrorCode) -> bool {
        let volume = &mut self.volumes[self.requests[r].volume];
        if !code.passes() || volume.closing || volume.full.refuses() {
            return false;
        }
        debug_assert_ne!(self.requests[r].phase, Phase::Done);
        let full = &mut volume.full;
        full.lacks = code;
        let again = full.probe == Some(r);
        full.probe = full.probe.filter(|_| !again);
        full.parked.push(&mut self.requests, r);
        full.count += 1;
        self.space_turns.wanted = true;
        self.counters.space_waits += u64::from(!again);
        true
    }

    /// Request `r` of volume `v` was answered with `result`: was it the probe?
    pub(crate) fn note_probe(&mut self, v: u32, r: u32, result: Result<(), ErrorCode>) {
        let full = &mut self.volumes[v].full;
        if full.probe != Some(r) {
            return;
        }
        full.probe = None;
        if result.is_ok() {
            self.note_room(v);
            while let Some(parked) = self.unpark(v) {
                self.queue_request(parked);
            }
            self.make_ready(v);
        }
    }

    /// Something of `v` that needed room has found it.
    pub(crate) fn note_room(&mut self, v: u32) {
        let volume = &mut self.volumes[v];
        match &mut volume.full.room {
            Room::Enough => {}
            Room::Short { found, .. } => *found = true,
            Room::Over { .. } => {
                volume.full.room = Room::Enough;
                let lineage = volume.lineage;
                let event = ControlEvent::SpaceFound { lineage };
                self.control_events.push_back(event);
            }
        }
    }

    /// The mapper has no room for the session of `v`. Whether it is asked for again in the next turn.
    pub(crate) fn park_open(&mut self, v: u32, code: ErrorCode) -> bool {
        let volume = &mut self.volumes[v];
        let refuses = volume.full.refuses();
        // Who has never had it is told, and opens it again when it pleases.
        let told = refuses && !volume.opened;
        if !code.passes() || volume.closing || told {
            return false;
        }
        volume.full.lacks = code;
        // Asked already, as far as `advance` knows: the next turn asks again.
        (volume.full.begin, volume.asked) = (Begin::Refused, true);
        self.space_turns.wanted = true;
        if refuses {
            self.fail_waiting(v);
        }
        true
    }

    /// The session of `v` has begun, or there is no more waiting for it.
    pub(crate) fn note_begin(&mut self, v: u32, result: Result<(), ErrorCode>) {
        self.forget_parked(v);
        let full = &mut self.volumes[v].full;
        let refused = std::mem::replace(&mut full.begin, Begin::Possible) != Begin::Possible;
        if refused && result.is_ok() {
            self.note_room(v);
        }
    }

    /// The session of `v` is asked for anew, for another reason than a turn.
    pub(crate) fn note_asked(&mut self, v: u32) {
        let full = &mut self.volumes[v].full;
        if full.begin == Begin::Refused {
            full.begin = Begin::Asked;
        }
    }

    /// Asks for the session of `v` again, if that waits.
    fn reopen(&mut self, v: u32) {
        let volume = &mut self.volumes[v];
        if volume.full.begin == Begin::Refused {
            volume.full.begin = Begin::Asked;
            volume.asked = false;
            self.make_ready(v);
        }
    }

    fn unpark(&mut self, v: u32) -> Option<u32> {
        let full = &mut self.volumes[v].full;
        let r = full.parked.pop(&mut self.requests)?;
        full.count -= 1;
        Some(r)
    }

    /// Nothing of `v` is parked any more: its requests are queued again or answered by the caller.
    pub(crate) fn forget_parked(&mut self, v: u32) {
        let full = &mut self.volumes[v].full;
        (full.parked, full.count, full.probe) = (Queue::default(), 0, None);
    }

    /// Answers every parked request of `v`.
    fn fail_parked(&mut self, v: u32) {
        while let Some(r) = self.unpark(v) {
            self.finish(r, Err(ErrorCode::NoSpace));
        }
        self.make_ready(v);
    }

    /// Gives every parked request of `v` back to its driver, which may submit it again: not a failure that anybody sees.
    pub(crate) fn recall_parked(&mut self, v: u32) {
        self.counters.failed -= self.volumes[v].full.parked();
        self.fail_parked(v);
    }

    /// Answers every request of `v` that waits for room: the parked ones, and without a session all.
    fn fail_waiting(&mut self, v: u32) {
        if self.volumes[v].full.begin == Begin::Possible {
            self.fail_parked(v);
        } else {
            self.fail_unserved(v, ErrorCode::NoSpace);
        }
    }

    /// What `v` does from now on with writes for which there is no room.
    pub(crate) fn set_on_full(&mut self, v: u32, policy: OnFull) {
        let full = &mut self.volumes[v].full;
        let before = std::mem::replace(&mut full.policy, policy);
        match full.room {
            Room::Short { since, .. } if policy == OnFull::Report => {
                full.room = Room::Over { since };
            }
            // Those to come wait, as another policy says; the same again is no change.
            Room::Over { .. } if policy != before && policy != OnFull::Report => {
                full.room = Room::Enough;
            }
            _ => {}
        }
        if policy == OnFull::Report {
            self.reopen(v);
            self.fail_waiting(v);
        }
    }

    /// Whether [`VolumePeer::look_for_space`] has something to do.
    #[must_use]
    pub fn waits_for_space(&self) -> bool {
        self.space_turns.wanted
    }

    /// A turn, at `now`, if it is time for one: each volume with parked requests starts one of them again, or gives up when its
    /// time is over.
    pub fn look_for_space(&mut self, now: Duration) {
        if !self.space_turns.wanted || now < self.space_turns.due {
            return;
        }
        let mut waiting = std::mem::take(&mut self.scratch);
        waiting.clear();
        let waits = |volume: &Volume| !volume.full.is_idle();
        waiting.extend(
            self.volumes
                .iter()
                .filter(|(_, volume)| waits(volume))
                .map(|(v, _)| v),
        );
        // Before the volumes are looked at: what begins to wait meanwhile wants another turn.
        self.space_turns = Turns {
            wanted: false,
            due: now + SPACE_INTERVAL,
        };
        for v in &waiting {
            self.look_for_space_of(*v, now);
            self.space_turns.wanted |= waits(&self.volumes[*v]);
        }
        self.scratch = waiting;
    }

    fn look_for_space_of(&mut self, v: u32, now: Duration) {
        self.reopen(v);
        let volume = &mut self.volumes[v];
        let (lineage, serving) = (volume.lineage, volume.state == State::Serving);
        let full = &mut volume.full;
        let changed = full.turn(now);
        if changed {
            let waits_for = full.waits_for();
            let event = match full.room {
                Room::Enough => ControlEvent::SpaceFound { lineage },
                Room::Short { .. } | Room::Over { .. } => ControlEvent::NoSpace {
                    lineage,
                    waits_for,
                    policy: full.policy,
                },
            };
            self.control_events.push_back(event);
        }
        let full = &mut self.volumes[v].full;
        if full.refuses() {
            // Later ones are answered as they come.
            if changed {
                self.fail_waiting(v);
            }
        } else if serving
            && full.probe.is_none()
            && let Some(r) = self.unpark(v)
        {
            self.volumes[v].full.probe = Some(r);
            self.queue_request(r);
            self.make_ready(v);
        }
    }

    /// Volumes that are without room at `now`: for what, and for how long.
    pub fn without_space(
        &self,
        now: Duration,
    ) -> impl Iterator<Item = (Lineage, WaitsFor, Duration)> {
        self.volumes.iter().filter_map(move |(_, volume)| {
            let waited = now.saturating_sub(volume.full.since()?);
            Some((volume.lineage, volume.full.waits_for(), waited))
        })
    }
}
