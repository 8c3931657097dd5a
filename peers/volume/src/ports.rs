//! The two ports of the peer, to the mapper and to the blocker, and the counts of requests in flight.
//!
//! The cookie of a request identifies the receiver of the answer. Cookies of the mapper's port also contain the port's incarnation: of the
//! answers of a mapper that died, only failed syncs count. A volume may hold at most half of the credits of a port ([`may_acquire`]): so a
//! volume whose requests are not answered because its storage hangs does not stop the others.
//!
//! Objects are opened at the blocker on demand ([`ClientHandles`]); the port opens them again at the blocker's successor.
//!
//! | mapper | becomes |
//! |---|---|
//! | Serving | Recovering, when the port has another incarnation |
//! | Recovering: nothing is sent, and the last answers of the dead mapper are collected | Serving, when they are collected, no object request is in flight and the successor is connected |

use archipelago_protocol::client_handles::{ClientHandles, Effect, HandleUse};
use archipelago_protocol::handle::{HandleAccess, OpenObject};
use archipelago_protocol::map::{MapReply, MapRequest};
use archipelago_protocol::object::{ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{ErrorCode, Lineage};
use xseg::{ClientPort, Region, RegionId};

use crate::limits::may_acquire;

/// The receiver of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// The piece in this slot.
    Piece(u32),
    /// The session of the volume in this slot.
    Session(u32),
    /// The flush round of the volume in this slot.
    Round(u32),
    /// The snapshot of the volume in this slot.
    Snapshot(u32),
}

/// An answer of the mapper, and its meaning.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MapAnswer {
    /// An answer to its receiver.
    Reply(Waiter, MapReply),
    /// A mapper that has died since had answered this receiver with a failed sync.
    LateSyncFailure(Waiter),
    /// An answer of a mapper that died: it is dropped, and the request starts again.
    Forgotten,
}

const KIND_SHIFT: u32 = 56;
const INCARNATION_MASK: u64 = 0xff_ffff;
/// Position of the handle's use in the cookie of an object request; 0: a sync of the pool. The cookie contains no incarnation.
const USE_SHIFT: u32 = 32;

impl Waiter {
    fn cookie(self, incarnation: u64) -> u64 {
        let (kind, index) = match self {
            Waiter::Piece(p) => (0, p),
            Waiter::Session(v) => (1, v),
            Waiter::Round(v) => (2, v),
            Waiter::Snapshot(v) => (3, v),
        };
        kind << KIND_SHIFT | (incarnation & INCARNATION_MASK) << 32 | u64::from(index)
    }

    /// The waiter and the incarnation.
    fn of_cookie(cookie: u64) -> (Waiter, u64) {
        let index = u32::try_from(cookie & u64::from(u32::MAX)).expect("masked");
        let waiter = match cookie >> KIND_SHIFT {
            0 => Waiter::Piece(index),
            1 => Waiter::Session(index),
            2 => Waiter::Round(index),
            _ => Waiter::Snapshot(index),
        };
        (waiter, cookie >> 32 & INCARNATION_MASK)
    }
}

/// The handle on which an object request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handle {
    /// No handle: the request concerns the pool.
    Pool,
    Object(u32),
}

/// Counts of the requests of one volume that are in flight.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    map: u32,
    object: u32,
}

impl InFlight {
    pub(crate) fn is_empty(&self) -> bool {
        self.map + self.object == 0
    }

    /// The mapper has answered.
    pub(crate) fn map_done(&mut self) {
        self.map -= 1;
    }

    /// The blocker has answered; [`Ports::next_object_reply`] has updated its count.
    pub(crate) fn object_done(&mut self) {
        self.object -= 1;
    }

    /// The mapper died, or its answers have no receiver.
    pub(crate) fn forget_map(&mut self) {
        debug_assert_eq!(
            self.object, 0,
            "memory of requests in flight is not to be reused"
        );
        self.map = 0;
    }
}

/// Counts of requests sent since the peer was made.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    pub(crate) map_requests: u64,
    pub(crate) object_requests: u64,
    pub(crate) mapper_restarts: u64,
}

/// Both ports.
#[derive(Debug)]
pub(crate) struct Ports<M, B> {
    mapper: M,
    blocker: B,
    /// The last known incarnation of the mapper's port.
    incarnation: u64,
    /// The mapper died, and its volumes have not been opened again yet.
    recovering: bool,
    /// The incarnation of the mapper that died, until all its answers are collected.
    former: Option<u64>,
    object_in_flight: u32,
    handles: ClientHandles,
    /// Opens of handles that the blocker has received.
    opens_published: u64,
    sent: Sent,
}

