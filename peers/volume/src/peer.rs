//! The volume peer itself: its tables, its two ports, and the poll that moves everything.
//!
//! One poll takes what both ports answered (bounded), then lets volumes with work send, in turn and a few requests each,
//! until nothing can move or the credits are used up. A request that finds no credit stays where it is in its queue.
//! Of what all volumes share (credits, slots) none takes more than it leaves ([`may_take`]): one whose requests do not come
//! back, because storage hangs, does not stop the others.
//!
//! Cookies of submissions say which table and slot the completion belongs to. Those of the mapper's port also carry the
//! port's incarnation: answers of a mapper that is gone are ignored.

use std::collections::VecDeque;

use archipelago_protocol::carry::AREA_LEN;
use archipelago_protocol::control::PeerStatus;
use archipelago_protocol::map::{MapReply, MapRequest};
use archipelago_protocol::object::{ObjectReply, ObjectRequest};
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Peer, Progress};
use rustc_hash::FxHashMap;
use xseg::{ClientPort, Region};

use crate::arena::{ARENA_LEN_MIN, Arena};
use crate::full::Turns;
use crate::model::{
    PIECES_MAX, Piece, REQUESTS_MAX, Request, State, VOLUMES_MAX, Volume, may_take,
};
use crate::slab::Slab;
use crate::snapshot::ControlEvent;

/// Completions taken from each port in one poll: some 10 us of work.
const REPLIES_PER_POLL: usize = 256;
/// Times that every volume with work has its turn in one poll.
const TURNS_PER_POLL: usize = 16;
/// Submissions of a volume to one port in its turn: small enough that others get their share of few credits.
pub(crate) const QUANTUM: usize = 16;

/// Which table a completion belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Piece,
    Session,
    Round,
    Snapshot,
}

const KIND_SHIFT: u32 = 56;
const INCARNATION_MASK: u64 = 0xff_ffff;

fn cookie(kind: Kind, incarnation: u64, index: u32) -> u64 {
    (kind as u64) << KIND_SHIFT | (incarnation & INCARNATION_MASK) << 32 | u64::from(index)
}

fn cookie_parts(cookie: u64) -> (Kind, u64, u32) {
    let kind = match cookie >> KIND_SHIFT {
        0 => Kind::Piece,
        1 => Kind::Session,
        2 => Kind::Round,
        _ => Kind::Snapshot,
    };
    let index = u32::try_from(cookie & u64::from(u32::MAX)).expect("masked");
    (kind, cookie >> 32 & INCARNATION_MASK, index)
}

/// Figures since the peer was made.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) map_requests: u64,
    pub(crate) object_requests: u64,
    pub(crate) flush_rounds: u64,
    pub(crate) carrying_rounds: u64,
    pub(crate) merges: u64,
    pub(crate) sync_failures: u64,
    pub(crate) mapper_restarts: u64,
    pub(crate) space_waits: u64,
}

/// A region that a driver has added.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) region: Region,
    /// Whether the blocker has said so, once.
    pub(crate) ready: bool,
}

