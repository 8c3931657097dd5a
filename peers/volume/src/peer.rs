//! The volume peer itself: it passes calls and answers to volumes, and gives each volume its turn.
//!
//! One poll collects answers from both ports (a bounded number). Then volumes with work take turns and send a few requests each, until none
//! can continue or the credits are used up. A request without a credit keeps its place in its queue.

use std::time::Duration;

use archipelago_protocol::control::PeerStatus;
use archipelago_protocol::volume::{
    OnFull, OpenMode, VolumeEvent, VolumeHandle, VolumeRequest, Volumes,
};
use archipelago_protocol::{Error, ErrorCode, Lineage};
use archipelago_runtime::{Peer, Progress};
use xseg::{ClientPort, Region, RegionId};

use crate::cells::ARENA_LEN_MIN;
use crate::control_event::{ControlEvent, WaitsFor};
use crate::limits::VOLUMES_MAX;
use crate::ports::{MapAnswer, Ports, Waiter};
use crate::slab::Slab;
use crate::snapshot::SnapshotRequest;
use crate::tables::Tables;
use crate::volume::Volume;

/// Answers collected from each port in one poll: some 10 us of work.
const REPLIES_PER_POLL: usize = 256;
/// Turns of every volume with work in one poll.
const TURNS_PER_POLL: usize = 16;
/// The handle of a volume for which no slot was free. No slot has this number.
const NO_SLOT: u32 = 0xffff;
const _: () = assert!(VOLUMES_MAX < NO_SLOT);

/// A volume, and what its handle contains.
#[derive(Debug)]
struct Opened {
    /// Order of opening; distinguishes the volume from others that used its slot.
    serial: u16,
    volume: Volume,
}

/// The composer: turns volume requests into requests to mapper and blocker. See the documentation of the crate.
#[derive(Debug)]
pub struct VolumePeer<M, B> {
    volumes: Slab<Opened>,
    next_serial: u16,
    tables: Tables<M, B>,
}

impl<M: ClientPort, B: ClientPort> VolumePeer<M, B> {
    /// A peer that sends its requests to the mapper behind `mapper` and the blocker behind `blocker`.
    ///
    /// When the mapper dies, its port forgets the requests in flight and has a new incarnation: sessions end with the mapper, so none of
    /// these requests may be sent to its successor. The blocker's port sends requests in flight again.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if the blocker channel's arena is too small for one cell of each size.
    pub fn new(mapper: M, blocker: B) -> Result<Self, Error> {
        let arena_len = blocker.arena().len();
        if arena_len < ARENA_LEN_MIN {
            let message = format!("arena of {arena_len} bytes is smaller than {ARENA_LEN_MIN}");
            return Err(Error::new(ErrorCode::Invalid, message));
        }
        Ok(VolumePeer {
            volumes: Slab::new(VOLUMES_MAX),
            next_serial: 1,
            tables: Tables::new(Ports::new(mapper, blocker)),
        })
    }

    /// The port to the mapper, for figures.
    pub fn mapper_port(&self) -> &M {
        self.tables.ports.mapper()
    }

    /// The port to the blocker, for figures.
    pub fn blocker_port(&self) -> &B {
        self.tables.ports.blocker()
    }

    /// Both ports, the mapper's first, for what their transport needs besides requests (connecting, noticing deaths).
    pub fn ports_mut(&mut self) -> (&mut M, &mut B) {
        self.tables.ports.both_mut()
    }