impl<M: ClientPort, B: ClientPort> Ports<M, B> {
    pub(crate) fn new(mapper: M, blocker: B) -> Self {
        Ports {
            incarnation: mapper.incarnation(),
            mapper,
            blocker,
            recovering: false,
            former: None,
            object_in_flight: 0,
            handles: ClientHandles::default(),
            opens_published: 0,
            sent: Sent::default(),
        }
    }

    pub(crate) fn mapper(&self) -> &M {
        &self.mapper
    }

    pub(crate) fn blocker(&self) -> &B {
        &self.blocker
    }

    pub(crate) fn both_mut(&mut self) -> (&mut M, &mut B) {
        (&mut self.mapper, &mut self.blocker)
    }

    pub(crate) fn sent(&self) -> Sent {
        self.sent
    }

    /// The arena of the mapper's channel.
    pub(crate) fn map_arena(&self) -> &Region {
        self.mapper.arena()
    }

    /// The arena of the blocker's channel.
    pub(crate) fn object_arena(&self) -> &Region {
        self.blocker.arena()
    }

    /// Sends `request` for the volume of `in_flight`. `false`: there is no credit or no connection, and nothing has changed.
    pub(crate) fn send_map(
        &mut self,
        in_flight: &mut InFlight,
        waiter: Waiter,
        request: &MapRequest,
    ) -> bool {
        let cookie = waiter.cookie(self.incarnation);
        let sent = may_acquire(in_flight.map as usize, self.mapper.credits())
            && self.mapper.submit(cookie, request.encode()).is_ok();
        if sent {
            in_flight.map += 1;
            self.sent.map_requests += 1;
        }
        sent
    }

    /// Whether the volume of `in_flight` may send an object request.
    pub(crate) fn may_send_object(&self, in_flight: &InFlight) -> bool {
        may_acquire(in_flight.object as usize, self.blocker.credits())
    }

    /// The handle of the object of `request`, which the volume of `in_flight` may send now. `None`: the volume has to wait.
    pub(crate) fn open_for(
        &mut self,
        in_flight: &InFlight,
        request: &ObjectRequest,
    ) -> Option<Handle> {
        if !self.may_send_object(in_flight) {
            return None;
        }
        let handle = if request.op == ObjectOp::SyncPool {
            Handle::Pool
        } else {
            let object = OpenObject::of(request, HandleAccess::of(request.op));
            Handle::Object(self.handles.find(&mut self.blocker, &object)?)
        };
        // The open may have taken the last credit.
        self.may_send_object(in_flight).then_some(handle)
    }

    /// Sends `request` for the volume of `in_flight`, on the handle from [`Ports::open_for`]. `false`: there is no credit or no connection,
    /// and nothing has changed.
    pub(crate) fn send_object(
        &mut self,
        in_flight: &mut InFlight,
        waiter: Waiter,
        handle: Handle,
        request: &ObjectRequest,
    ) -> bool {
        let (number, used) = match handle {
            Handle::Pool => (0, None),
            Handle::Object(number) => {
                let effect = Effect::of(request.op, request.flags);
                (number, Some(HandleUse::new(number, effect)))
            }
        };
        let bits = used.map_or(0, HandleUse::to_bits);
        let cookie = waiter.cookie(0) | bits << USE_SHIFT;
        let sent = self.blocker.submit(cookie, request.encode(number)).is_ok();
        if sent {
            match used {
                Some(used) => self.handles.sent(used),
                None => self.handles.pool_sync_sent(),
            }
            in_flight.object += 1;
            self.object_in_flight += 1;
            self.sent.object_requests += 1;
        }
        sent
    }

    /// The volume is not used here any more. If it is used again, its objects are opened again, with the rights of that time.
    pub(crate) fn forget_objects(&mut self, lineage: Lineage) {
        self.handles.forget(&mut self.blocker, lineage);
    }

