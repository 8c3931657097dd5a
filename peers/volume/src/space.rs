//! The policy of one volume when the pool is full: writes without space wait until there is some, if the policy allows it, and for as long
//! as it allows.
//!
//! A request that failed because there was no space, and that may wait, is *parked*: it keeps its slot and is not answered. While something
//! waits, the host calls [`VolumePeer::look_for_space`](crate::VolumePeer::look_for_space). Turns are [`SPACE_INTERVAL`] apart, however
//! often the host calls. In a turn, each volume starts one of its parked requests again from the beginning, as a probe. When the probe
//! succeeds, all parked requests of that volume start again.
//!
//! | [`Room`] | a request without room | becomes |
//! |---|---|---|
//! | Enough | is parked, or answered at once if the policy is [`OnFull::Report`] | Short, in a turn in which something waits |
//! | Short | is parked | Enough, when nothing has waited for a second; Over, when the limit of the policy has passed |
//! | Over | is answered at once | Enough, when something found room, or another policy that waits is set |
//!
//! Invariants
//! - No part of a parked request is in flight, and it is in no other queue.
//! - A volume without a session only probes whether it can get one: when it is open again, its requests start again, also the parked ones.
//!   While the policy answers at once ([`Space::refuses`]), requests are answered, but the volume still asks for a session: it is served
//!   again as soon as there is space.
//! - If a driver gives up ([`OnFull::Report`], a close), each parked request is answered at once.
//! - The limit is compared with the time since a request of the volume last found room, not with the time that one request has waited: a
//!   late request waits for the remaining time, and a request after the limit does not wait.
//!
//! It is safe to start a request from the beginning, for the reason given in `volume::lifecycle`: a request that is not answered has no
//! order among those in flight with it. Each volume sends one probe, not all its requests: so a full pool costs one failing write per turn,
//! however deep the guest's queues are. Parked requests take turns as the probe, since there may be room for one but not for another.

use std::time::Duration;

use archipelago_protocol::volume::OnFull;
use archipelago_protocol::{ErrorCode, Lineage};

use crate::control_event::{ControlEvent, WaitsFor};
use crate::request::{Phase, Request};
use crate::slab::{Queue, Slab};

/// Time between two turns: parked requests continue well within a second once there is room.
pub const SPACE_INTERVAL: Duration = Duration::from_millis(250);
/// Turns without a parked request after which a volume counts as served: so a volume in a pool that is nearly full is reported once, and
/// not for each block that becomes free.
const CALM_TURNS: u8 = 4;

/// Time of the next turn of all volumes.
#[derive(Debug, Default)]
pub(crate) struct SpaceTurns {
    /// Some volume may wait. Set when a volume begins to wait, and updated by each turn.
    wanted: bool,
    due: Duration,
}

impl SpaceTurns {
    /// A volume begins to wait.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// Whether a volume may wait.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether a turn is due at `now`. If so, it is taken, and the next one must be requested.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        if !self.wanted || now < self.due {
            return false;
        }
        *self = SpaceTurns {
            wanted: false,
            due: now + SPACE_INTERVAL,
        };
        true
    }
}

/// Whether the pool has had room for a volume, according to the results of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Enough,
    Short {
        /// Time of the first turn in which a request waited.
        since: Duration,
        /// As `since`, or the first turn after a request found room: the limit counts from here.
        limit_from: Duration,
        /// A request has found room since the last turn.
        found: bool,
        /// Turns in a row in which nothing waited.
        calm: u8,
    },
    Over {
        since: Duration,
    },
}

/// Whether a request was parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// It is to be answered.
    No,
    /// It waits for the first time.
    First,
    /// It waits again: it was the probe.
    Again,
}

