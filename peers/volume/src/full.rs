//! Writes without room in the pool: they wait until there is some, if the volume's policy says so.
//!
//! A request that failed for want of space and may wait is *parked*: it keeps its slot and is not answered. The host calls
//! [`VolumePeer::look_for_space`] while [`VolumePeer::waits_for_space`]. One turn each [`SPACE_INTERVAL`], however often it is
//! called, starts one parked request of each volume again, from the beginning, as a probe. When the probe succeeds, all parked
//! requests of its volume start again.
//!
//! Invariants
//! - Nothing of a parked request is in flight, and it stands in no other queue.
//! - A volume without a session probes nothing but whether it can have one: its requests start again when it is opened again, the parked ones with them.
//! - A driver that gives up ([`OnFull::Report`], a close) is answered for each parked request at once.
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
    /// Room for what an open volume needs, in the pool or in the run directory.
    Session,
}

/// When the next turn is.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Some volume may wait. Set when one begins to, and found out by each turn.
    wanted: bool,
    due: Duration,
}

/// What waits for space in one volume.
#[derive(Debug)]
pub(crate) struct Full {
    policy: OnFull,
    parked: Queue,
    count: u32,
    /// The session cannot begin before there is room for what its begin writes.
    unopened: bool,
    /// The request that was started again to find out.
    probe: Option<u32>,
    /// When the first turn found something parked, and turns since then that found nothing.
    since: Option<(Duration, u8)>,
}

impl Default for Full {
    fn default() -> Self {
        Full {
            policy: OnFull::Report,
            parked: Queue::default(),
            count: 0,
            unopened: false,
            probe: None,
            since: None,
        }
    }
}

impl Full {
    /// Whether there is nothing to do for it in a turn.
    fn is_idle(&self) -> bool {
        self.is_served() && self.since.is_none()
    }

    /// Whether nothing waits.
    fn is_served(&self) -> bool {
        self.count == 0 && self.probe.is_none() && !self.unopened
    }

    fn waits_for(&self) -> WaitsFor {
        if self.unopened {
            WaitsFor::Session
        } else {
            WaitsFor::Writes
        }
    }

    /// Requests that are parked.
    pub(crate) fn parked(&self) -> u64 {
        u64::from(self.count)
    }

    /// Whether a request that found no room may wait.
    fn may_wait(&self) -> bool {
        self.policy != OnFull::Report
    }

    /// How long the volume has been without room at `now`; `None`: it is not.
    fn waited(&self, now: Duration) -> Option<Duration> {
        self.since.map(|(since, _)| now.saturating_sub(since))
    }
}

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// Parks request `r`, which failed with `code`. Whether it was: else it is to be answered.
    pub(crate) fn park(&mut self, r: u32, code: ErrorCode) -> bool {
        let volume = &mut self.volumes[self.requests[r].volume];
        if code != ErrorCode::NoSpace || volume.closing || !volume.full.may_wait() {
            return false;
        }
        debug_assert_ne!(self.requests[r].phase, Phase::Done);
        let full = &mut volume.full;
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
            while let Some(parked) = self.unpark(v) {
                self.queue_request(parked);
            }
            self.make_ready(v);
        }
    }

    /// The mapper has no room for the session of `v`. Whether that is waited for.
    pub(crate) fn park_open(&mut self, v: u32, code: ErrorCode) -> bool {
        let volume = &mut self.volumes[v];
        if code != ErrorCode::NoSpace || !volume.full.may_wait() {
            return false;
        }
        // Asked already, as far as `advance` knows: the next turn asks again.
        (volume.full.unopened, volume.asked) = (true, true);
        self.space_turns.wanted = true;
        true
    }

    /// Asks for the session of `v` again, if that waits.
    fn reopen(&mut self, v: u32) {
        let volume = &mut self.volumes[v];
        if std::mem::take(&mut volume.full.unopened) {
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
        full.unopened = false;
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

    /// What `v` does from now on with writes for which there is no room.
    pub(crate) fn set_on_full(&mut self, v: u32, policy: OnFull) {
        self.volumes[v].full.policy = policy;
        if policy == OnFull::Report {
            self.reopen(v);
            self.fail_parked(v);
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
        let volume = &mut self.volumes[v];
        let (lineage, serving) = (volume.lineage, volume.state == State::Serving);
        let full = &mut volume.full;
        match (full.is_served(), &mut full.since) {
            (true, Some((_, calm))) if *calm + 1 < CALM_TURNS => *calm += 1,
            (true, since) => {
                *since = None;
                let event = ControlEvent::SpaceFound { lineage };
                self.control_events.push_back(event);
            }
            (false, Some((_, calm))) => *calm = 0,
            (false, since) => {
                *since = Some((now, 0));
                let waits_for = full.waits_for();
                let event = ControlEvent::NoSpace { lineage, waits_for };
                self.control_events.push_back(event);
            }
        }
        if self.volumes[v].full.is_served() {
            return;
        }
        self.reopen(v);
        let full = &mut self.volumes[v].full;
        let limit = match full.policy {
            OnFull::Wait { limit } => limit,
            OnFull::Report => Some(Duration::ZERO),
        };
        let over = full.waited(now).zip(limit);
        if over.is_some_and(|(waited, limit)| waited >= limit) {
            self.fail_parked(v);
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
            let waited = volume.full.waited(now)?;
            Some((volume.lineage, volume.full.waits_for(), waited))
        })
    }
}