    /// Counts of what was done, and of what is in flight.
    #[must_use]
    pub fn status(&self) -> PeerStatus {
        let Tables {
            counters, ports, ..
        } = &self.tables;
        let parked = self.volumes.iter().map(|(_, it)| it.volume.parked()).sum();
        let sent = ports.sent();
        let figures = [
            ("volumes", self.volumes.len() as u64),
            ("requests", self.tables.submitted),
            ("requests_failed", counters.failed),
            ("requests_in_flight", self.tables.requests.len() as u64),
            ("pieces_in_flight", self.tables.pieces.len() as u64),
            ("map_requests", sent.map_requests),
            ("object_requests", sent.object_requests),
            ("flush_rounds", counters.flush_rounds),
            ("carrying_rounds", self.tables.areas.acquired()),
            ("merged_blocks", counters.merges),
            ("sync_failures", counters.sync_failures),
            ("mapper_restarts", sent.mapper_restarts),
            ("waiting_for_space", parked),
            ("space_waits", counters.space_waits),
            ("arena_cells_free", self.tables.cells.free() as u64),
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

    /// Closes `volume` for a driver that has ended: nobody collects its events any more.
    pub fn orphan(&mut self, volume: VolumeHandle) {
        while self.next_event(volume).is_some() {}
        self.on_handle(volume, Volume::orphan);
    }

    /// Makes the snapshot that the mapper prepared as `token`; [`ControlEvent::SnapshotDone`] with `id` follows.
    pub fn snapshot(&mut self, lineage: Lineage, token: u64, id: u64) {
        let asked = SnapshotRequest { id, token };
        let t = &mut self.tables;
        let mut volumes = self.volumes.iter_mut();
        if !volumes.any(|(_, opened)| opened.volume.snapshot(t, lineage, asked)) {
            let event = asked.done(Err(ErrorCode::NotFound));
            t.control_events.push_back(event);
        }
    }

    /// The size of the volume has changed. A smaller size is ignored: only a volume that nobody has open can shrink.
    pub fn resized(&mut self, lineage: Lineage, size: u64) {
        for (_, opened) in self.volumes.iter_mut() {
            opened.volume.resized(&mut self.tables, lineage, size);
        }
    }

    /// The next event for control.
    pub fn next_control_event(&mut self) -> Option<ControlEvent> {
        self.tables.control_events.pop_front()
    }

    /// Whether a volume waits for space.
    #[must_use]
    pub fn waits_for_space(&self) -> bool {
        self.tables.space_turns.is_wanted()
    }

    /// Takes a turn at `now`, if one is due: each volume with parked requests starts one of them again, or answers all of them when its
    /// time limit has passed.
    pub fn look_for_space(&mut self, now: Duration) {
        // The turn is taken before the volumes are examined: a volume that begins to wait meanwhile requests another turn.
        if !self.tables.space_turns.take(now) {
            return;
        }
        for (_, opened) in self.volumes.iter_mut() {
            let volume = &mut opened.volume;
            if volume.wants_space_turns() {
                volume.look_for_space(&mut self.tables, now);
                if volume.wants_space_turns() {
                    self.tables.space_turns.want();
                }
            }
        }
    }

    /// Volumes that have no room at `now`: what they wait for, and how long they wait.
    pub fn without_space(
        &self,
        now: Duration,
    ) -> impl Iterator<Item = (Lineage, WaitsFor, Duration)> {
        self.volumes
            .iter()
            .filter_map(move |(_, opened)| opened.volume.without_space(now))
    }

    /// Calls `what` with the volume in slot `v`, and frees the slot if the volume has ended.
    fn on_volume<T>(
        &mut self,
        v: u32,
        what: impl FnOnce(&mut Volume, &mut Tables<M, B>) -> T,
    ) -> T {
        let volume = &mut self.volumes[v].volume;
        let result = what(volume, &mut self.tables);
        if volume.is_gone() {
            let lineage = volume.lineage();
            self.volumes.remove(v);
            self.tables.ports.forget_objects(lineage);
        }
        result
    }

    /// Calls `what` with the volume of `handle`, if it exists.
    fn on_handle<T>(
        &mut self,
        handle: VolumeHandle,
        what: impl FnOnce(&mut Volume, &mut Tables<M, B>) -> T,
    ) -> Option<T> {
        let (v, serial) = (handle.0 & 0xffff, handle.0 >> 16);
        let opened = self.volumes.get(v)?;
        (u32::from(opened.serial) == serial).then(|| self.on_volume(v, what))
    }

    /// The volume that receives an answer.
    fn volume_of(&self, waiter: Waiter) -> u32 {
        match waiter {
            Waiter::Piece(p) => self.tables.pieces[p].volume,
            Waiter::Session(v) | Waiter::Round(v) | Waiter::Snapshot(v) => v,
        }
    }

    fn take_replies(&mut self) -> bool {
        let mut taken = false;
        for _ in 0..REPLIES_PER_POLL {
            let Some((waiter, reply)) = self.tables.ports.next_object_reply() else {
                break;
            };
            let v = self.volume_of(waiter);
            self.on_volume(v, |volume, t| volume.on_object_reply(t, waiter, &reply));
            taken = true;
        }
        for _ in 0..REPLIES_PER_POLL {
            let Some(answer) = self.tables.ports.next_map_answer() else {
                break;
            };
            match answer {
                MapAnswer::Reply(waiter, reply) => {
                    let v = self.volume_of(waiter);
                    self.on_volume(v, |volume, t| volume.on_map_reply(t, waiter, &reply));
                }
                MapAnswer::LateSyncFailure(waiter) => {
                    let v = self.volume_of(waiter);
                    self.on_volume(v, Volume::on_late_sync_failure);
                }
                MapAnswer::Forgotten => {}
            }
            taken = true;
        }
        taken
    }

    /// Opens every volume again with the new mapper, in the order of opening, once nothing is in flight. Returns whether this was done.
    fn recover(&mut self) -> bool {
        if !self.tables.ports.recovered() {
            return false;
        }
        let mut open: Vec<u32> = self.volumes.iter().map(|(v, _)| v).collect();
        open.sort_by_key(|v| self.volumes[*v].serial);
        for v in open {
            self.on_volume(v, Volume::recover);
        }
        true
    }

    /// Gives one turn to each volume with work. Returns whether any could continue.
    fn turn(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..self.tables.ready.len() {
            let Some(v) = self.tables.ready.next() else {
                break;
            };
            if self.volumes.get(v).is_none() {
                continue;
            }
            moved |= self.on_volume(v, |volume, t| {
                let moved = volume.advance(t);
                if moved || volume.has_work() {
                    t.ready.add(v);
                }
                moved
            });
        }
        moved
    }
}

impl<M: ClientPort, B: ClientPort> Volumes for VolumePeer<M, B> {
    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), ErrorCode> {
        if id == RegionId::ARENA {
            return Err(ErrorCode::Invalid);
        }
        self.tables.ports.add_region(id, region.clone())?;
        self.tables.memory.add(id, region);
        Ok(())
    }

    fn region_ready(&self, id: RegionId) -> bool {
        self.tables.memory.contains(id) && self.tables.ports.region_ready(id)
    }

    fn remove_region(&mut self, id: RegionId) {
        if self.tables.memory.remove(id) {
            self.tables.ports.remove_region(id);
        }
    }

    fn fresh_region(&mut self) -> RegionId {
        self.tables.memory.fresh()
    }

    /// Without a free slot, [`VolumeEvent::Opened`] of the returned handle reports the error.
    fn open(&mut self, lineage: Lineage, mode: OpenMode) -> VolumeHandle {
        let serial = self.next_serial;
        let opened = |v| Opened {
            serial,
            volume: Volume::new(v, lineage, mode),
        };
        let Some(v) = self.volumes.insert_with(opened) else {
            return VolumeHandle(NO_SLOT);
        };
        self.next_serial = self.next_serial.checked_add(1).unwrap_or(1);
        self.tables.ready.add(v);
        VolumeHandle(u32::from(serial) << 16 | v)
    }

    fn close(&mut self, volume: VolumeHandle) {
        self.on_handle(volume, Volume::close);
    }

    fn on_full(&mut self, volume: VolumeHandle, policy: OnFull) {
        self.on_handle(volume, |volume, t| volume.set_on_full(t, policy));
    }

    fn recall(&mut self, volume: VolumeHandle) {
        self.on_handle(volume, Volume::recall);
    }

    fn submit(
        &mut self,
        volume: VolumeHandle,
        cookie: u64,
        request: VolumeRequest<'_>,
    ) -> Result<(), ErrorCode> {
        self.on_handle(volume, |volume, t| volume.submit(t, cookie, &request))
            .unwrap_or(Err(ErrorCode::NotFound))
    }

    fn next_event(&mut self, volume: VolumeHandle) -> Option<VolumeEvent> {
        if volume.0 == NO_SLOT {
            let error = Error::new(ErrorCode::NoSpace, "too many volumes are open");
            return Some(VolumeEvent::Opened { result: Err(error) });
        }
        self.on_handle(volume, Volume::next_event)?
    }
}

impl<M: ClientPort, B: ClientPort> Peer for VolumePeer<M, B> {
    fn name(&self) -> &str {
        "volume"
    }

    fn poll(&mut self) -> Progress {
        self.tables.ready.settle();
        let mut moved = self.tables.ports.watch_mapper();
        moved |= self.take_replies();
        moved |= self.recover();
        if !self.tables.ports.is_recovering() {
            for _ in 0..TURNS_PER_POLL {
                if !self.turn() {
                    break;
                }
                moved = true;
            }
        }
        moved |= self.tables.ports.has_opened();
        if moved {
            self.tables.ports.publish();
        }
        self.tables.ready.settle();
        if moved {
            Progress::Busy
        } else {
            Progress::Idle
        }
    }

    fn prepare_sleep(&mut self) -> bool {
        self.tables.ports.prepare_sleep() && !self.tables.ready.is_kicked()
    }

    fn wake(&mut self) {
        self.tables.ports.wake();
    }
}