/// The composer: volume requests in, map and object requests out. See the crate's documentation.
#[derive(Debug)]
pub struct VolumePeer<M, B> {
    pub(crate) mapper: M,
    pub(crate) blocker: B,
    pub(crate) volumes: Slab<Volume>,
    pub(crate) requests: Slab<Request>,
    /// Segments by request slot; their memory is kept for the slot's next request.
    pub(crate) segments: Vec<Vec<archipelago_protocol::volume::Segment>>,
    pub(crate) pieces: Slab<Piece>,
    pub(crate) arena: Arena,
    /// Areas of the mapper channel's arena that are free, by their offset.
    pub(crate) areas: Vec<u64>,
    pub(crate) regions: FxHashMap<u32, Known>,
    pub(crate) next_region: u32,
    pub(crate) next_serial: u16,
    pub(crate) next_sequence: u64,
    pub(crate) ready: VecDeque<u32>,
    pub(crate) control_events: VecDeque<ControlEvent>,
    /// The mapper's port as we know it.
    pub(crate) incarnation: u64,
    /// The mapper died: nothing is sent until the object requests in flight are back.
    pub(crate) recovering: bool,
    pub(crate) object_in_flight: u32,
    pub(crate) space_turns: Turns,
    /// Something was asked of us since the last poll.
    pub(crate) kicked: bool,
    pub(crate) counters: Counters,
    /// For sorting requests when they start again.
    pub(crate) scratch: Vec<u32>,
}

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// A peer that asks the mapper behind `mapper` and the blocker behind `blocker`.
    ///
    /// The mapper's port forgets what is in flight when its server dies and says so by its incarnation: sessions end with
    /// the mapper, so nothing may be sent to its successor again. The blocker's port sends what is in flight again.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if the blocker channel's arena is too small for one cell of each size.
    pub fn new(mapper: M, blocker: B) -> Result<Self, Error> {
        let arena_len = blocker.arena().len();
        if arena_len < ARENA_LEN_MIN {
            let message = format!("arena of {arena_len} bytes is smaller than {ARENA_LEN_MIN}");
            return Err(Error::new(ErrorCode::Invalid, message));
        }
        let incarnation = mapper.incarnation();
        let areas = (0..mapper.arena().len() / AREA_LEN).map(|index| index * AREA_LEN);
        let areas = areas.rev().collect();
        Ok(VolumePeer {
            mapper,
            blocker,
            volumes: Slab::new(VOLUMES_MAX),
            requests: Slab::new(REQUESTS_MAX),
            segments: vec![Vec::new(); REQUESTS_MAX as usize],
            pieces: Slab::new(PIECES_MAX),
            arena: Arena::new(arena_len),
            areas,
            regions: FxHashMap::default(),
            next_region: 1,
            next_serial: 1,
            next_sequence: 0,
            ready: VecDeque::with_capacity(VOLUMES_MAX as usize),
            control_events: VecDeque::new(),
            incarnation,
            recovering: false,
            object_in_flight: 0,
            space_turns: Turns::default(),
            kicked: false,
            counters: Counters::default(),
            scratch: Vec::new(),
        })
    }

    /// The port to the mapper, for figures.
    pub fn mapper_port(&self) -> &M {
        &self.mapper
    }

    /// The port to the blocker, for figures.
    pub fn blocker_port(&self) -> &B {
        &self.blocker
    }

    /// Both ports, mapper's first, for what their transport needs beside requests (connecting, noticing deaths).
    pub fn ports_mut(&mut self) -> (&mut M, &mut B) {
        (&mut self.mapper, &mut self.blocker)
    }

    /// What went through, and what is in flight now.
    #[must_use]
    pub fn status(&self) -> PeerStatus {
        let counters = &self.counters;
        let volumes = self.volumes.iter();
        let parked = volumes.map(|(_, volume)| volume.full.parked()).sum();
        let figures = [
            ("volumes", self.volumes.len() as u64),
            ("requests", counters.requests),
            ("requests_failed", counters.failed),
            ("requests_in_flight", self.requests.len() as u64),
            ("pieces_in_flight", self.pieces.len() as u64),
            ("map_requests", counters.map_requests),
            ("object_requests", counters.object_requests),
            ("flush_rounds", counters.flush_rounds),
            ("carrying_rounds", counters.carrying_rounds),
            ("merged_blocks", counters.merges),
            ("sync_failures", counters.sync_failures),
            ("mapper_restarts", counters.mapper_restarts),
            ("waiting_for_space", parked),
            ("space_waits", counters.space_waits),
            ("arena_cells_free", self.arena.free() as u64),
        ];
        let counters = figures
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect();
        PeerStatus {
            name: "volume".to_owned(),
            counters,
        }
    }

    /// Sends `request` for volume `v`. `false`: no credit for it or no connection; nothing changed.
    pub(crate) fn send_map(&mut self, v: u32, kind: Kind, index: u32, request: MapRequest) -> bool {
        let held = self.volumes[v].map_in_flight as usize;
        let sent = may_take(held, self.mapper.credits())
            && self
                .mapper
                .submit(cookie(kind, self.incarnation, index), request.encode())
                .is_ok();
        if sent {
            self.volumes[v].map_in_flight += 1;
            self.counters.map_requests += 1;
        }
        sent
    }

    /// Sends `request` for volume `v`. `false`: no credit for it or no connection; nothing changed.
    pub(crate) fn send_object(
        &mut self,
        v: u32,
        kind: Kind,
        index: u32,
        request: &ObjectRequest,
    ) -> bool {
        let held = self.volumes[v].object_in_flight as usize;
        let sent = may_take(held, self.blocker.credits())
            && self
                .blocker
                .submit(cookie(kind, 0, index), request.encode())
                .is_ok();
        if sent {
            self.volumes[v].object_in_flight += 1;
            self.object_in_flight += 1;
            self.counters.object_requests += 1;
        }
        sent
    }

    /// Gives volume `v` a turn.
    pub(crate) fn make_ready(&mut self, v: u32) {
        self.kicked = true;
        let volume = &mut self.volumes[v];
        if !volume.queued {
            volume.queued = true;
            self.ready.push_back(v);
        }
    }

    fn on_map_reply(&mut self, tagged: u64, reply: MapReply) {
        let (kind, incarnation, index) = cookie_parts(tagged);
        if incarnation != self.incarnation & INCARNATION_MASK || self.recovering {
            return;
        }
        let v = if kind == Kind::Piece {
            self.pieces[index].volume
        } else {
            index
        };
        self.volumes[v].map_in_flight -= 1;
        self.make_ready(v);
        if matches!(self.volumes[v].state, State::Failing(_)) {
            return;
        }
        match kind {
            Kind::Piece => self.piece_map_reply(index, reply),
            Kind::Session => self.session_reply(v, reply),
            Kind::Round => self.round_map_reply(v, reply),
            Kind::Snapshot => self.snapshot_reply(v, reply),
        }
    }

    fn on_object_reply(&mut self, tagged: u64, reply: ObjectReply) {
        let (kind, _, index) = cookie_parts(tagged);
        let v = if kind == Kind::Piece {
            self.pieces[index].volume
        } else {
            index
        };
        self.object_in_flight -= 1;
        self.volumes[v].object_in_flight -= 1;
        self.make_ready(v);
        if kind == Kind::Piece {
            self.note_written(index, &reply);
        } else if self.recovering && reply.result.is_err() {
            // Final, although its round is forgotten: syncing again would succeed without the data.
            self.fail_volume(v);
        }
        // Whoever drains has the requests start again or fail: an answer only says that the memory is free.
        if self.recovering || matches!(self.volumes[v].state, State::Failing(_)) {
            return;
        }
        match kind {
            Kind::Piece => self.piece_object_reply(index, reply),
            _ => self.round_object_reply(v, reply),
        }
    }

    fn take_replies(&mut self) -> bool {
        let mut taken = false;
        for _ in 0..REPLIES_PER_POLL {
            let Some((tagged, completion)) = self.blocker.complete() else {
                break;
            };
            self.on_object_reply(tagged, ObjectReply::decode(&completion));
            taken = true;
        }
        for _ in 0..REPLIES_PER_POLL {
            let Some((tagged, completion)) = self.mapper.complete() else {
                break;
            };
            self.on_map_reply(tagged, MapReply::decode(&completion));
            taken = true;
        }
        taken
    }

    /// One turn for each volume with work. Whether anything moved.
    fn turn(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..self.ready.len() {
            let Some(v) = self.ready.pop_front() else {
                break;
            };
            let Some(volume) = self.volumes.get(v) else {
                continue;
            };
            if !volume.queued {
                continue;
            }
            self.volumes[v].queued = false;
            let went_on = self.advance(v);
            moved |= went_on;
            if self
                .volumes
                .get(v)
                .is_some_and(|volume| (went_on || volume.has_work()) && !volume.queued)
            {
                self.volumes[v].queued = true;
                self.ready.push_back(v);
            }
        }
        moved
    }
}

impl<M: ClientPort, B: ClientPort> Peer for VolumePeer<M, B> {
    fn name(&self) -> &str {
        "volume"
    }

    fn poll(&mut self) -> Progress {
        self.kicked = false;
        let mut moved = self.watch_mapper();
        moved |= self.take_replies();
        moved |= self.recover();
        if !self.recovering {
            for _ in 0..TURNS_PER_POLL {
                if !self.turn() {
                    break;
                }
                moved = true;
            }
        }
        if moved {
            self.mapper.publish();
            self.blocker.publish();
        }
        self.kicked = false;
        if moved {
            Progress::Busy
        } else {
            Progress::Idle
        }
    }

    fn prepare_sleep(&mut self) -> bool {
        let mapper_idle = self.mapper.prepare_sleep();
        let blocker_idle = self.blocker.prepare_sleep();
        mapper_idle && blocker_idle && !self.kicked
    }

    fn wake(&mut self) {
        self.mapper.wake();
        self.blocker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_come_back_as_they_went() {
        for kind in [Kind::Piece, Kind::Session, Kind::Round, Kind::Snapshot] {
            assert_eq!(cookie_parts(cookie(kind, 0x0100_0007, 12)), (kind, 7, 12));
        }
    }
}
