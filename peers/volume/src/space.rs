//! The policy of one volume at a full pool: writes without space wait until there is some, if the policy allows it, and for as long as it
//! allows.
//!
//! A request that failed for want of space and may wait is *parked*: it keeps its slot and is not answered. The host calls
//! [`VolumePeer::look_for_space`](crate::VolumePeer::look_for_space) while something waits. One turn each
//! [`SPACE_INTERVAL`], however often the host calls, starts one parked request of each volume again, from the beginning, as
//! a probe. When the probe succeeds, all parked requests of its volume start again.
//!
//! | [`Room`] | a request without room | becomes |
//! |---|---|---|
//! | Enough | is parked, or answered at once if the policy is [`OnFull::Report`] | Short, in a turn in which something waits |
//! | Short | is parked | Enough, when nothing waits for a second; Over, when the limit of the policy is over |
//! | Over | is answered at once | Enough, when something found room, or another policy that waits is set |
//!
//! Invariants
//! - Nothing of a parked request is in flight, and it stands in no other queue.
//! - A volume without a session probes only whether it can have one: its requests start again when it is opened again, the parked ones with
//!   them. While the policy answers at once ([`Space::refuses`]), they are answered, and the session is asked for all the same: service
//!   comes back with the space.
//! - A driver that gives up ([`OnFull::Report`], a close) is answered for each parked request at once.
//! - The limit is compared with the time since something of the volume last found room, not with how long one request has
//!   waited: a request that comes late waits for what is left, and one that comes after the limit does not wait.
//!
//! Starting from the beginning is safe for the reason given in `volume::lifecycle`: a request that is not answered has no
//! order among those in flight with it. A probe for each volume, not all requests: a full pool costs a failing write each
//! turn, whatever the depth of the guest's queues; and the parked ones alternate, since there may be room for one and not
//! for another.

use std::time::Duration;

use archipelago_protocol::volume::OnFull;
use archipelago_protocol::{ErrorCode, Lineage};

use crate::control_event::{ControlEvent, WaitsFor};
use crate::request::{Phase, Request};
use crate::slab::{Queue, Slab};

/// Between two turns: parked requests go on well within a second after there is room.
pub const SPACE_INTERVAL: Duration = Duration::from_millis(250);
/// Turns without a parked request after which a volume counts as served again: a volume at the edge of a full pool is
/// reported once, not with each block that somebody frees.
const CALM_TURNS: u8 = 4;

/// When the next turn of all volumes is.
#[derive(Debug, Default)]
pub(crate) struct SpaceTurns {
    /// Some volume may wait. Set when one begins to, and found out by each turn.
    wanted: bool,
    due: Duration,
}

impl SpaceTurns {
    /// Some volume waits.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// Whether a volume may wait.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether a turn is due at `now`; it is taken then, and the next one must be requested.
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

/// Whether a request was parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// It is to be answered.
    No,
    /// It waits.
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
    /// There was no room for what the begin of a session writes, and none has begun since.
    session_refused: bool,
    /// What there was none of the last time: a code that passes.
    lacks: ErrorCode,
    /// The request that was started again to find out.
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
    /// Parks request `r`, which failed with `code`, if that failure passes and the policy allows it.
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

    /// Takes a request out of those that are parked: the one that waits longest.
    pub(crate) fn unpark(&mut self, requests: &mut Slab<Request>) -> Option<u32> {
        let r = self.parked.pop(requests)?;
        self.count -= 1;
        Some(r)
    }

    /// Takes a parked request to be started again, if it is time to probe.
    pub(crate) fn take_probe(&mut self, requests: &mut Slab<Request>) -> Option<u32> {
        if self.refuses() || self.probe.is_some() {
            return None;
        }
        self.probe = self.unpark(requests);
        self.probe
    }

    /// Request `r` was answered. Whether it was the probe.
    pub(crate) fn take_answer(&mut self, r: u32) -> bool {
        let is_probe = self.probe == Some(r);
        if is_probe {
            self.probe = None;
        }
        is_probe
    }

    /// Nothing is parked any more: the requests are queued again or answered by the caller.
    pub(crate) fn forget_parked(&mut self) {
        (self.parked, self.count, self.probe) = (Queue::default(), 0, None);
    }

    /// Something that needed room has found it. Whether that is to be reported.
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

    /// The begin of a session was refused for want of `code`.
    pub(crate) fn refuse_session(&mut self, code: ErrorCode) {
        self.lacks = code;
        self.session_refused = true;
    }

    /// A session has begun, or nobody waits for one. Whether it had been refused.
    pub(crate) fn end_refusal(&mut self) -> bool {
        self.forget_parked();
        std::mem::take(&mut self.session_refused)
    }

    /// Whether a session was refused, and none has begun since.
    pub(crate) fn is_session_refused(&self) -> bool {
        self.session_refused
    }

    /// Another policy, from now on.
    pub(crate) fn set_policy(&mut self, policy: OnFull) {
        let before = std::mem::replace(&mut self.policy, policy);
        match self.room {
            Room::Short { since, .. } if policy == OnFull::Report => {
                self.room = Room::Over { since };
            }
            // Later requests wait, as the new policy requires; setting the same policy again changes nothing.
            Room::Over { .. } if policy != before && policy != OnFull::Report => {
                self.room = Room::Enough;
            }
            _ => {}
        }
    }

    /// Whether there is something to do in a turn.
    pub(crate) fn wants_turns(&self) -> bool {
        !self.is_served() || matches!(self.room, Room::Short { .. })
    }

    /// Whether nothing waits.
    fn is_served(&self) -> bool {
        self.count == 0 && self.probe.is_none() && !self.session_refused
    }

    /// For what it waits.
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

    /// Requests that are parked.
    pub(crate) fn parked(&self) -> u64 {
        u64::from(self.count)
    }

    /// Whether a request without room is answered at once.
    pub(crate) fn refuses(&self) -> bool {
        self.policy == OnFull::Report || matches!(self.room, Room::Over { .. })
    }

    /// Whether no request can be served, and none may wait.
    pub(crate) fn refuses_all(&self) -> bool {
        self.session_refused && self.refuses()
    }

    /// Since when the volume has been without room; `None`: it is not.
    pub(crate) fn since(&self) -> Option<Duration> {
        match self.room {
            Room::Enough => None,
            Room::Short { since, .. } | Room::Over { since } => Some(since),
        }
    }

    /// What is reported of the room there is.
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

    /// A turn at `now`. Whether that is to be reported.
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