/// What waits for space in one volume.
#[derive(Debug)]
pub(crate) struct Space {
    policy: OnFull,
    parked: Queue,
    count: u32,
    /// There was no room for what the start of a session writes, and no session has started since.
    session_refused: bool,
    /// What was missing the last time: a temporary error code.
    lacks: ErrorCode,
    /// The request that was started again as a probe.
    probe: Option<u32>,
    room: Room,
}

impl Default for Space {
    fn default() -> Self {
        Space {
            policy: OnFull::Report,
            parked: Queue::default(),
            count: 0,
            session_refused: false,
            lacks: ErrorCode::NoSpace,
            probe: None,
            room: Room::Enough,
        }
    }
}

impl Space {
    /// Parks request `r`, which failed with `code`, if the error is temporary and the policy allows it.
    pub(crate) fn park(&mut self, requests: &mut Slab<Request>, r: u32, code: ErrorCode) -> Parked {
        if !code.passes() || self.refuses() {
            return Parked::No;
        }
        debug_assert_ne!(requests[r].phase, Phase::Done);
        self.lacks = code;
        let again = self.probe == Some(r);
        self.probe = self.probe.filter(|_| !again);
        self.parked.push(requests, r);
        self.count += 1;
        if again { Parked::Again } else { Parked::First }
    }

    /// Takes the parked request that has waited longest.
    pub(crate) fn unpark(&mut self, requests: &mut Slab<Request>) -> Option<u32> {
        let r = self.parked.pop(requests)?;
        self.count -= 1;
        Some(r)
    }

    /// Takes a parked request to start again, if a probe is due.
    pub(crate) fn take_probe(&mut self, requests: &mut Slab<Request>) -> Option<u32> {
        if self.refuses() || self.probe.is_some() {
            return None;
        }
        self.probe = self.unpark(requests);
        self.probe
    }

    /// Request `r` was answered. Returns whether it was the probe.
    pub(crate) fn take_answer(&mut self, r: u32) -> bool {
        let is_probe = self.probe == Some(r);
        if is_probe {
            self.probe = None;
        }
        is_probe
    }

    /// Removes all parked requests: the caller queues them again, or answers them.
    pub(crate) fn forget_parked(&mut self) {
        (self.parked, self.count, self.probe) = (Queue::default(), 0, None);
    }

    /// Something that needed room has found it. Returns whether this must be reported.
    pub(crate) fn found_room(&mut self) -> bool {
        match &mut self.room {
            Room::Enough => false,
            Room::Short { found, .. } => {
                *found = true;
                false
            }
            Room::Over { .. } => {
                self.room = Room::Enough;
                true
            }
        }
    }

    /// The start of a session was refused with `code`, for want of room.
    pub(crate) fn refuse_session(&mut self, code: ErrorCode) {
        self.lacks = code;
        self.session_refused = true;
    }

    /// A session has started, or none is wanted any more. Returns whether one had been refused.
    pub(crate) fn end_refusal(&mut self) -> bool {
        self.forget_parked();
        std::mem::take(&mut self.session_refused)
    }

    /// Whether a session was refused and none has started since.
    pub(crate) fn is_session_refused(&self) -> bool {
        self.session_refused
    }

    /// Sets the policy from now on.
    pub(crate) fn set_policy(&mut self, policy: OnFull) {
        let before = std::mem::replace(&mut self.policy, policy);
        match self.room {
            Room::Short { since, .. } if policy == OnFull::Report => {
                self.room = Room::Over { since };
            }
            // Later requests wait, as the new policy requires. Setting the same policy again changes nothing.
            Room::Over { .. } if policy != before && policy != OnFull::Report => {
                self.room = Room::Enough;
            }
            _ => {}
        }
    }

    /// Whether a turn has something to do.
    pub(crate) fn wants_turns(&self) -> bool {
        !self.is_served() || matches!(self.room, Room::Short { .. })
    }

    /// Whether nothing waits.
    fn is_served(&self) -> bool {
        self.count == 0 && self.probe.is_none() && !self.session_refused
    }