    /// The next answer of the mapper.
    pub(crate) fn next_map_answer(&mut self) -> Option<MapAnswer> {
        let Some((cookie, completion)) = self.mapper.complete() else {
            self.former = None;
            return None;
        };
        let (waiter, incarnation) = Waiter::of_cookie(cookie);
        let reply = MapReply::decode(&completion);
        let is_of = |other: u64| incarnation == other & INCARNATION_MASK;
        let answer = if !self.recovering && is_of(self.incarnation) {
            MapAnswer::Reply(waiter, reply)
        } else if reply.result == Err(ErrorCode::SyncFailed) && self.former.is_some_and(is_of) {
            MapAnswer::LateSyncFailure(waiter)
        } else {
            MapAnswer::Forgotten
        };
        Some(answer)
    }

    /// The next answer of the blocker, and its receiver.
    pub(crate) fn next_object_reply(&mut self) -> Option<(Waiter, ObjectReply)> {
        loop {
            let (cookie, completion) = self.blocker.complete()?;
            let mut reply = ObjectReply::decode(&completion);
            if self.handles.take(&mut self.blocker, cookie, &reply) {
                continue;
            }
            match HandleUse::from_bits(cookie >> USE_SHIFT & INCARNATION_MASK) {
                Some(used) => self.handles.answered(&mut self.blocker, used, &mut reply),
                None => self.handles.pool_sync_answered(reply.result.is_ok()),
            }
            self.object_in_flight -= 1;
            return Some((Waiter::of_cookie(cookie).0, reply));
        }
    }

    /// Checks whether the mapper was replaced. Returns whether it was.
    pub(crate) fn watch_mapper(&mut self) -> bool {
        let incarnation = self.mapper.incarnation();
        let replaced = incarnation != self.incarnation;
        if replaced {
            // A mapper that came and died while the peer recovered has received nothing.
            if !self.recovering {
                self.former = Some(self.incarnation);
            }
            self.incarnation = incarnation;
            self.recovering = true;
            self.sent.mapper_restarts += 1;
        }
        replaced
    }

    /// Whether the mapper died, and nothing may be sent.
    pub(crate) fn is_recovering(&self) -> bool {
        self.recovering
    }

    /// Whether the mapper's successor can be used from now on. If so, every volume must be opened again.
    pub(crate) fn recovered(&mut self) -> bool {
        let is_drained = self.former.is_none() && self.object_in_flight == 0;
        let recovered = self.recovering && is_drained && self.mapper.is_connected();
        self.recovering &= !recovered;
        recovered
    }

    /// Makes a region known to the blocker.
    pub(crate) fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), ErrorCode> {
        self.blocker
            .add_region(id, region)
            .map_err(|why| match why {
                xseg::PortError::Full => ErrorCode::NoSpace,
                _ => ErrorCode::Unavailable,
            })
    }

    pub(crate) fn region_ready(&self, id: RegionId) -> bool {
        self.blocker.region_ready(id)
    }

    pub(crate) fn remove_region(&mut self, id: RegionId) {
        self.blocker.remove_region(id);
    }

    /// Whether opens of handles have not been published to the blocker; perhaps no request follows them.
    pub(crate) fn has_opened(&self) -> bool {
        self.handles.opens() != self.opens_published
    }

    /// Publishes what was sent to the mapper and the blocker.
    pub(crate) fn publish(&mut self) {
        self.opens_published = self.handles.opens();
        self.mapper.publish();
        self.blocker.publish();
    }

    /// As [`Peer::prepare_sleep`](archipelago_runtime::Peer::prepare_sleep).
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        let mapper_idle = self.mapper.prepare_sleep();
        let blocker_idle = self.blocker.prepare_sleep();
        mapper_idle && blocker_idle
    }

    pub(crate) fn wake(&mut self) {
        self.mapper.wake();
        self.blocker.wake();
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::client_handles::HANDLE_COOKIE;

    use super::*;

    #[test]
    fn cookies_come_back_as_they_went() {
        for kind in [
            Waiter::Piece,
            Waiter::Session,
            Waiter::Round,
            Waiter::Snapshot,
        ] {
            let cookie = kind(12).cookie(0x0100_0007);
            assert_eq!(Waiter::of_cookie(cookie), (kind(12), 7));
            let used = HandleUse::new(0x7fff, Effect::Syncs);
            let cookie = kind(12).cookie(0) | used.to_bits() << USE_SHIFT;
            assert_eq!(cookie & HANDLE_COOKIE, 0);
            assert_eq!(Waiter::of_cookie(cookie), (kind(12), used.to_bits()));
        }
    }
}