    /// What the volume waits for.
    pub(crate) fn waits_for(&self) -> WaitsFor {
        if matches!(self.room, Room::Over { .. }) {
            return WaitsFor::Nothing;
        }
        match self.lacks {
            ErrorCode::NoDescriptors => WaitsFor::Descriptor,
            ErrorCode::NoMemory => WaitsFor::Memory,
            ErrorCode::NoRunSpace => WaitsFor::RunDirectory,
            _ if self.session_refused => WaitsFor::Session,
            _ => WaitsFor::Writes,
        }
    }

    /// Number of parked requests.
    pub(crate) fn parked(&self) -> u64 {
        u64::from(self.count)
    }

    /// Whether a request without room is answered at once.
    pub(crate) fn refuses(&self) -> bool {
        self.policy == OnFull::Report || matches!(self.room, Room::Over { .. })
    }

    /// Whether no request can be served and none may wait.
    pub(crate) fn refuses_all(&self) -> bool {
        self.session_refused && self.refuses()
    }

    /// Since when the volume has had no room; `None` if it has room.
    pub(crate) fn since(&self) -> Option<Duration> {
        match self.room {
            Room::Enough => None,
            Room::Short { since, .. } | Room::Over { since } => Some(since),
        }
    }

    /// The report of the current state to control.
    pub(crate) fn report(&self, lineage: Lineage) -> ControlEvent {
        match self.room {
            Room::Enough => ControlEvent::SpaceFound { lineage },
            Room::Short { .. } | Room::Over { .. } => ControlEvent::NoSpace {
                lineage,
                waits_for: self.waits_for(),
                policy: self.policy,
            },
        }
    }

    /// Takes a turn at `now`. Returns whether the state must be reported.
    pub(crate) fn turn(&mut self, now: Duration) -> bool {
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

#[cfg(test)]
mod tests {
    use archipelago_protocol::volume::VolumeOp;

    use super::*;

    const TURN: Duration = SPACE_INTERVAL;

    #[test]
    fn parked_requests_probe_in_turn_until_the_limit_is_over() {
        let mut requests = Slab::new(2);
        let mut space = Space::default();
        let mut submit = |cookie| {
            let request = Request::new(0, cookie, 0, VolumeOp::Flush, 0, 0);
            requests.insert(request).unwrap()
        };
        let (one, two) = (submit(1), submit(2));
        let full = ErrorCode::NoSpace;
        assert_eq!(space.park(&mut requests, one, full), Parked::No);
        let limit = Some(TURN * 4);
        space.set_policy(OnFull::Wait { limit });
        assert_eq!(space.park(&mut requests, one, ErrorCode::Io), Parked::No);
        assert_eq!(space.park(&mut requests, one, full), Parked::First);
        assert_eq!(space.park(&mut requests, two, full), Parked::First);
        assert!(space.turn(TURN), "reported");
        assert_eq!(space.take_probe(&mut requests), Some(one));
        assert_eq!(space.take_probe(&mut requests), None);
        assert_eq!(space.park(&mut requests, one, full), Parked::Again);
        assert!(!space.turn(TURN * 2));
        assert_eq!(space.take_probe(&mut requests), Some(two));
        assert!(!space.take_answer(one) && space.take_answer(two));
        assert!(!space.found_room(), "it is not over");
        assert!(!space.turn(TURN * 5) && !space.turn(TURN * 8));
        assert!(space.turn(TURN * 9) && space.refuses());
        assert_eq!(space.waits_for(), WaitsFor::Nothing);
        assert!(space.found_room() && !space.refuses());
    }

    #[test]
    fn turns_come_at_their_interval_while_somebody_waits() {
        let mut turns = SpaceTurns::default();
        assert!(!turns.take(TURN));
        turns.want();
        assert!(turns.take(TURN) && !turns.is_wanted());
        turns.want();
        assert!(!turns.take(TURN + TURN / 2));
        assert!(turns.take(TURN * 2));
    }
}
